"""Predicted, quantized and trained in one picture: what is lost against full precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vitsense.report.chapters.trained import Planned
from vitsense.report.formatters import loss_of
from vitsense.report.formatters import number as decimal
from vitsense.report.section import Chart, Series, Shape

_INK = -1
_FAR = 20.0  # losses that are so many times less than another look alike on a linear axis

Dot = tuple[str, str, float, float, float]
"""Kind, label of its row, value and ends of the interval."""

_KINDS = ("plan, predicted", "quantized, measured", "trained, measured")


def reached(plans: Sequence[Planned], number: int) -> Chart:
    """A row for every plan, and one for every training of it.

    Args:
        plans: With their trainings.
        number: The model's colour.
    """
    dots = [dot for plan in plans for dot in _dots(plan, several=_count(plans) > 1)]
    rows = list(dict.fromkeys(label for _, label, *_ in dots))
    first = plans[0].trainings[0]
    lost = "drop of top-1" if first.labelled else "loss of agreement"
    values = [abs(value) for _, _, value, _, _ in dots]
    far = sum(_FAR * value < max(values) for value in values) > 1
    said = ", ".join(
        f"{label} {'' if kind == label else kind.partition(',')[0] + ' '}{decimal(value)}"
        for kind, label, value, _, _ in dots
    )
    return Chart(
        name=f"training-{number}-reached",
        title=f"Predicted, quantized and trained: {lost} in points",
        alt=f"{lost} in points: {said}.",
        reading="Further left is better; lines are 95 % intervals, of a prediction its band. "
        "Quantized is the plan that is not trained."
        + (" Linear below 1 point, logarithmic above." if far else ""),
        shape=Shape.DOTS,
        x_label=f"{lost} (points)",
        y_label="",
        log_x=far,
        series=tuple(
            Series(
                name=kind,
                x=tuple(float(rows.index(label)) for _, label, *_ in mine),
                y=tuple(value for _, _, value, _, _ in mine),
                low=tuple(min(low, value) for _, _, value, low, _ in mine),
                high=tuple(max(high, value) for _, _, value, _, high in mine),
                colour=number if kind == _KINDS[-1] else _INK,
                labels=tuple(label for _, label, *_ in mine),
            )
            for kind in _KINDS
            if (mine := [dot for dot in dots if dot[0] == kind])
        ),
    )


def _count(plans: Iterable[Planned]) -> int:
    return sum(len(plan.trainings) for plan in plans)


def _dots(plan: Planned, *, several: bool) -> list[Dot]:
    predicted, quantized, trained = _KINDS
    found: list[Dot] = []
    whose = "the run's plan" if plan.of_the_run else "plan"
    short = f"{whose}, {plan.trainings[0].bits:.2f} bits"
    guess = plan.trainings[0].record["plan"].get("predicted")
    if guess:
        label = short if several else predicted
        found.append((predicted, label, guess["drop"], guess["low"], guess["high"]))
    if plan.untrained is not None:
        found.append((quantized, short if several else quantized, *loss_of(plan.untrained)))
    for one in plan.trainings:
        label = one.name if several else trained
        if plan.untrained is None and one.record["ptq"] is not None:
            found.append((quantized, label, *loss_of(one.record["ptq"])))
        found.append((trained, label, *loss_of(one.record["last"])))
    return found
