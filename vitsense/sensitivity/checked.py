"""Estimates of narrow formats, checked against a measurement on a few images.

To first order a module's divergence is wrong where its rounding is coarse: by a factor that differs
from module to module (at 2 bits, one is expected to diverge 8 times as much as it does on the
shipped ResNet, another a fifth as much). No number of random vectors mends that, a measurement
does: replay of every module in the narrow formats on 8 to 32
images, drawn by the model's doubt, costs about one forward pass of a thousand images and says how
far off the first order is. Both are then combined, module by module, on the logarithm:

    ln kl  =  w ln m  +  (1 - w) (ln e + mean(ln m - ln e)),      w = t² / (t² + s²),

with `m` the mean divergence measured, `s` the part of its relative standard error that differs from
module to module (an image that is hard for all of them moves all alike, and no order), `e` the
estimate, and `t²` the variance between modules of `ln m - ln e` beyond `s²`: what the first order
(and the noise of its vectors) gets wrong. Where the first order holds, `w` is near 0 and the
measurement only sets the common factor; where it fails, `w` is near 1. Intervals are those of the
measurement alone (its own error, or that of all where it is larger), around the combined value:
that `t` is itself estimated would make narrower ones miss.

What is not checked is at least not estimated above what is: finer integers round within half the
step of coarser ones, so a wider format has the value of the next narrower checked one where the
first order says more (as it does at 4 bits for the most sensitive products of DeiT-Tiny, whose
divergence grows more slowly than the square of the step).

Source: Fay and Herriot 1979, "Estimates of income for small places", J. Am. Stat. Assoc. 74
(composite of a direct and a synthetic estimate; variance components by moments).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vitsense.deadline import Deadline, TimeIsUpError
from vitsense.formats import FormatLike, format_of
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.sensitivity.draws import Draws
from vitsense.sensitivity.estimate import Checked, Estimated, Rated
from vitsense.sensitivity.interval import Interval, t_quantile
from vitsense.sensitivity.ledger import Ledger, Span
from vitsense.sensitivity.meter import Batch, Meter
from vitsense.sensitivity.portions import ReadImages
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Cell
from vitsense.sensitivity.sweep import measurable
from vitsense.sensitivity.work import rests
from vitsense.settings import Part
from vitsense.sites import SiteCatalog
from vitsense.team import ALONE, Team

NARROW = 3.5
"""Average bits below which the first order is checked; at 4 bits it ranked well on every model."""

_PASSES = 0.6
"""What checking may take, in forward passes of a thousand images (of more, if there are more)."""

_THOUSAND = 1000
_LEAST, _MOST = 8, 32
_FEWEST = 4  # modules of which a variance is believed

Found = Mapping[Cell, NDArray[np.float64]]
"""Of each draw, its weight times the divergence, nats `(draws,)`."""


def narrow_cells(
    catalog: SiteCatalog, formats: Sequence[FormatLike], parts: Sequence[Part]
) -> dict[str, list[Cell]]:
    """The cells that are checked, by module."""
    narrow = [like for like in formats if format_of(like).effective_bits < NARROW]
    return measurable(catalog, narrow, parts) if narrow else {}


def passes_of_an_image(catalog: SiteCatalog, cells: Mapping[str, Sequence[Cell]]) -> float:
    """What checking takes for one image, in forward passes of it."""
    left = rests(catalog)
    return 1 + sum(len(some) * left[name] for name, some in cells.items()) if cells else 0.0


def images_to_check(passes: float, images: int) -> int:
    """On how many images, where one image takes so many passes and there are so many images."""
    if not passes:
        return 0
    affordable = int(_PASSES * max(images, _THOUSAND) / passes)
    return min(max(_LEAST, min(affordable, _MOST)), images)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checks:
    """What is measured, and on which images."""

    cells: Mapping[str, Sequence[Cell]]
    draws: Draws
    read: ReadImages
    largest: int
    """Images at once."""

    def batch(self, spans: Sequence[Span]) -> Batch:
        """The images of draws."""
        places = [place for span in spans for place in range(span.start, span.stop)]
        return self.read(self.draws.numbers[places].tolist())


def measure_checks(
    model: nn.Module,
    catalog: SiteCatalog,
    quantizers: Quantizers,
    checks: Checks,
    *,
    ledger: Ledger | None = None,
    deadline: Deadline | None = None,
    team: Team = ALONE,
    progress: Progress = NO_PROGRESS,
) -> dict[Cell, NDArray[np.float64]]:
    """Measure the narrow cells on the drawn images, by replay; those cut off are left out.

    Args:
        model: Any image classifier; it is left as it was.
        catalog: Its sites.
        quantizers: Its grids.
        checks: What is measured on which images.
        ledger: Of draws: what is known already, and where new results are kept.
        deadline: Measuring stops there.
        team: The processes that share the work.
        progress: Told of every module.

    Raises:
        MeasurementError: the full-precision model gives logits that are not finite.
    """
    ledger = Ledger() if ledger is None else ledger
    draws = [Span(place, place + 1) for place in range(len(checks.draws))]
    with (
        suppress(TimeIsUpError),
        Meter.open(
            model,
            catalog,
            quantizers,
            ledger,
            largest=checks.largest,
            deadline=deadline,
            team=team,
            progress=progress,
        ) as meter,
    ):
        meter.measure(draws, checks.batch, checks.cells)
    found = {}
    for cell in (cell for some in checks.cells.values() for cell in some):
        outcomes = [ledger.outcome(cell, draw) for draw in draws]
        values = [one.kl for one in outcomes if one is not None]
        if len(values) == len(draws):
            found[cell] = checks.draws.weights * np.array(values)
    return found


def combined(estimated: Sequence[Estimated], found: Found) -> list[Estimated]:
    """Estimates with those of checked cells combined with what was measured."""
    result = list(estimated)
    groups: dict[tuple[str, Part], list[int]] = {}
    for place, one in enumerate(estimated):
        if _both(one, found):
            groups.setdefault((one.cell.format, one.cell.part), []).append(place)
    for places in groups.values():
        rows = [estimated[place] for place in places]
        for place, row in zip(places, _composite(rows, found), strict=True):
            result[place] = row
    return _in_order(result)


def _in_order(estimated: Sequence[Estimated]) -> list[Estimated]:
    """No unchecked format of a module above a narrower one that was checked."""
    result = list(estimated)
    modules: dict[tuple[str, Part], list[int]] = {}
    for place, one in enumerate(estimated):
        if format_of(one.cell.format).is_integer and one.estimate is not None:
            modules.setdefault((one.cell.module, one.cell.part), []).append(place)
    for places in modules.values():
        most: Interval | None = None
        for place in sorted(places, key=lambda place: format_of(estimated[place].cell.format).bits):
            one = estimated[place]
            assert one.estimate is not None
            mine = one.estimate.kl_nats
            if one.checked is not None:
                most = mine
            elif most is not None and mine.value > most.value:
                held = Interval(most.value, min(mine.low, most.low), most.high)
                result[place] = replace(one, estimate=Rated(one.estimate.n, held))
    return result


def _both(one: Estimated, found: Found) -> bool:
    """Whether a cell has a logarithm of either kind and an error of the measured one."""
    if one.cell not in found or one.estimate is None or len(found[one.cell]) < 2:
        return False
    measured = float(found[one.cell].mean())
    return one.estimate.kl_nats.value > 0 and measured > 0 and math.isfinite(measured)


def _composite(rows: Sequence[Estimated], found: Found) -> list[Estimated]:
    """The formula of this file's docstring, for the cells of one format."""
    first = np.array([row.estimate.kl_nats.value for row in rows if row.estimate])
    values = np.stack([found[row.cell] for row in rows])
    draws, measured = values.shape[1], values.mean(axis=1)
    errors = values.std(axis=1, ddof=1) / math.sqrt(draws) / measured
    error2 = _own_error2(values / measured[:, None])
    off = np.log(measured) - np.log(first)
    spread2 = max(float(off.var(ddof=1)) - error2, 0.0) if len(rows) >= _FEWEST else math.inf
    weight = 1.0 if math.isinf(spread2) else spread2 / (spread2 + error2) if spread2 else 0.0
    logs = weight * np.log(measured) + (1 - weight) * (np.log(first) + off.mean())
    made = []
    # of few images the one module's own error may be a lucky one
    typical = math.sqrt(float(np.square(errors).mean()))
    widest = np.exp(t_quantile(draws - 1) * np.maximum(errors, typical))
    for row, log, factor, direct in zip(rows, logs, widest.tolist(), measured, strict=True):
        assert row.estimate is not None
        value = math.exp(log)
        rated = Rated(row.estimate.n, Interval(value, value / factor, value * factor))
        checked = Checked(
            first_order=row.estimate,
            measured=float(direct),
            draws=draws,
            weight=weight,
            factor=math.exp(float(off.mean())),
            spread=math.exp(math.sqrt(spread2)) if math.isfinite(spread2) else None,
        )
        made.append(replace(row, estimate=rated, checked=checked))
    return made


def _own_error2(relative: NDArray[np.float64]) -> float:
    """Squared relative error of a mean over draws, without what all modules have in common.

    Args:
        relative: Values over their mean, `(modules, draws)`.
    """
    modules, draws = relative.shape
    if modules < 2:
        return float(relative.var(axis=1, ddof=1).mean() / draws)
    own = relative - relative.mean(axis=0)
    return float(own.var(axis=1, ddof=1).mean() / draws * modules / (modules - 1))


def said_of(estimated: Sequence[object]) -> str:
    """How far the first order was off in each format that was checked; empty if none was."""
    seen: dict[str, Checked] = {}
    for one in estimated:
        if isinstance(one, Estimated) and one.checked is not None:
            seen.setdefault(one.cell.format, one.checked)
    if not seen:
        return ""
    parts = [
        f"at {format_of(name).words} it is {check.factor:.2g} times the estimate on average"
        + (f", more or less by a factor of {check.spread:.2g}" if check.spread else "")
        + f", and makes {check.weight:.0%} of the value in the table"
        for name, check in seen.items()
    ]
    (draws, *_) = [check.draws for check in seen.values()]
    return (
        f"Every module's divergence in narrow formats was also measured, on {draws} drawn images: "
        f"{'; '.join(parts)}. There the order of modules is the least certain."
    )
