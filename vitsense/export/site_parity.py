"""Site by site: which codes of the file differ from torch's, by how much, and is rounding why?

Three comparisons of every site, all with torch's codes in single precision:

- *as it runs*: a site inherits the differences of those before it;
- *alone*: the file computes the site from torch's own tensors at all sites before, so that
  whatever differs began here;
- *torch in double precision*, alone in the same way: what an equally valid arithmetic changes.

A value that lies in the middle between two codes may fall to either when the last bit of a sum
changes: a tie. A wrong scale, weight or operator moves values that lie anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from vitsense.export.fixed import FixedModel
from vitsense.export.onnx_graph import INPUT, write_graph
from vitsense.export.parity import in_double
from vitsense.export.session import Session
from vitsense.export.site_graph import GIVEN, named_sites, showing, taking
from vitsense.numerics.grid import Grid
from vitsense.observe import Visit, observing

TIE = 1e-3
"""Below this distance from the middle between two codes, in steps, rounding noise decides."""

_AT_ONCE = 4
"""Images whose tensors of all sites are in memory at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """Codes that differ at one site."""

    differing: int = 0
    """Values with another code."""
    steps: float = 0.0
    """Largest difference, in steps of the site's grid."""
    tie: float = 0.0
    """Largest distance, in steps, of a differing value from the middle between two codes; the value
    before rounding is that of double precision."""
    off: float = 0.0
    """Largest distance of a value from torch's grid, in steps, beyond what float32 can hold."""

    def __add__(self, other: Apart) -> Apart:
        """The same site on further images."""
        return Apart(
            differing=self.differing + other.differing,
            steps=max(self.steps, other.steps),
            tie=max(self.tie, other.tie),
            off=max(self.off, other.off),
        )

    @property
    def by_ties(self) -> bool:
        """Whether ties explain everything: neighbouring codes of values in the middle."""
        return self.steps < 1.5 and self.tie <= TIE and self.off <= TIE


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteDifference:
    """One activation in the file against the same in torch."""

    site: str
    values: int
    as_it_runs: Apart
    alone: Apart
    double: Apart

    def __add__(self, other: SiteDifference) -> SiteDifference:
        """The same site on further images."""
        return SiteDifference(
            site=self.site,
            values=self.values + other.values,
            as_it_runs=self.as_it_runs + other.as_it_runs,
            alone=self.alone + other.alone,
            double=self.double + other.double,
        )

    @property
    def suspicious(self) -> bool:
        """Whether something other than ties changes what the site computes from torch's inputs."""
        return not self.alone.by_ties


def explained(apart: Apart, values: int) -> str:
    """Why codes differ, where those before do not: ties, or not; nothing where nothing differs."""
    if not apart.differing and apart.off <= TIE:
        return ""
    if apart.by_ties:
        return (
            f"{apart.differing} of {values} values lie within {apart.tie:.1g} of a step of the "
            "middle between two codes, where the last bit of a float sum decides; they are "
            "rounded to the neighbouring code"
        )
    if apart.off > TIE:
        return f"values lie up to {apart.off:.2g} of a step beside torch's grid: another scale"
    return (
        f"{apart.differing} of {values} values differ, by up to {apart.steps:.3g} steps, up to "
        f"{apart.tie:.2g} of a step from the middle between two codes, and rounding does not "
        "explain it"
    )


def summary(sites: Sequence[SiteDifference]) -> dict[str, Any]:
    """What the sites, each alone, come to: plain values for ``export.json``."""
    suspicious = [site for site in sites if site.suspicious]
    total = reduce(lambda a, b: a + b, (site.alone for site in sites), Apart())
    values = sum(site.values for site in sites)
    own = sum(site.double.differing for site in sites)
    if suspicious:
        first = suspicious[0]
        says = (
            f"{len(suspicious)} of {len(sites)} sites differ by more than ties, the first is "
            f"{first.site}: {explained(first.alone, first.values)}"
        )
    elif not sites:
        says = "the plan rounds weights alone"
    elif not total.differing:
        says = f"all {values} codes are those of torch"
    else:
        says = (
            f"{total.differing} of {values} codes differ, each by one, of values within "
            f"{total.tie:.1g} of a step of the middle between two codes; in double precision "
            f"torch itself changes {own}"
        )
    return {
        "differing": total.differing,
        "values": values,
        "tie": total.tie,
        "double_differing": own,
        "suspicious": [site.site for site in suspicious],
        "conclusion": says,
    }


def compare_sites(fixed: FixedModel, graph: Any, images: Tensor) -> list[SiteDifference]:
    """Every quantized activation of the file against torch, in the order of execution.

    Args:
        fixed: The torch model.
        graph: The ``onnx_ir.Model`` the file was written from; it is left as it was.
        images: `(B, 3, H, W)`.
    """
    names = named_sites(graph, _executed(fixed, images[:1]))
    if not names:  # the plan rounds weights alone
        return []
    running = Session(write_graph(showing(graph, names)), names)
    alone = Session(write_graph(taking(graph, names)), names)
    wide = in_double(fixed)
    parts = [
        _compared(fixed, wide, running, alone, names, few) for few in torch.split(images, _AT_ONCE)
    ]
    return [reduce(lambda a, b: a + b, rows) for rows in zip(*parts, strict=True)]


def _executed(fixed: FixedModel, image: Tensor) -> list[str]:
    """Activation sites in the order of execution."""
    return list(_before(fixed, image, fixed.rounded))


def _compared(
    fixed: FixedModel,
    wide: FixedModel,
    running: Session,
    alone: Session,
    names: list[str],
    images: Tensor,
) -> list[SiteDifference]:
    before = _before(fixed, images, fixed.rounded)
    mine = {site: fixed.rounded(site, tensor) for site, tensor in before.items()}
    double = _before(wide, images.double(), lambda site, _tensor: mine[site].double())
    given = {f"{GIVEN}{site}": mine[site].numpy() for site in names}
    seen = dict(zip(names, running.run(images.numpy()), strict=True))
    single = dict(zip(names, alone.run({INPUT: images.numpy()} | given), strict=True))
    found = []
    for site in names:
        apart = partial(apart_of, fixed.activations[site], mine[site], double[site])
        found.append(
            SiteDifference(
                site=site,
                values=mine[site].numel(),
                as_it_runs=apart(torch.from_numpy(seen[site])),
                alone=apart(torch.from_numpy(single[site])),
                double=apart(wide.rounded(site, double[site])),
            )
        )
    return found


def _before(
    fixed: FixedModel, images: Tensor, behind: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """The tensor of every activation site before rounding.

    Args:
        fixed: The torch model.
        images: `(B, 3, H, W)`, in the model's type.
        behind: What the model sees after a site, from the site and its tensor.
    """
    seen: dict[str, Tensor] = {}

    def keeping(site: str) -> Visit:
        def visit(tensor: Tensor) -> Tensor:
            seen[site] = tensor.clone()
            return behind(site, tensor)

        return visit

    visits: Mapping[str, Visit] = fixed.visits() | {
        site: keeping(site) for site in fixed.activations
    }
    with torch.no_grad(), observing(fixed.model, fixed.catalog, visits):
        fixed.model(images)
    return seen


def apart_of(grid: Grid, mine: Tensor, before: Tensor, theirs: Tensor) -> Apart:
    """Hold the rounded tensor of a site against torch's.

    Args:
        grid: Of the site.
        mine: Rounded by torch.
        before: Before rounding, in double precision.
        theirs: Rounded by somebody else.
    """
    scale, wide = grid.scale.double(), mine.double()
    steps = ((wide - theirs.double()) / scale).abs()
    differing = steps > 0.5
    shifted = before.double() if grid.shift is None else before.double() - grid.shift.double()
    codes = (shifted / scale)[differing]
    held = (wide / scale).abs() * 2.0**-22
    return Apart(
        differing=int(differing.sum()),
        steps=float(steps.max()),
        tie=float((codes - codes.floor() - 0.5).abs().max()) if codes.numel() else 0.0,
        off=float(((steps - steps.round()).abs() - held).clamp_(min=0).max()),
    )
