"""``vitsense plan``: solve again, measure nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitsense.cli_output import debug_option, emit, emit_json, find_run, json_option
from vitsense.errors import UserInputError
from vitsense.formats import FormatLike, known_formats

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command(short_help="Solve under another budget, without measuring again.")
@click.argument("run", required=False)
@click.option(
    "--budget",
    metavar="KIND=NUMBER",
    help="avg-bits=4, size-mb=5.5, bitops-g=20, latency-ms=3 or max-drop=1 (percentage points).",
)
@click.option(
    "--point",
    type=click.IntRange(min=0),
    help="A point of the Pareto front, as the report's slider shows it, in place of a budget.",
)
@click.option(
    "--pin",
    multiple=True,
    metavar="NAME=BITS",
    help="Fix a module, at bits or in a format such as mxfp4; may be repeated.",
)
@click.option(
    "--no-pin", is_flag=True, help="Do not keep the first and the last weights at 8 bits."
)
@click.option(
    "--tie",
    type=click.Choice(["qkv", "block"]),
    help="Equal bits for q, k and v of a projection, or within a block.",
)
@click.option(
    "--profile",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Latency profile of a device, for latency-ms; see docs/latency-profile.md.",
)
@click.option("--model", metavar="KEY", help="Which model of the run; default: the first.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Default: the run's; the plan that it replaces is kept as plan.previous.json.",
)
@json_option
@debug_option
def plan(
    *,
    run: str | None,
    budget: str | None,
    point: int | None,
    pin: Sequence[str],
    no_pin: bool,
    tie: str | None,
    profile: Path | None,
    model: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Solve for bit widths under a budget, from the measurements of RUN (default: the newest)."""
    from vitsense.plan.again import nothing_wider, plan_again, plan_at, previous_path

    if (budget is None) == (point is None):
        raise UserInputError("Give either --budget, for example avg-bits=4, or --point.")
    found = find_run(run)
    if budget is None:
        assert point is not None
        if pin or no_pin or tie or profile:
            raise UserInputError(
                "--point takes a plan as it is: no --pin, --no-pin, --tie or --profile."
            )
        made, path = plan_at(found, point, model=model, out=out)
    else:
        made, path = plan_again(
            found,
            budget,
            model=model,
            pins=dict(_pin(text) for text in pin),
            keep_default_pins=not no_pin,
            tie=tie,
            profile=profile,
            out=out,
        )
    if as_json:
        emit_json("complete", {"path": str(path), "plan": made.to_json()})
        return
    cost, predicted = made.cost or {}, made.predicted or {}
    labelled = {entry["key"]: entry["fp"] is not None for entry in found.read_run()["models"]}
    loss = "drop" if labelled[made.model["key"]] else "loss of agreement"
    emit(f"{made.model['key']} under {made.budget}:")
    emit(
        f"  {cost['avg_bits']:.2f} bits on average, {cost['size_mb']:.2f} MB, "
        f"{cost['bitops_g']:.2f} G bit operations"
    )
    emit(
        f"  predicted {loss} {predicted['drop']:.1f} points "
        f"({predicted['low']:.1f} to {predicted['high']:.1f}); not measured as a whole"
    )
    if nothing_wider(found, made):
        emit(
            "  the budget is not used up: every module that is not pinned has the widest format "
            "measured; vitsense analyze --bits with wider ones gives more to choose from"
        )
    latency = made.provenance.get("latency")
    if latency is not None:
        emit(f"  {latency['ms']:.3g} ms on {latency['profile']} ({latency['kind']})")
    if out is None and previous_path(path).is_file():
        emit(f"  it is the run's plan now; the one before is kept in {previous_path(path).name}")
    emit(f"Plan: {path}")


def _pin(text: str) -> tuple[str, FormatLike]:
    name, _, width = text.rpartition("=")
    width = width.strip()
    if not name or not (width.isdecimal() or width in known_formats()):
        raise UserInputError(f"--pin is {text!r}: write NAME=BITS, for example head=8.")
    return name, int(width) if width.isdecimal() else width
