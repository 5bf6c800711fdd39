r"""Divergence by the trace of the Hessian, as HAWQ-V2 ranks layers, for comparison.

**What is estimated.** For a tensor `w` with rounding error `Δ`, the second-order change of the loss
is `1/2 Δᵀ H Δ`. If `Δ` had the same size in every direction of the eigenvectors of `H`, it would be

    1/2 · mean trace(H) · ||Δ||²,      mean trace(H) = trace(H) / number of values,

and the trace needs no Hessian: for signs `v` drawn at random, `E[vᵀ H v] = trace(H)`, and `H v` is
the gradient of `vᵀ ∂loss/∂w` (a second backward pass through the first one). The loss is the
cross-entropy with the label; without a label, with the class that the model itself gives.

Source: Dong et al. 2020, "HAWQ-V2", eq. 2.11 (`Ω = Σ mean trace(H) ||Q(W) - W||²`, there without
the 1/2, which changes no order and makes nats of it), activations as in its section 2.4; signs:
Hutchinson 1990; Hessian times vector: Pearlmutter 1994. Deviations: one vector for all tensors at
once, each scaled by the root mean square of its tensor, and every probe on images of its own
instead of many on the same. Both are unbiased: blocks of other tensors have mean 0, and the scale
cancels in a tensor's own block; without it, noise of tensors with many values buries the others.

**What is left out.** The direction of `Δ`, signs of which the errors of a real rounding have, and
what weight and activation do together: `sensitivity/fisher.py` keeps both. A loss that is not at a
minimum may curve downwards: such a trace is negative, and the row says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitsense.deadline import Deadline
from vitsense.errors import MeasurementError
from vitsense.formats import FormatLike, format_of
from vitsense.observe import Visit, observing, preserved
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.sensitivity.estimate import Estimated, Rated
from vitsense.sensitivity.groups import includes
from vitsense.sensitivity.ledger import Span
from vitsense.sensitivity.meter import Batch, out_of_memory
from vitsense.sensitivity.portions import ReadImages
from vitsense.sensitivity.quantizers import Quantizers, supports
from vitsense.sensitivity.result import Cell
from vitsense.settings import Part
from vitsense.sites import Site, SiteCatalog

IMAGES_OF_A_PROBE = 8
"""Images whose Hessian one vector meets; a second backward pass keeps about three times a step."""


_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class Probe:
    """What one random vector found on a few images: sums over them, by the id of the site."""

    images: int
    traces: Mapping[str, float]
    """Mean trace of the Hessian of an image's loss, loss per squared unit of the tensor."""
    errors: Mapping[tuple[str, str], float]
    """(site, format) -> squared rounding error of its tensor; of the first probe of images only."""

    def __add__(self, other: Probe) -> Probe:
        """The same vector on more images."""
        return Probe(
            self.images + other.images,
            _added(self.traces, other.traces),
            _added(self.errors, other.errors),
        )


def _added(one: Mapping[_Key, float], two: Mapping[_Key, float]) -> dict[_Key, float]:
    return {key: one.get(key, 0.0) + two.get(key, 0.0) for key in {**one, **two}}


ProbeKey = tuple[Span, int]
"""The images of a probe, and its number among those on them."""


@dataclass(slots=True)
class ProbeMemory:
    """What earlier, interrupted work already probed, and where new probes are kept."""

    known: Mapping[ProbeKey, Probe] = field(default_factory=dict)
    keep: Callable[[Span, int, Probe], None] = lambda _span, _number, _found: None


def estimate_hessian(
    model: nn.Module,
    catalog: SiteCatalog,
    quantizers: Quantizers,
    batches: Sequence[Span],
    read: ReadImages,
    *,
    bits: Sequence[FormatLike],
    parts: Sequence[Part] = (Part.BOTH,),
    probes: int = 32,
    seed: int = 0,
    memory: ProbeMemory | None = None,
    mine: Collection[Span] | None = None,
    deadline: Deadline | None = None,
    progress: Progress = NO_PROGRESS,
) -> list[Estimated]:
    """Estimate the divergence of every module x width x part; the formula is this file's docstring.

    The model is left exactly as it was, also when interrupted. A probe's signs depend on the seed,
    its number and its first image alone.

    Args:
        model: Any image classifier that can be differentiated twice.
        catalog: Its sites.
        quantizers: Its grids.
        batches: The images of each probe, in order.
        read: Opens them, with labels; -1 where there is none.
        bits: Bits of integers or names of formats.
        parts: What is quantized.
        probes: Random vectors in all, at least; each batch has as many as the others, at least one.
        seed: Of the random signs.
        memory: What is known already, and where new probes are kept.
        mine: The batches of this process, if others make the other probes; None for all.
        deadline: Probes that come too late are left out, but not all of them.
        progress: Told of every batch.

    Raises:
        MeasurementError: the model cannot be differentiated twice, its logits are not finite, or
            there is no memory for one image.
    """
    memory = memory or ProbeMemory()
    names = [format_of(like).name for like in bits]
    limit = Deadline() if deadline is None else deadline
    found: dict[ProbeKey, Probe] = {}
    with preserved(model):
        sites = [s for s in catalog.sites if any(includes(part, s) for part in parts)]
        prober = _Prober(model, sites, quantizers, names, seed)
        with sdpa_kernel(SDPBackend.MATH), observing(model, catalog, prober.visits()):
            for span in batches:
                batch: Batch | None = None
                for number in range(-(-probes // len(batches))):
                    probe = memory.known.get((span, number))
                    if probe is None and mine is not None and span not in mine:
                        continue
                    if probe is None and found and limit.passed:
                        limit.came = True
                        continue
                    if probe is None:
                        batch = batch or read(range(span.start, span.stop))
                        probe = prober.probe(batch, span.start, number)
                        memory.keep(span, number, probe)
                    found[span, number] = probe
                progress.advance(span.stop - span.start)
    images = sum(map(len, {span for span, _ in found}))
    cells = [Cell.of(m.name, name, part) for m in catalog for part in parts for name in names]
    return [_finished(cell, list(found.values()), images, catalog) for cell in cells]


def _finished(cell: Cell, probes: Sequence[Probe], images: int, catalog: SiteCatalog) -> Estimated:
    module = catalog[cell.module]
    sites = [site for site in module.sites if includes(cell.part, site)]
    reached = [site for site in sites if any(site.id in probe.traces for probe in probes)]
    reason = supports(module, cell.part)
    if reason or not reached:
        reason = reason or "the loss does not depend on it"
        return Estimated(cell=cell, estimate=None, reason=reason)
    values = [0.0] * len(probes)
    for site in reached:
        error = _error(probes, (site.id, cell.format))
        for place, probe in enumerate(probes):
            values[place] += 0.5 * error * probe.traces.get(site.id, 0.0)
    weight = module.weight_site
    trace = None
    if weight in reached:
        assert weight is not None
        trace = sum(p.traces.get(weight.id, 0.0) for p in probes) / sum(p.images for p in probes)
    rated = Rated.of_probes(values, [probe.images for probe in probes], images, trace)
    reason = "the loss curves downwards here" if rated.negative else ""
    return Estimated(cell=cell, estimate=rated, reason=reason)


def _error(probes: Sequence[Probe], key: tuple[str, str]) -> float:
    """Mean over images of a squared rounding error."""
    seen = [probe for probe in probes if key in probe.errors]
    return sum(p.errors[key] for p in seen) / sum(p.images for p in seen)


class _Prober:
    """Adds zeros to the tensors at all sites, by which the loss is differentiated twice."""

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        quantizers: Quantizers,
        formats: Sequence[str],
        seed: int,
    ) -> None:
        self._model = model
        self._sites = sites
        self._quantizers = quantizers
        self._formats = formats
        self._seed = seed
        self._shifts: list[_Shift] = []
        self._shared: dict[str, _Shift] = {}
        self._errors: dict[tuple[str, str], float] | None = None
        self._of_weights: dict[tuple[str, str], float] = {}

    def visits(self) -> dict[str, Visit]:
        """A visit for every site."""
        return {site.id: self._visit(site) for site in self._sites}

    def _visit(self, site: Site) -> Visit:
        def visit(tensor: Tensor) -> Tensor:
            shift = self._shared.get(site.id)
            if shift is None:
                values = tensor.detach()
                shift = _Shift.of(site, values)
                self._shifts.append(shift)
                self._round(site, values)
                if site.is_weight:  # one that is used twice is one tensor; an input is two
                    self._shared[site.id] = shift
            return tensor + shift.zeros

        return visit

    def _round(self, site: Site, values: Tensor) -> None:
        if self._errors is None:
            return
        for name in self._formats:
            key = (site.id, name)
            square = self._of_weights.get(key)
            if square is None:
                error = self._quantizers.visit(site, name)(values) - values
                square = float(error.double().square().sum())
            if site.is_weight:
                self._of_weights[key] = square
            self._errors[key] = self._errors.get(key, 0.0) + square

    def probe(self, batch: Batch, start: int, number: int) -> Probe:
        """One random vector on some images, from ``start``; in halves where memory is short."""
        images, labels = batch
        try:
            return self._probe(images, labels, start, number)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise _undifferentiable(error) from error
            if len(images) < 2:
                raise MeasurementError(
                    "The Hessian of a single image needs more memory than the device has: use "
                    "--mode fast, which goes back through the model only once."
                ) from error
        finally:
            self._shifts, self._shared = [], {}
        middle = len(images) // 2
        first = self.probe((images[:middle], labels[:middle]), start, number)
        return first + self.probe((images[middle:], labels[middle:]), start + middle, number)

    def _probe(self, images: Tensor, labels: Tensor, start: int, number: int) -> Probe:
        self._errors = {} if number == 0 else None
        with torch.enable_grad():
            logits = self._model(images)
            if not bool(torch.isfinite(logits).all()):
                raise MeasurementError(
                    "The full-precision model gives logits that are not finite: check its weights "
                    "and the preprocessing."
                )
            own = logits.argmax(dim=1)
            targets = torch.where(labels.to(own) >= 0, labels.to(own), own)
            loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
            random = np.random.default_rng([self._seed, number, start])
            vectors = [shift.scale * _signs(shift.zeros, random) for shift in self._shifts]
            found = curvatures(loss, [shift.zeros for shift in self._shifts], vectors)
        traces: dict[str, float] = {}
        for shift, value in zip(self._shifts, found, strict=True):
            if value is not None:
                share = value / shift.scale**2 / shift.count(len(images))
                traces[shift.site.id] = traces.get(shift.site.id, 0.0) + share
        times = len(images)
        errors = {
            key: value * times if key in self._of_weights else value
            for key, value in (self._errors or {}).items()
        }
        return Probe(len(images), traces, errors)


@dataclass(frozen=True, slots=True, eq=False)
class _Shift:
    """Zeros that were added to a tensor."""

    site: Site
    zeros: Tensor
    scale: float
    """Root mean square of the tensor."""

    @classmethod
    def of(cls, site: Site, values: Tensor) -> _Shift:
        scale = float(values.double().square().mean().sqrt())
        return cls(site, torch.zeros_like(values, requires_grad=True), scale or 1.0)

    def count(self, images: int) -> float:
        """Values that one image has: a weight is shared, an activation is not."""
        return self.zeros.numel() / (1 if self.site.is_weight else images)


def curvatures(
    loss: Tensor, tensors: Sequence[Tensor], vectors: Sequence[Tensor]
) -> list[float | None]:
    """`vᵢᵀ (H v)ᵢ` of every tensor; None where the loss does not depend on it.

    Args:
        loss: A scalar.
        tensors: Leaves that it was computed from.
        vectors: In their shapes.
    """
    gradients = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True)
    pairs = zip(gradients, vectors, strict=True)
    products = [(g * v).sum() for g, v in pairs if g is not None and g.requires_grad]
    if not products:  # constant or linear throughout
        return [None if g is None else 0.0 for g in gradients]
    seconds = torch.autograd.grad(torch.stack(products).sum(), tensors, allow_unused=True)
    return [
        None if g is None else 0.0 if second is None else float((second.double() * v).sum())
        for g, second, v in zip(gradients, seconds, vectors, strict=True)
    ]


def _signs(like: Tensor, random: np.random.Generator) -> Tensor:
    bits = random.integers(0, 2, size=tuple(like.shape), dtype=np.int8)
    return torch.from_numpy(bits).to(like).mul_(2).sub_(1)


def _undifferentiable(error: BaseException) -> BaseException:
    if isinstance(error, MeasurementError):
        return error
    return MeasurementError(
        f"The Hessian of this model cannot be computed ({str(error).splitlines()[0]}): use --mode "
        "fast, adaptive or exact."
    )
