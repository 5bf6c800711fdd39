"""``vitsense profile``: time a model's modules on this machine, for budgets of latency."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitsense.cli_output import (
    debug_option,
    emit,
    emit_json,
    json_option,
    progress_options,
    session,
)
from vitsense.progress import NO_PROGRESS, ProgressStyle, make_progress

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFER = ("size", "speed")


@click.command(
    short_help="Time a model's modules on this machine, for budgets of latency.",
    context_settings={"show_default": True},
)
@click.option("--model", metavar="NAME", required=True, help="As for vitsense analyze.")
@click.option(
    "--formats", default="int8,int4", metavar="NAMES", help="Integer formats, comma-separated."
)
@click.option(
    "--runs", type=click.IntRange(min=1), default=50, help="Timed runs of each module and format."
)
@click.option(
    "--prefer", type=click.Choice(PREFER), default="size", help="As the file will be exported."
)
@click.option("--opset", type=int, default=21, help="ONNX operator set, 18 to 25.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("latency-profile.json"),
    metavar="FILE",
    help="The profile; one that is there is continued.",
)
@progress_options
@json_option
@debug_option
def profile(
    *,
    model: str,
    formats: str,
    runs: int,
    prefer: str,
    opset: int,
    out: Path,
    progress_style: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure how long every module takes by onnxruntime, one image, one thread.

    Modules of equal shape are timed once, in float and in every format, as they stand in an
    exported file; the graphs take turns, and medians are kept. Weights do not matter, so none are
    loaded. The same command goes on after an interruption.

    \b
    The file is for
      vitsense plan --budget latency-ms=3 --profile FILE
      vitsense analyze --budget latency-ms=3 --profile FILE ...
      vitsense export --format onnx --profile FILE      predicted beside measured
    """
    from vitsense.export.onnx_types import Prefer
    from vitsense.export.profile import ProfileOptions, profile_model
    from vitsense.settings import ModelRequest, WeightSource

    session().resumable = True
    options = ProfileOptions(
        formats=tuple(name.strip() for name in formats.split(",")),
        runs=runs,
        opset=opset,
        prefer=Prefer(prefer),
    )
    progress = NO_PROGRESS if quiet else make_progress(ProgressStyle(progress_style))
    try:
        found = profile_model(
            ModelRequest(name=model, weights=WeightSource.RANDOM), out, options, progress=progress
        )
    finally:
        progress.close()
    if as_json:
        emit_json("complete", {"path": str(out), "profile": found})
        return
    for line in _lines(found):
        emit(line)
    emit(f"Profile: {out}")


def _lines(profile: Mapping[str, Any]) -> list[str]:
    """Sums by format, and the whole."""
    rows = profile["measured"].values()
    forms = list(next(iter(rows)))
    sums = {form: sum(row[form] for row in rows) for form in forms}
    whole = profile["float_ms"]
    return [
        f"{profile['model']['key']} on {profile['name']}:",
        *(f"  {len(rows)} modules in {form}: {ms:.3g} ms" for form, ms in sums.items()),
        f"  everything else (normalization, softmax, copies): {profile['rest_ms']:.3g} ms",
        f"  the whole model in float: {whole['median']:.3g} ms "
        f"({whole['low']:.3g} to {whole['high']:.3g})",
    ]
