"""``vitsense plan``: solve again, from tables alone or with a search on the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vitsense.cli_output import (
    debug_option,
    emit,
    emit_json,
    find_run,
    json_option,
    progress_options,
    session,
    showing,
)
from vitsense.decimals import counted
from vitsense.errors import UserInputError
from vitsense.formats import FormatLike, known_formats
from vitsense.quantities import seconds_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vitsense.plan.plan import Plan
    from vitsense.plan.predict import DropModel
    from vitsense.progress import Progress
    from vitsense.runfolder import RunFolder


@click.command(
    short_help="Solve under another budget, without measuring again.",
    context_settings={"show_default": True},
)
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
    "--measured",
    metavar="NAME",
    help="A whole plan that the run measured, with what it lost, in place of a budget: uniform-6, "
    "pareto-5 or recommended, as joint.csv names it.",
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
@click.option("--model", metavar="KEY", help="Which model of the run. Default: the first.")
@click.option(
    "--refine",
    type=click.IntRange(min=0),
    default=0,
    metavar="STEPS",
    help="Open the model again, improve the plan as a whole in so many steps (analyze: 3) and "
    "measure it; 0: solve from the tables alone.",
)
@click.option(
    "--refine-images",
    type=click.IntRange(min=1),
    show_default="64",
    help="At most so many calibration images (and half of them) to look for exchanges.",
)
@click.option(
    "--budget-time",
    metavar="TIME",
    help="With --refine: end in this time, for example 10m, start-up included, with the best plan "
    "so far.",
)
@click.option("--device", default="auto", help="With --refine: auto, cpu, cuda, cuda:1, ...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Default: the run's; the plan that it replaces is kept as plan.previous.json.",
)
@progress_options
@json_option
@debug_option
def plan(
    *,
    run: str | None,
    budget: str | None,
    point: int | None,
    measured: str | None,
    pin: Sequence[str],
    no_pin: bool,
    tie: str | None,
    profile: Path | None,
    model: str | None,
    refine: int,
    refine_images: int | None,
    budget_time: str | None,
    device: str,
    out: Path | None,
    progress_style: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Solve for bit widths under a budget, from the measurements of RUN (default: the newest).

    That takes seconds and needs neither model nor images, and its loss is a prediction. With
    --refine, model and images of the run are opened again: modules are exchanged for the next
    narrower and wider format with the rest of the plan in force, on calibration images, as vitsense
    analyze does, and the plan that comes out is measured. The same command continues after an
    interruption. For max-drop, the bits that the solver needs are held, and the loss is lowered.
    """
    from vitsense.plan.again import plan_again, plan_at
    from vitsense.plan.measured import plan_measured

    searching = {"--refine-images": refine_images, "--budget-time": budget_time}
    idle = [option for option, value in searching.items() if value is not None and not refine]
    if idle:
        raise UserInputError(f"{' and '.join(idle)} shape a search: give --refine 3 as well.")
    if sum(choice is not None for choice in (budget, point, measured)) != 1:
        raise UserInputError(
            "Give one of --budget, for example avg-bits=4, --point and --measured."
        )
    found = find_run(run)
    if budget is None:
        if pin or no_pin or tie or profile or refine:
            option = "--measured" if point is None else "--point"
            raise UserInputError(
                f"{option} takes a plan as it is: no --pin, --no-pin, --tie, --profile or --refine."
            )
        if measured is not None:
            made, path = plan_measured(found, measured, model=model, out=out)
        else:
            assert point is not None
            made, path = plan_at(found, point, model=model, out=out)
    else:
        limits: dict[str, Any] = {
            "model": model,
            "pins": dict(_pin(text) for text in pin),
            "keep_default_pins": not no_pin,
            "tie": tie,
            "profile": profile,
            "out": out,
        }
        seconds = None if budget_time is None else seconds_of(budget_time, "--budget-time")
        if refine:
            with showing(progress_style, quiet) as progress:
                search = Searching(refine, refine_images or _IMAGES, seconds, device, progress)
                made, path = _improved(found, budget, search, limits)
        else:
            made, path = plan_again(found, budget, **limits)
    if as_json:
        emit_json("complete", {"path": str(path), "plan": made.to_json()})
        return
    _emit_plan(found, made, path, kept=out is None, searched=measured is None)


_IMAGES = 64
"""Calibration images of a search, unless told otherwise."""


class Searching(NamedTuple):
    """Options of a search."""

    steps: int
    images: int
    seconds: float | None
    device: str
    progress: Progress


def _improved(
    run: RunFolder, budget: str, search: Searching, limits: Mapping[str, Any]
) -> tuple[Plan, Path]:
    from vitsense.analyze import pick_device
    from vitsense.analyze_again import plan_improved
    from vitsense.deadline import Deadline

    made = plan_improved(
        run,
        budget,
        steps=search.steps,
        images=search.images,
        device=pick_device(search.device),
        deadline=Deadline.after(search.seconds, since=session().started),
        progress=search.progress,
        **limits,
    )
    return made.plan, made.path


def _emit_plan(found: RunFolder, made: Plan, path: Path, *, kept: bool, searched: bool) -> None:
    from vitsense.plan.again import nothing_wider, previous_path
    from vitsense.plan.predict import DropModel

    cost, predicted = made.cost or {}, made.predicted or {}
    entries = {entry["key"]: entry for entry in found.read_run()["models"]}
    entry = entries[made.model["key"]]
    loss = "drop" if entry["fp"] is not None else "loss of agreement"
    emit(f"{made.model['key']} under {made.budget}:")
    emit(
        f"  {cost['avg_bits']:.2f} bits on average, {cost['size_mb']:.2f} MB, "
        f"{cost['bitops_g']:.2f} G bit operations"
    )
    emit(
        f"  predicted {loss} {predicted['drop']:.1f} points "
        f"({predicted['low']:.1f} to {predicted['high']:.1f})"
    )
    if made.measured is not None:
        _emit_measured(made, searched=searched)
    else:
        emit(f"  {_unmeasured(made, DropModel(**entry['drop_model']))}")
    if nothing_wider(found, made):
        emit(
            "  the budget is not used up: every module that is not pinned has the widest format "
            "measured; vitsense analyze --bits with wider ones gives more to choose from"
        )
    latency = made.provenance.get("latency")
    if latency is not None:
        emit(f"  {latency['ms']:.3g} ms on {latency['profile']} ({latency['kind']})")
    if kept and previous_path(path).is_file():
        emit(f"  it is the run's plan now; the one before is kept in {previous_path(path).name}")
    emit(f"Plan: {path}")


def _unmeasured(made: Plan, curve: DropModel) -> str:
    """What to make of a prediction, and how to know."""
    near = curve.near_measured((made.predicted or {})["kl"])
    doubt = "" if near else "no measured plan is near it, so it may lose far more; "
    return (
        f"not measured as a whole: {doubt}--budget {made.budget} --refine 3 improves it as a whole "
        "and measures it"
    )


def _emit_measured(made: Plan, *, searched: bool) -> None:
    """What a search found, and what the plan loses."""
    from vitsense.plan.budget import Budget, BudgetKind
    from vitsense.verdict import loss_text

    measured = dict(made.measured or {})
    emit(f"  measured as a whole on {measured['n']} images: {loss_text(measured)}")
    if not searched:
        return
    budget = Budget.parse(made.budget)
    lost = measured["drop"] if measured["drop"] is not None else 100 - measured["agreement"]
    if budget.kind is BudgetKind.MAX_DROP and lost > budget.value:
        emit(
            f"  more than the {budget.value:g} points asked for: they were a prediction; ask for "
            f"fewer, or for more than {(made.cost or {})['avg_bits']:.2f} bits with avg-bits"
        )
    search = made.provenance.get("search")
    if search is None:
        emit("  as solved: the time ended before the search did; the same command continues it")
        return
    taken = sum(step["start"] == search["start"] and step["taken"] for step in search["steps"])
    start = "the solved plan" if search["start"] == "solved" else search["start"]
    tried = len(search["steps"])  # one that did not help is tried again, on more images
    emit(
        f"  searched from {start} in {counted(taken, 'step')} that helped, on calibration images"
        if taken
        else f"  {counted(tried, 'change')} tried, none clearly better than {start}"
    )


def _pin(text: str) -> tuple[str, FormatLike]:
    name, _, width = text.rpartition("=")
    width = width.strip()
    if not name or not (width.isdecimal() or width in known_formats()):
        raise UserInputError(f"--pin is {text!r}: write NAME=BITS, for example head=8.")
    return name, int(width) if width.isdecimal() else width
