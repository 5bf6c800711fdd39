"""``vitsense export``: a plan becomes files that run elsewhere."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitsense.cli_output import (
    debug_option,
    emit,
    emit_json,
    find_run,
    json_option,
    progress_options,
    say,
)
from vitsense.errors import InputMissingError, UserInputError
from vitsense.progress import NO_PROGRESS, Progress, ProgressStyle, make_progress
from vitsense.trainings import FOLDER, TrainingFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from vitsense.export.fixed import FixedModel
    from vitsense.export.source import ExportSource

TOOLS = ("torchao", "modelopt", "onnxruntime", "aimet")
FORMATS = ("onnx", "safetensors", *TOOLS)


@click.command(
    short_help="Write packed weights, ONNX, or another tool's configuration.",
    context_settings={"show_default": True},
)
@click.argument("source", metavar="[RUN_OR_CHECKPOINT]", required=False)
@click.option(
    "--format", "form", type=click.Choice(FORMATS), required=True, help="What to write; see below."
)
@click.option("--model", metavar="KEY", help="Which model of the run; default: the first.")
@click.option(
    "--plan",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A plan for the model; default: the run's own.",
)
@click.option("--data", metavar="SPEC", help="Images to compare on, for a packed file.")
@click.option("--opset", type=int, default=21, help="ONNX operator set, 18 to 25.")
@click.option(
    "--fallback",
    is_flag=True,
    help="Where the target has no such format, take the next wider one, and say where.",
)
@click.option(
    "--images", type=click.IntRange(min=1), default=64, help="Held-back images to compare on."
)
@click.option(
    "--runs",
    type=click.IntRange(min=0),
    default=30,
    help="Timed runs against float; 0: no timing.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Default: in the folder export of the run.",
)
@click.option(
    "--prefer",
    type=click.Choice(["size", "speed"]),
    default="size",
    help="ONNX: hold narrow weights in narrow types, or in 8 bits, for which onnxruntime has "
    "integer kernels. The logits are the same.",
)
@click.option(
    "--profile",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="ONNX: a latency profile, to print its prediction beside what is measured.",
)
@progress_options
@json_option
@debug_option
def export(
    *,
    source: str | None,
    form: str,
    model: str | None,
    plan: Path | None,
    data: str | None,
    out: Path | None,
    progress_style: str,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Export a model of a run (default: the newest), of a training, or of a packed file.

    \b
    RUN_OR_CHECKPOINT is one of
      a run folder, or its name in vitsense-runs    quantized by its plan, without training
      RUN/qat/NAME, or a file of it                 trained by vitsense qat, on its trained grids;
                                                    the folder means best.safetensors
      a file of --format safetensors                its integers, as they are
    \b
    The formats:
      onnx           QuantizeLinear and DequantizeLinear around integers; the file is run by
                     onnxruntime and compared with the torch model on held-back images
      safetensors    packed integer codes, scales, ranges and the plan, in one file
      torchao, modelopt, onnxruntime, aimet
                     the plan as that tool's configuration
    """
    progress = NO_PROGRESS if quiet else make_progress(ProgressStyle(progress_style))
    try:
        if form == "onnx":
            from vitsense.export.onnx_graph import need_onnx
            from vitsense.export.onnx_types import check_opset

            need_onnx()  # before minutes of calibration
            check_opset(options["opset"])
        found = _source(source, model, plan, data, (form, options), progress)
        entry = _exported(found, form, out, options, progress)
    finally:
        progress.close()
    if as_json:
        emit_json("complete", {"export": entry})
    else:
        _SHOW[form](entry)


def _source(
    text: str | None,
    model: str | None,
    plan: Path | None,
    data: str | None,
    target: tuple[str, dict[str, Any]],
    progress: Progress,
) -> ExportSource:
    from vitsense.export.source import source_of_file, source_of_run
    from vitsense.export.trained import source_of_training, training_of

    training = None if text is None else training_of(Path(text))
    if training is not None:
        if model is not None:
            raise UserInputError("A training is of one model: leave --model out.")
        return source_of_training(*training, plan=plan, data=data, progress=progress)
    if text is not None:
        _refuse_unknown_training(Path(text))
    if text is not None and Path(text).is_file():
        return source_of_file(Path(text), model=model, data=data)
    run = find_run(text)
    return source_of_run(
        run,
        model=model,
        plan=plan,
        fallback=target[1]["fallback"],
        trial=_trial(*target),
        progress=progress,
    )


def _refuse_unknown_training(path: Path) -> None:
    """``RUN/qat/NAME`` without a training in it: those that are there are named."""
    run = path.parent.parent
    inside = path.parent.name == FOLDER and (run / "run.json").is_file()
    if inside and not path.is_file():
        names = ", ".join(one.name for one in TrainingFolder.all_in(run)) or "none yet"
        raise InputMissingError(
            f"{path} holds no training; those of the run are: {names}. vitsense qat makes one."
        )


def _trial(form: str, options: dict[str, Any]) -> Callable[[FixedModel], object] | None:
    """What refuses a plan that a format cannot hold, before minutes of calibration."""
    if form == "onnx":
        from vitsense.export.onnx_types import Prefer, stored_types

        opset, prefer = options["opset"], Prefer(options["prefer"])
        wider = options["fallback"]
        return lambda fixed: stored_types(fixed, opset, fallback=wider, prefer=prefer)
    if form in ("torchao", "modelopt", "aimet") and not options["fallback"]:
        from vitsense.export.configs import refuse_config

        return partial(refuse_config, form)
    return None


def _exported(
    source: ExportSource, form: str, out: Path | None, options: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    if form == "safetensors":
        from vitsense.export.packed_file import export_packed

        return export_packed(source, out)
    if form in TOOLS:
        from vitsense.export.configs import export_config

        return export_config(source, form, out, fallback=options["fallback"])
    from vitsense.export.onnx_file import OnnxOptions, export_onnx
    from vitsense.export.onnx_types import Prefer

    chosen = OnnxOptions(**{**options, "prefer": Prefer(options["prefer"])})
    return export_onnx(source, out, chosen, progress=progress)


def _emit_packed(entry: dict[str, Any]) -> None:
    size = entry["size"]
    emit(f"{entry['model']}: {entry['file']}, {size['total'] / 1e6:.3f} MB")
    for name in ("codes", "scales", "parameters", "buffers", "header"):
        emit(f"  {name:<11}{size[name] / 1e6:9.4f} MB")
    if size["predicted_mb"]:
        emit(
            f"  the plan predicts {size['predicted_mb']:.3f} MB for codes, scales and parameters: "
            f"{100 * size['weights_to_predicted']:.1f} % of it are stored, with buffers and header "
            f"{100 * size['total_to_predicted']:.1f} %"
        )
    difference = entry["restored"]["largest_difference"]
    if difference:
        say(f"Warning: the logits of the restored model differ by up to {difference:.2g}.")


def _emit_onnx(entry: dict[str, Any]) -> None:
    parity, latency = entry["parity"], entry["latency"]
    types = ", ".join(f"{count} {name}" for name, count in entry["types"].items())
    emit(f"{entry['model']}: {entry['file']}, {entry['bytes'] / 1e6:.3f} MB")
    emit(f"  operator set {entry['opset']}; sites: {types}")
    emit(
        f"  {parity['same_top1']} of {parity['images']} images get the class of the torch model; "
        f"logits differ by at most {parity['largest']:.2g} "
        f"({parity['largest'] / parity['step']:.2g} steps of the logits at 8 bits), on "
        f"{parity['within_step']} images by less than a step"
    )
    if entry["by_itself"] > parity["step"] / 100:
        settings = ", ".join(f"{key}={value}" for key, value in entry["session"].items())
        say(
            f"Note: onnxruntime's own settings change logits by up to {entry['by_itself']:.2g}; "
            f"run the file with the session setting {settings}."
        )
    first = entry["first_difference"]
    if first is not None:
        emit(f"  first difference: {first['site']}: {first['explanation']}")
    compared, own = entry["compared_sites"], entry["arithmetic"]
    emit(
        f"  each site with the inputs of torch ({compared['images']} images, {compared['sites']} "
        f"sites): {compared['conclusion']}"
    )
    if own is not None:
        emit(f"  {own['conclusion']}")
    if parity["images"] < parity["asked"]:
        say(
            f"Note: compared on {parity['images']} images, not on {parity['asked']}: the run was "
            "measured on no more, and others may be those of the calibration."
        )
    if latency is not None:
        fast, full = latency["quantized_ms"], latency["float_ms"]
        emit(
            f"  one image by onnxruntime on one thread: {fast['median']:.2f} ms "
            f"({fast['low']:.2f} to {fast['high']:.2f}), in float {full['median']:.2f} ms "
            f"({full['low']:.2f} to {full['high']:.2f}): {latency['speedup']:.2f} times as fast"
        )
        predicted = latency["predicted"]
        if predicted is not None:
            emit(
                f"  predicted {predicted['ms']:.2f} ms ({predicted['kind']}, "
                f"{predicted['profile']})"
            )
    if not parity["identical"]:
        same = parity["same_top1"] == parity["images"]
        what = "logits differ by more than a step" if same else "some images get another class"
        within = own["within"] and not compared["suspicious"]
        why = "which rounding explains" if within else "and rounding alone does not explain it"
        say(f"Warning: {what}, {why}; export.json says where at every site.")


def _emit_config(entry: dict[str, Any]) -> None:
    emit(f"{entry['model']}: {entry['file']}, {len(entry['layers'])} layers")
    emit(f"  {entry['use']}")
    if entry["changes"]:
        emit(f"  {len(entry['changes'])} changes, all in export.json; the first:")
        for change in entry["changes"][:5]:
            emit(f"    {change['module']}: {change['what']}")


_SHOW = {
    "safetensors": _emit_packed,
    "onnx": _emit_onnx,
    **dict.fromkeys(TOOLS, _emit_config),
}
