"""``vitsense analyze`` and ``vitsense demo``."""

from __future__ import annotations

import shlex
import time
import traceback
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitsense.cli_output import (
    debug_option,
    emit,
    emit_json,
    emit_verdict,
    json_option,
    progress_options,
    session,
    summary,
)
from vitsense.errors import UserInputError, VitsenseError
from vitsense.progress import Progress, ProgressStyle, make_progress
from vitsense.runfolder import DEFAULT_ROOT, RunFolder
from vitsense.settings import (
    AnalyzeSettings,
    Granule,
    ModelRequest,
    Part,
    QuantSettings,
    RangeChoice,
    WeightSource,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_WEIGHTS = click.Choice([WeightSource.HUB.value, WeightSource.RANDOM.value])
_RANGES = click.Choice([choice.value for choice in RangeChoice])
_GRANULES = click.Choice([granule.value for granule in Granule])
_DEFAULT = AnalyzeSettings(model=ModelRequest(name=""))


@click.command(
    short_help="Measure models, compare them, and plan bit widths.",
    context_settings={"show_default": True},
)
@click.option("--model", required=True, metavar="NAME", help="Model: see the names below.")
@click.option("--compare", multiple=True, metavar="NAME", help="Another model; may be repeated.")
@click.option("--checkpoint", metavar="FILE", help="Weights of --model from a file.")
@click.option(
    "--compare-checkpoint",
    multiple=True,
    metavar="FILE",
    help="Weights of the --compare models, in their order; - for none.",
)
@click.option("--weights", type=_WEIGHTS, help="Without --checkpoint: the hub's, or random.")
@click.option(
    "--compare-weights", type=_WEIGHTS, multiple=True, help="The same for --compare, in order."
)
@click.option("--data", metavar="SPEC", help="Images; see below. Default: generated characters.")
@click.option("--calibration-data", metavar="SPEC", help="Calibrate on other images.")
@click.option("--images", type=int, default=_DEFAULT.images, help="How many to evaluate on.")
@click.option(
    "--calibration", type=int, default=_DEFAULT.calibration, help="How many to calibrate on."
)
@click.option("--bits", default="8,6,4,3,2", help="Widths to measure, of 2 to 8 and 16.")
@click.option("--parts", default="both", help="Of both, weights, activations; comma-separated.")
@click.option("--budget", default=_DEFAULT.budget, help="Limit of the plan; see vitsense plan.")
@click.option(
    "--weight-range",
    type=_RANGES,
    default=_DEFAULT.quant.weight_range.value,
    help="How the range of a weight is chosen.",
)
@click.option(
    "--activation-range",
    type=_RANGES,
    default=_DEFAULT.quant.activation_range.value,
    help="How the range of an activation is chosen.",
)
@click.option(
    "--weight-granularity",
    type=_GRANULES,
    default=_DEFAULT.quant.weight_granularity.value,
    help="Scales of a weight: one, or one for each output channel.",
)
@click.option("--batch-size", type=int, help="Images at once. Default: what memory allows.")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
@click.option("--seed", type=int, default=0, help="Decides which images are drawn.")
@click.option("--strict", is_flag=True, help="An unreadable image is an error, not skipped.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Run folder. Default: a new one in vitsense-runs.",
)
@progress_options
@json_option
@debug_option
def analyze(
    *, out: Path | None, progress_style: str, quiet: bool, as_json: bool, **values: Any
) -> None:
    """Measure how sensitive every module is, compare models, and plan bit widths.

    \b
    NAME is one of
      a timm name or a common alias       swin_t, vit_b_16, resnet50 (vitsense models lists them)
      torchvision/NAME                    torchvision/squeezenet1_1
      package.module:factory              your own: a function that returns a torch.nn.Module
      zoo/NAME                            the two small models that come with vitsense
    \b
    SPEC is one of
      a folder of class folders, or with a labels.csv (columns file,label), or a .tar of either
      a data set of timm                  hfds/..., wds/..., torch/...

    Without labels, agreement with the full-precision model takes the place of accuracy.

    The same command continues an interrupted run; --out with other settings is refused.
    """
    settings = _settings(**values)
    from vitsense.analyze import run_analysis

    with _showing(progress_style, quiet) as progress, _tracebacks_kept(out):
        run = run_analysis(settings, out=out, progress=progress)
    _emit_run(run, as_json=as_json)


@click.command(short_help="The whole chain offline, on two small models that come along.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Run folder.")
@progress_options
@json_option
@debug_option
def demo(*, out: Path | None, progress_style: str, quiet: bool, as_json: bool) -> None:
    """Analyze a small Swin against a small ResNet on generated images, and write the report.

    Takes about two minutes on two CPU cores and needs no network.
    """
    from vitsense.demo import run_demo

    with _showing(progress_style, quiet) as progress, _tracebacks_kept(out):
        run, _ = run_demo(out=out, progress=progress)
    _emit_run(run, as_json=as_json, reported=True)


@contextmanager
def _showing(style: str, quiet: bool) -> Iterator[Progress]:
    progress = make_progress(ProgressStyle.NONE if quiet else ProgressStyle(style))
    session().resumable = True
    try:
        yield progress
    finally:
        progress.close()


@contextmanager
def _tracebacks_kept(out: Path | None) -> Iterator[None]:
    """Write the traceback of an unexpected error into ``log.txt`` of the run that is open."""
    started = time.time()
    try:
        yield
    except VitsenseError:
        raise
    except Exception:
        runs = [RunFolder(out)] if out is not None else RunFolder.all_in(DEFAULT_ROOT)[-1:]
        for run in runs:
            if _touched_since(run.path / "run.json", started):
                session().log = run.path / "log.txt"
                with (run.path / "log.txt").open("a", encoding="utf-8") as stream:
                    stream.write(traceback.format_exc())
        raise


def _touched_since(path: Path, started: float) -> bool:
    slack = 2.0  # some file systems keep whole seconds
    return path.is_file() and path.stat().st_mtime >= started - slack


def _settings(
    *,
    model: str,
    compare: Sequence[str],
    checkpoint: str | None,
    compare_checkpoint: Sequence[str],
    weights: str | None,
    compare_weights: Sequence[str],
    bits: str,
    parts: str,
    weight_range: str,
    activation_range: str,
    weight_granularity: str,
    batch_size: int | None,
    **plain: Any,
) -> AnalyzeSettings:
    """The door where text becomes settings."""
    for option, given in (
        ("--compare-checkpoint", compare_checkpoint),
        ("--compare-weights", compare_weights),
    ):
        if len(given) > len(compare):
            raise UserInputError(
                f"{option} is given {len(given)} times for {len(compare)} --compare models; "
                "give it once for each, in their order."
            )
    return AnalyzeSettings(
        model=_request(model, checkpoint, weights),
        compares=tuple(
            _request(name, None if file == "-" else file, source)
            for name, file, source in zip_longest(compare, compare_checkpoint, compare_weights)
        ),
        bits=_widths(bits),
        parts=_parts(parts),
        quant=QuantSettings(
            weight_granularity=Granule(weight_granularity),
            weight_range=RangeChoice(weight_range),
            activation_range=RangeChoice(activation_range),
        ),
        batch=batch_size,
        **plain,
    )


def _request(name: str, checkpoint: str | None, weights: str | None) -> ModelRequest:
    return ModelRequest(
        name=name,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        weights=WeightSource.HUB if weights is None else WeightSource(weights),
    )


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(item) for item in text.split(","))
    except ValueError as error:
        raise UserInputError(
            f"--bits is {text!r}: write whole numbers with commas, for example 8,6,4."
        ) from error


def _parts(text: str) -> tuple[Part, ...]:
    allowed = ", ".join(part.value for part in Part)
    try:
        return tuple(Part(item.strip()) for item in text.split(","))
    except ValueError as error:
        raise UserInputError(f"--parts is {text!r}: use some of {allowed}.") from error


def _emit_run(run: RunFolder, *, as_json: bool, reported: bool = False) -> None:
    if as_json:
        emit_json(run.read_run()["status"], summary(run))
        return
    emit_verdict(run)
    emit(f"\nRun folder: {run.path}")
    emit(f"Plan: {run.plan_path()}")
    folder = shlex.quote(str(run.path))
    if reported:
        emit(f"Report: {run.path / 'report.html'}, {run.path / 'report.pdf'}")
        commands = [shlex.join(command) for command in run.read_run()["commands"]]
        emit("\nThese commands did it:")
        for command in (*commands, f"vitsense report {folder}"):
            emit(f"  {command}")
        emit("\nThe same on your own model and images:")
        emit("  vitsense analyze --model NAME --checkpoint FILE --data FOLDER")
        return
    emit(f"\nNext:\n  vitsense report {folder}\n  vitsense plan {folder} --budget avg-bits=5")
