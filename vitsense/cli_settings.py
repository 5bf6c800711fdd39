"""The options of ``vitsense analyze`` that decide its numbers; here text becomes settings."""

from __future__ import annotations

from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vitsense.errors import SeveralWrongError, UserInputError, refuse_all
from vitsense.formats import format_of
from vitsense.plan.budget import Budget
from vitsense.plan.latency import LatencyProfile
from vitsense.quantities import bytes_of, seconds_of
from vitsense.settings import (
    AnalyzeSettings,
    By,
    Direction,
    Granule,
    ModelRequest,
    Part,
    ProbsGrid,
    QuantSettings,
    RangeChoice,
    SweepMode,
    WeightSource,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vitsense.cli_output import AnyCommand

_T = TypeVar("_T")
_WEIGHTS = click.Choice([WeightSource.HUB.value, WeightSource.RANDOM.value])
_RANGES = click.Choice([choice.value for choice in RangeChoice])
_GRANULES = click.Choice([granule.value for granule in Granule])
_MODES = click.Choice([mode.value for mode in SweepMode])
_DEFAULT = AnalyzeSettings(model=ModelRequest(name=""))
_OPTIONS = (
    click.option("--model", required=True, metavar="NAME", help="Model: see the names below."),
    click.option(
        "--compare", multiple=True, metavar="NAME", help="Another model; may be repeated."
    ),
    click.option("--checkpoint", metavar="FILE", help="Weights of --model from a file."),
    click.option(
        "--compare-checkpoint",
        multiple=True,
        metavar="FILE",
        help="Weights of the --compare models, in their order; - for none.",
    ),
    click.option("--weights", type=_WEIGHTS, help="Without --checkpoint: the hub's, or random."),
    click.option(
        "--compare-weights", type=_WEIGHTS, multiple=True, help="The same for --compare, in order."
    ),
    click.option(
        "--data", metavar="SPEC", help="Images; see below. Default: generated characters."
    ),
    click.option("--calibration-data", metavar="SPEC", help="Calibrate on other images."),
    click.option("--images", type=int, default=_DEFAULT.images, help="How many to evaluate on."),
    click.option(
        "--calibration", type=int, default=_DEFAULT.calibration, help="How many to calibrate on."
    ),
    click.option(
        "--bits",
        default=None,
        show_default="8,6,4,3,2",
        help="Integer widths to measure, of 2 to 8 and 16.",
    ),
    click.option(
        "--formats",
        metavar="NAMES",
        help="Instead of --bits: any formats, such as int4,fp8_e4m3,mxfp4; see below.",
    ),
    click.option("--parts", default="both", help="Of both, weights, activations; comma-separated."),
    click.option(
        "--mode",
        type=_MODES,
        default=_DEFAULT.mode.value,
        help="exact: every module in every format on every image. adaptive: more images only for "
        "what is not known well enough, about a tenth of the time. fast: divergences estimated "
        "from one pass there and one back; single modules get no drop, whole plans are measured. "
        "hessian: the same from traces of Hessians, as HAWQ-V2 does, for comparison; slower than "
        "fast and less exact.",
    ),
    click.option(
        "--hessian-probes",
        type=int,
        metavar="N",
        show_default="32 in mode hessian, else none",
        help="Random vectors for traces of Hessians (Hutchinson); in a mode that measures, the "
        "report then says how well they rank modules. Every 8 images have one at least.",
    ),
    click.option(
        "--estimates/--no-estimates",
        default=_DEFAULT.estimates,
        help="Compare what is measured with the estimates of mode fast, for three to four passes.",
    ),
    click.option(
        "--tolerance",
        type=float,
        default=_DEFAULT.tolerance,
        metavar="POINTS",
        help="Adaptive: a drop is known when the evaluation images that were not looked at could "
        "move it no further.",
    ),
    click.option(
        "--confidence",
        type=float,
        default=_DEFAULT.confidence,
        help="Adaptive: how sure that has to be; intervals of tables are always of 95 %.",
    ),
    click.option(
        "--by",
        metavar="WORDS",
        help="Groups measured as a whole: some of module, role, block, stage, head, site; or none. "
        "Default: role, but none with --mode fast or hessian.",
    ),
    click.option(
        "--direction",
        type=click.Choice([*(d.value for d in Direction), "both"]),
        default="both",
        help="Quantize only the group, or everything but the group.",
    ),
    click.option(
        "--group-formats",
        metavar="NAMES",
        help="Formats of the groups. Default: of those measured, 4 bits and the next narrower.",
    ),
    click.option("--budget", default=_DEFAULT.budget, help="Limit of the plan; see vitsense plan."),
    click.option(
        "--refine",
        type=int,
        default=_DEFAULT.refine,
        metavar="STEPS",
        help="Steps by which the plan within the budget is improved as a whole; 0: as solved.",
    ),
    click.option(
        "--refine-images",
        type=int,
        default=_DEFAULT.refine_images,
        help="At most so many calibration images (and half of them) to look for exchanges.",
    ),
    click.option(
        "--profile",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Latency profile of a device (vitsense profile), for a budget of latency-ms.",
    ),
    click.option(
        "--weight-range",
        type=_RANGES,
        default=_DEFAULT.quant.weight_range.value,
        help="How the range of a weight is chosen.",
    ),
    click.option(
        "--activation-range",
        type=_RANGES,
        default=_DEFAULT.quant.activation_range.value,
        help="How the range of an activation is chosen.",
    ),
    click.option(
        "--weight-granularity",
        type=_GRANULES,
        default=_DEFAULT.quant.weight_granularity.value,
        help="Scales of a weight: one, or one for each output channel.",
    ),
    click.option(
        "--attention-probs",
        type=click.Choice([grid.value for grid in ProbsGrid]),
        default=_DEFAULT.quant.attention_probs.value,
        help="How integer formats hold attention probabilities.",
    ),
    click.option(
        "--memory",
        default="2G",
        metavar="SIZE",
        help="What may be remembered of the images that are measured at once.",
    ),
    click.option(
        "--budget-time",
        metavar="TIME",
        help="End in this time (90s, 10m, 1h), start-up and report (a third of it, at most 10s) "
        "included, with the best table, plan and report so far; the same command without it "
        "continues.",
    ),
    click.option("--batch-size", type=int, help="Images at once. Default: what memory allows."),
    click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, ..."),
    click.option("--seed", type=int, default=0, help="Decides which images are drawn."),
    click.option("--strict", is_flag=True, help="An unreadable image is an error, not skipped."),
)


def settings_options(command: AnyCommand) -> AnyCommand:
    """Every option that `settings_from` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def settings_from(
    *,
    model: str,
    compare: Sequence[str],
    checkpoint: str | None,
    compare_checkpoint: Sequence[str],
    weights: str | None,
    compare_weights: Sequence[str],
    bits: str | None,
    formats: str | None,
    parts: str,
    by: str | None,
    direction: str,
    group_formats: str | None,
    mode: str,
    budget: str,
    profile: Path | None,
    weight_range: str,
    activation_range: str,
    weight_granularity: str,
    attention_probs: str,
    batch_size: int | None,
    memory: str,
    budget_time: str | None,
    **plain: Any,
) -> AnalyzeSettings:
    """Settings from the text of the options.

    Raises:
        UserInputError: values are not allowed, or options contradict each other; all is said.
    """
    wrong: list[str] = []

    def read(make: Callable[[], _T], instead: _T) -> _T:
        """What the text means; where it means nothing, that is said with all else that is wrong."""
        try:
            return make()
        except UserInputError as error:
            wrong.extend(error.sentences if isinstance(error, SeveralWrongError) else [str(error)])
            return instead

    for option, given in (
        ("--compare-checkpoint", compare_checkpoint),
        ("--compare-weights", compare_weights),
    ):
        if len(given) > len(compare):
            wrong.append(
                f"{option} is given {len(given)} times for {len(compare)} --compare models; "
                "give it once for each, in their order."
            )
    if bits is not None and formats is not None:
        wrong.append(
            "--bits and --formats are given: name the integers among the formats, as int8,int4."
        )
    named = zip(compare, *map(_padded, (compare_checkpoint, compare_weights)), strict=False)
    values: dict[str, Any] = {
        "model": read(lambda: _request(model, checkpoint, weights), ModelRequest(name=model)),
        "compares": tuple(
            read(
                partial(_request, name, None if file == "-" else file, source),
                ModelRequest(name=name),
            )
            for name, file, source in named
        ),
        "bits": read(lambda: _DEFAULT.bits if bits is None else _widths(bits), _DEFAULT.bits),
        "formats": read(lambda: () if formats is None else _formats(formats), _DEFAULT.formats),
        "parts": read(lambda: _parts(parts), _DEFAULT.parts),
        "by": read(lambda: None if by is None else _groupings(by), None),
        "directions": tuple(Direction) if direction == "both" else (Direction(direction),),
        "group_formats": read(
            lambda: () if group_formats is None else _formats(group_formats), _DEFAULT.formats
        ),
        "mode": SweepMode(mode),
        "profile": read(lambda: _readable(profile), profile),
        # a wrong one must not be found after measuring
        "budget": read(lambda: Budget.parse(budget).text, _DEFAULT.budget),
        "quant": QuantSettings(
            weight_granularity=Granule(weight_granularity),
            weight_range=RangeChoice(weight_range),
            activation_range=RangeChoice(activation_range),
            attention_probs=ProbsGrid(attention_probs),
        ),
        "batch": batch_size,
        "memory": read(lambda: bytes_of(memory, "--memory"), _DEFAULT.memory),
        "budget_time": read(
            lambda: None if budget_time is None else seconds_of(budget_time, "--budget-time"), None
        ),
    }
    settings = read(lambda: AnalyzeSettings(**values, **plain), _DEFAULT)
    refuse_all(wrong)
    return settings


def _padded(given: Sequence[str]) -> Iterator[str | None]:
    return chain(given, repeat(None))


def _readable(profile: Path | None) -> Path | None:
    if profile is not None:
        LatencyProfile.load(profile)  # a wrong one must not be found after measuring
    return profile


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


def _formats(text: str) -> tuple[str, ...]:
    items = (item.strip() for item in text.split(","))
    return tuple(format_of(int(i) if i.isdecimal() else i).name for i in items)


def _groupings(text: str) -> tuple[By, ...]:
    allowed = ", ".join(by.value for by in By)
    if text.strip() == "none":
        return ()
    try:
        return tuple(By(item) for item in dict.fromkeys(i.strip() for i in text.split(",")))
    except ValueError as error:
        raise UserInputError(f"--by is {text!r}: use some of {allowed}, or none.") from error


def _parts(text: str) -> tuple[Part, ...]:
    allowed = ", ".join(part.value for part in Part)
    try:
        return tuple(Part(item.strip()) for item in text.split(","))
    except ValueError as error:
        raise UserInputError(f"--parts is {text!r}: use some of {allowed}.") from error
