"""``vitsense analyze`` and ``vitsense demo``."""

from __future__ import annotations

import shlex
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitsense import provenance
from vitsense.cli_output import (
    check_drop,
    debug_option,
    emit,
    emit_json,
    emit_verdict,
    free_folder,
    json_option,
    present,
    progress_options,
    session,
    showing,
    summary,
)
from vitsense.cli_settings import settings_from, settings_options
from vitsense.errors import VitsenseError
from vitsense.progress import clock_text
from vitsense.runfolder import DEFAULT_ROOT, RunFolder
from vitsense.team import Team, joined

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vitsense.settings import AnalyzeSettings


@click.command(
    short_help="Measure models, compare them, and plan bit widths.",
    context_settings={"show_default": True},
)
@settings_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Run folder. Default: a new one in vitsense-runs.",
)
@click.option("--dry-run", is_flag=True, help="Say what the run would take, and end.")
@click.option("--probe", is_flag=True, help="With --dry-run: time two batches for an estimate.")
@click.option("--no-report", is_flag=True, help="Do not write report.html and report.pdf.")
@click.option(
    "--fail-if-drop",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="Exit with 1 when the best plan of --model within the budget loses more, points.",
)
@progress_options
@json_option
@debug_option
def analyze(
    *,
    out: Path | None,
    dry_run: bool,
    probe: bool,
    no_report: bool,
    fail_if_drop: float | None,
    progress_style: str,
    quiet: bool,
    as_json: bool,
    **values: Any,
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
    \b
    NAMES are some of
      int8 ... int2, int16                evenly spaced; --bits 8,4 is short for int8,int4
      fp8_e4m3, fp8_e5m2                  8-bit floating point, scaled per tensor or channel
      mxfp8_e4m3, mxfp8_e5m2, mxfp6_e2m3, mxfp6_e3m2, mxfp4
                                          OCP microscaling: blocks of 32 share a power of two
      nvfp4                               blocks of 16 share an e4m3 scale

    Without labels, agreement with the full-precision model takes the place of accuracy.

    The same command continues an interrupted run; --out with other settings is refused.

    Several processes or GPUs share the work, with the same numbers:
    torchrun --nproc-per-node=4 -m vitsense analyze ...
    """
    settings = settings_from(**values)
    present(settings.data, settings.calibration_data)
    if dry_run:
        if session().speaks:
            _emit_forecast(settings, probe=probe, as_json=as_json)
        return
    free_folder(out)
    with _team() as team, showing(progress_style, quiet) as progress, _tracebacks_kept(out):
        from vitsense.analyze import run_analysis

        run = run_analysis(
            settings,
            out=out,
            progress=progress,
            command=_command_line(),
            team=team,
            since=session().started - _kept_for_report(settings, no_report),
        )
        if not team.first:
            return
        if not no_report:
            from vitsense.report import write_report

            progress.note("Writing the report.")
            write_report(run)
        _emit_run(run, as_json=as_json)
        if fail_if_drop is not None:
            check_drop(run, fail_if_drop)


@click.command(short_help="The whole chain offline, on two small models that come along.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Run folder.")
@progress_options
@json_option
@debug_option
def demo(*, out: Path | None, progress_style: str, quiet: bool, as_json: bool) -> None:
    """Analyze a small Swin against a small ResNet on generated images, and write the report.

    Takes about two minutes on two CPU cores and needs no network.
    """
    free_folder(out)
    from vitsense.demo import run_demo

    with showing(progress_style, quiet) as progress, _tracebacks_kept(out):
        run, _ = run_demo(out=out, progress=progress)
    _emit_run(run, as_json=as_json, shows_commands=True)


def _emit_forecast(settings: AnalyzeSettings, *, probe: bool, as_json: bool) -> None:
    """What a run would take."""
    from vitsense.dry_run import forecast
    from vitsense.quantities import size_text

    processes = session().place.size
    found = forecast(settings, probe=probe, processes=processes)
    if as_json:
        emit_json("dry-run", {"models": [one.to_json() for one in found]})
        return
    together = f" on {processes} processes" if processes > 1 else ""
    for one in found:
        time = "unknown (use --probe)" if one.seconds is None else clock_text(one.seconds)
        emit(
            f"{one.model}: {one.cells} cells on up to {one.images} images; the run is worth about "
            f"{one.passes:g} forward passes of all images, at most {one.most:g} "
            f"(--mode {settings.mode.value}); time {time}{together}; "
            f"memory {size_text(one.memory_bytes)} in batches of {one.batch}; "
            f"disk {size_text(one.disk_bytes)}"
        )
        for stage, passes in one.stages.items():
            emit(f"  {stage}: {passes:g} passes")
        if one.alternatives:
            emit("  cheaper:")
        for option, passes in one.alternatives.items():
            emit(f"    {option}: {passes:g} passes")
    emit("Nothing was measured.")


def _kept_for_report(settings: AnalyzeSettings, no_report: bool) -> float:
    """Seconds of a time budget in which nothing is measured any more."""
    if settings.budget_time is None or no_report:
        return 0.0
    return min(_REPORT_SHARE * settings.budget_time, _REPORT_SECONDS)


_REPORT_SHARE, _REPORT_SECONDS = 1 / 3, 10.0


@contextmanager
def _team() -> Iterator[Team]:
    """The processes that torchrun started; the first one shows progress and results."""
    with joined() as team:
        session().joined = True
        yield team


def _command_line() -> list[str]:
    """The command as it was typed, for the report."""
    return [*session().place.launcher, *provenance.command_line()[1:]]


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


def _emit_run(run: RunFolder, *, as_json: bool, shows_commands: bool = False) -> None:
    if as_json:
        emit_json(run.read_run()["status"], summary(run))
        return
    emit_verdict(run)
    emit("")
    for title, name in (("Run folder", ""), *_PRODUCTS):
        if (run.path / name).exists():
            emit(f"{title}: {run.path / name}")
    record = run.read_run()
    for entry in record["models"][1:]:
        if run.plan_path(entry["key"]).exists():
            emit(f"Plan of {entry['key']}: {run.plan_path(entry['key'])}")
    folder = shlex.quote(str(run.path))
    again = f"vitsense plan {folder} --budget avg-bits=5"
    train = f"vitsense qat --plan {shlex.quote(str(run.plan_path()))}"
    if not shows_commands:
        images = "" if record["settings"].get("data") is None else " --data TRAINING_IMAGES"
        emit(f"\nNext:\n  {again}\n  {train}{images}\n  vitsense report {folder}")
        return
    emit("\nWhat the demo ran:")
    for command in record["commands"]:
        emit(f"  {shlex.join(command)}")
    narrow = shlex.quote(str(run.path / "plan-2.5.json"))
    emit("\nTrain the Swin where it pays, at 2.5 bits (a minute or two), and see it in the report:")
    emit(f"  vitsense plan {folder} --budget avg-bits=2.5 --out {narrow}")
    emit(f"  vitsense qat --plan {narrow} --lr 1e-3\n  vitsense report {folder}")
    emit("\nThe same on your own model and images, and another budget:")
    emit(f"  vitsense analyze --model NAME --checkpoint FILE --data FOLDER\n  {again}")


_PRODUCTS = (("Report", "report.html"), ("Report", "report.pdf"), ("Plan", "plan.json"))
