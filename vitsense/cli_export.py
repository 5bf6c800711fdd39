"""``vitsense export``: a plan becomes files that run elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitsense.cli_output import debug_option, emit, emit_json, find_run, json_option, say

if TYPE_CHECKING:
    from vitsense.export.source import ExportSource

FORMATS = ("safetensors",)


@click.command(
    short_help="Write packed weights, ONNX, or another tool's configuration.",
    context_settings={"show_default": True},
)
@click.argument("source", metavar="[RUN_OR_FILE]", required=False)
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
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Default: in the folder export of the run.",
)
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
    as_json: bool,
) -> None:
    """Export a model of a run (default: the newest), or a packed file.

    \b
    RUN_OR_FILE is one of
      a run folder, or its name in vitsense-runs    quantized by its plan after training
      a file of --format safetensors                its integers, as they are
    \b
    The formats:
      safetensors    packed integer codes, scales, ranges and the plan, in one file
    """
    from vitsense.export.write import export_packed

    found = _source(source, model, plan, data)
    entry = {"safetensors": export_packed}[form](found, out)
    if as_json:
        emit_json("complete", {"export": entry})
        return
    _emit_packed(entry)


def _source(
    text: str | None, model: str | None, plan: Path | None, data: str | None
) -> ExportSource:
    from vitsense.export.source import source_of_file, source_of_run
    from vitsense.progress import ProgressStyle, make_progress

    if text is not None and Path(text).is_file():
        return source_of_file(Path(text), model=model, data=data)
    progress = make_progress(ProgressStyle.AUTO)
    return source_of_run(find_run(text), model=model, plan=plan, progress=progress)


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
