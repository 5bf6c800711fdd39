"""When a cell of an adaptive sweep has seen enough images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitsense.formats import format_of
from vitsense.sensitivity import sequential
from vitsense.sensitivity.ledger import Ledger, Span
from vitsense.sensitivity.relevance import deciding
from vitsense.sensitivity.result import Cell, Outcome
from vitsense.sensitivity.sequential import Estimates, Sample
from vitsense.sensitivity.strata import Strata
from vitsense.settings import Part
from vitsense.sites import SiteCatalog

FIRST_ROUND = 32
"""Images of the first round; every round doubles what was seen."""

EFFORT, EFFORT_IMAGES = 0.12, 120
"""What all rounds may take on average: this share of the images, or so many images, per cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What is asked of an adaptive sweep."""

    tolerance: float = 0.5
    """A drop is known when the images not looked at can move it this far at most, points."""
    confidence: float = 0.95
    """Of that and of every other interval that decides; the table's are always of 95 %."""
    seed: int = 0


def rounds(images: int) -> list[int]:
    """Images seen by the end of each round, at most: 32, 64, 128, ... and all."""
    found = []
    total = FIRST_ROUND
    while total < images:
        found.append(total)
        total *= 2
    return [*found, images]


def effort(cells: int, images: int) -> int:
    """Cells times images that all rounds may take together."""
    return int(cells * max(EFFORT * images, min(EFFORT_IMAGES, images)))


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Cells that were looked at, with what is known of them; arrays are `(cells,)`."""

    cells: tuple[Cell, ...]
    drop: Estimates
    """On the evaluation images: lost minus gained; changed ones where there are no labels."""
    kl: Estimates

    def at(self, wanted: Sequence[Cell]) -> list[int]:
        """Rows of cells."""
        places = {cell: i for i, cell in enumerate(self.cells)}
        return [places[cell] for cell in wanted if cell in places]


def sample_of(
    cells: Sequence[Cell], ledger: Ledger, strata: Strata, counts: Mapping[Cell, Sequence[int]]
) -> Sample:
    """What was seen of cells, by stratum."""
    rows = []
    for cell in cells:
        ends = zip(strata.edges, counts[cell], strict=False)
        parts = [ledger.outcome(cell, Span(start, start + n)) for start, n in ends]
        rows.append([part or Outcome() for part in parts])
    return Sample.of(rows, strata)


def judge(cells: Sequence[Cell], sample: Sample, looks: int, confidence: float) -> Judged:
    """Estimates of cells from their sample."""
    labelled = bool((sample["labelled"] > 0).all())
    loss = sequential.drop_to_come if labelled else sequential.flips_to_come
    return Judged(
        tuple(cells),
        loss(sample, looks, confidence),
        sequential.divergence(sample, looks, confidence),
    )


def harmless(judged: Judged, rule: Rule) -> list[bool]:
    """Whether the drop is surely within the tolerance, and the outputs hardly move.

    The second holds when the divergence is at most 2 x tolerance squared: then class probabilities
    move by no more than the tolerance on average (Pinsker's inequality and Jensen's).
    """
    limit = rule.tolerance / 100
    small = np.maximum(np.abs(judged.drop.low), np.abs(judged.drop.high)) <= limit
    return list((small & (judged.kl.high <= 2 * limit**2)).tolist())


def undecided(
    judged: Judged, active: Sequence[Cell], catalog: SiteCatalog, rule: Rule, part: Part
) -> list[Cell]:
    """Active cells that should see more images, most valuable first.

    First come cells that could change a plan, by what not knowing them costs; then cells whose drop
    on the evaluation images is not known within the tolerance and not surely beyond it, nearest to
    being known first.
    """
    limit = rule.tolerance / 100
    ends = (judged.drop.high - judged.drop.value, judged.drop.value - judged.drop.low)
    half = np.maximum(*ends)
    value = _plan_value(judged, catalog, rule, part)
    rows = judged.at(active)
    deciding_ones = sorted((i for i in rows if value[i] > 0), key=lambda i: (-value[i], i))
    open_ones = [
        i for i in rows if value[i] <= 0 and half[i] > limit and not judged.drop.low[i] > limit
    ]
    open_ones.sort(key=lambda i: (half[i], i))
    return [judged.cells[i] for i in [*deciding_ones, *open_ones]]


def _plan_value(judged: Judged, catalog: SiteCatalog, rule: Rule, part: Part) -> Any:
    """What each cell contributes to the regret of plans; weights and products are two budgets."""
    value = np.zeros(len(judged.cells))
    mine = [(i, c) for i, c in enumerate(judged.cells) if c.part is part]
    formats = sorted({c.format for _, c in mine}, key=lambda f: (format_of(f).bits, f))
    bits = np.array([format_of(name).effective_bits for name in formats])
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.log(judged.kl.high / judged.kl.value) / sequential.UPWARDS / 3.0
    error = np.nan_to_num(error, nan=0.0, posinf=3.0)
    value_of = np.nan_to_num(judged.kl.value, nan=np.inf)  # not finite: never a choice
    for weighted in (True, False):
        modules = [m for m in catalog if (m.params > 0) is weighted]
        places = {m.name: row for row, m in enumerate(modules)}
        kl = np.full((len(modules), len(formats)), np.inf)
        spread, index = np.zeros_like(kl), np.full(kl.shape, -1)
        for i, cell in mine:
            if cell.module in places:
                where = places[cell.module], formats.index(cell.format)
                kl[where], spread[where], index[where] = value_of[i], error[i], i
        rows = np.isfinite(kl).any(axis=1)
        if len(formats) < 2 or not rows.any():
            continue
        size = np.array([m.params if weighted else m.macs for m in modules], dtype=float)[rows]
        found = deciding(kl[rows], spread[rows], bits, size, rule.seed)
        known = index[rows] >= 0
        value[index[rows][known]] = found[known]
    return value
