r"""Divergence of every module in every format from one pass there and one back.

**What is estimated.** A perturbed module changes the logits `z` by `d`. To second order in `d`,

    KL(p || p_d)  =  1/2 dᵀ H d,      H = diag(p) - p pᵀ,

the Fisher information of the class probabilities `p` with respect to the logits, which is also the
Gauss-Newton matrix of the cross-entropy. For a random vector `v` with `E[v vᵀ] = H`,

    dᵀ H d  =  E[(vᵀ d)²],

and `vᵀ d` needs no forward pass with the perturbed module: to first order in the perturbation it is
the sum, over everything that was perturbed, of the perturbation times the gradient of `vᵀ z`. One
backward pass of `vᵀ z` therefore serves every module and every format. For a layer `y = W x`,

    vᵀ d  =  ⟨∂/∂x, Δx⟩  +  Σ_t g_tᵀ ΔW x_t  =  ⟨∂/∂x, Δx⟩  +  ⟨G, ΔW⟩,   G = Σ_t g_t x_tᵀ,

with `g_t` the gradient at the output of row `t`: the backward pass gives the first term for
nothing, and `G`, the weight gradient of one image, is formed once for all formats. For a product of
two activations both operands' gradients are there already. Squares are taken image by image: summed
gradients of a batch would cancel.

**Which v.** A gradient of `log p_y` with `y` drawn from `p` has the right second moment, but nearly
always draws the class the model is sure of, where it is almost zero, and rarely another, where it
is huge. Here `v_c = √p_c ξ_c - p_c Σ_k √p_k ξ_k` with random signs `ξ`: the same `H`, and a
relative variance of `(vᵀ d)²` of at most 2 for any `p`.

**Which images.** Those that the model is unsure of carry nearly all of the divergence, and most of
the error is the noise of one random vector each; so images are drawn by the model's doubt
(`sensitivity/draws.py`), fewer than there are, and weighed by what they stand for.

**What is left out.** `Δx` and `ΔW` together (their product), curvature of the network between the
module and the logits, and terms of KL beyond the second order: all three grow with the
perturbation. Narrow formats of sensitive modules are therefore misjudged most.

Source: second-order expansion of the KL divergence: Kullback 1959, chapter 2.6; Gauss-Newton and
Fisher of a softmax: Martens 2020, "New Insights and Perspectives on the Natural Gradient Method",
section 9; random signs: Hutchinson 1990; a factor of H: Martens, Sutskever and Swersky 2012,
"Estimating the Hessian by Back-propagating Curvature". Gradients times rounding errors as a
sensitivity of quantization: Nagel et al. 2020 (AdaRound), eq. 5. Deviation: perturbation of weight
and activation together, per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vitsense.deadline import Deadline
from vitsense.errors import MeasurementError
from vitsense.formats import FormatLike, format_of
from vitsense.observe import Flow, FlowSession, flowing, preserved
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.sensitivity.draws import Draws
from vitsense.sensitivity.estimate import Estimate, Estimated, EstimateMemory, Estimates
from vitsense.sensitivity.ledger import Span
from vitsense.sensitivity.meter import out_of_memory
from vitsense.sensitivity.per_image import by_image, rounding_products, weight_products
from vitsense.sensitivity.portions import ReadImages
from vitsense.sensitivity.quantizers import Quantizers, supports
from vitsense.sensitivity.result import Cell
from vitsense.settings import Part
from vitsense.sites import Site, SiteCatalog, SiteRole

_ERROR_BYTES = 512 * 1024**2
"""Memory for rounding errors of weights, which are the same for every batch."""

_WEIGHTS, _ACTIVATIONS = 0, 1
_SIDES = {
    Part.BOTH: [_WEIGHTS, _ACTIVATIONS],
    Part.WEIGHTS: [_WEIGHTS],
    Part.ACTIVATIONS: [_ACTIVATIONS],
}


def estimate_fisher(
    model: nn.Module,
    catalog: SiteCatalog,
    quantizers: Quantizers,
    read: ReadImages,
    draws: Draws,
    *,
    bits: Sequence[FormatLike],
    parts: Sequence[Part] = (Part.BOTH,),
    seed: int = 0,
    largest: int = 32,
    memory: EstimateMemory | None = None,
    deadline: Deadline | None = None,
    progress: Progress = NO_PROGRESS,
) -> list[Estimated]:
    """Estimate the divergence of every module x width x part; the formula is this file's docstring.

    The model is left exactly as it was, also when interrupted. The random signs of a draw depend
    on the seed and its place alone, so that another batch size gives the same estimates.

    Args:
        model: Any image classifier that can be differentiated.
        catalog: Its sites.
        quantizers: Its grids.
        read: Opens images by their numbers; labels are not looked at.
        draws: Which of them are looked at.
        bits: Bits of integers or names of formats.
        parts: What is quantized.
        seed: Of the random signs.
        largest: Images that are taken at once.
        memory: What is known already, and where new estimates are kept.
        deadline: Draws that come too late are left out, but not all of them.
        progress: Told of every batch.

    Raises:
        MeasurementError: the model cannot be differentiated, or its logits are not finite.
    """
    memory = memory or EstimateMemory()
    names = [format_of(like).name for like in bits]
    totals: dict[Cell, Estimate] = {}
    responses = Responses(quantizers, names)
    with preserved(model), flowing(model, catalog, responses.visit) as session:
        for span in Span(0, len(draws)).steps(largest):
            found = memory.known.get(span)
            if found is None and totals and deadline is not None and deadline.passed:
                deadline.came = True
                continue
            if found is None:
                drawn = slice(span.start, span.stop)
                images, _ = read(draws.numbers[drawn].tolist())
                weights = torch.from_numpy(draws.weights[drawn]).to(images.device)
                looked = Looked(images, weights, span.start)
                found = _with_less_memory(session, responses, looked, seed, parts)
                memory.keep(span, found)
            for cell, estimate in found.items():
                totals[cell] = totals[cell] + estimate if cell in totals else estimate
            progress.advance(span.stop - span.start)
    cells = [Cell.of(m.name, name, part) for m in catalog for part in parts for name in names]
    return [_finished(cell, totals, catalog, draws.images) for cell in cells]


def _finished(cell: Cell, totals: Estimates, catalog: SiteCatalog, images: int) -> Estimated:
    found = totals.get(cell)
    if found is not None:
        return Estimated(cell=cell, estimate=found.over(images))
    reason = supports(catalog[cell.module], cell.part)
    reason = reason or "its operation was not reached by the gradient"
    return Estimated(cell=cell, estimate=None, reason=reason)


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """Images that are looked at together."""

    images: Tensor
    """`(B, 3, H, W)`"""
    weights: Tensor
    """What each stands for, `(B,)`."""
    start: int
    """Place of the first one among all draws."""

    def part(self, where: slice) -> Looked:
        """Some of them."""
        start = self.start + (where.start or 0)
        return Looked(self.images[where], self.weights[where], start)


def _with_less_memory(
    session: FlowSession,
    responses: Responses,
    looked: Looked,
    seed: int,
    parts: Sequence[Part],
) -> Estimates:
    """The estimates of a batch; in halves where the device has no memory for the whole."""
    count = len(looked.images)
    try:
        return _of_batch(session, responses, looked, seed, parts)
    except (RuntimeError, MemoryError) as error:
        if count < 2 or not out_of_memory(error):
            raise
    first, second = (
        _with_less_memory(session, responses, looked.part(where), seed, parts)
        for where in (slice(count // 2), slice(count // 2, None))
    )
    return {cell: first[cell] + second[cell] for cell in first}


def _of_batch(
    session: FlowSession,
    responses: Responses,
    looked: Looked,
    seed: int,
    parts: Sequence[Part],
) -> Estimates:
    responses.begin(len(looked.images))
    logits = session.run(
        looked.images, lambda z: fisher_direction(z, seed=seed, first=looked.start)
    )
    if not bool(torch.isfinite(logits).all()):
        raise MeasurementError(
            "The full-precision model gives logits that are not finite: check its weights and the "
            "preprocessing."
        )
    return responses.estimates(parts, looked.weights)


def fisher_direction(logits: Tensor, *, seed: int, first: int) -> Tensor:
    """Random vectors `(B, classes)` whose second moment is the Fisher information of the logits.

    Args:
        logits: `(B, classes)`.
        seed: Of the signs.
        first: Place of the first draw among all; each draw has signs of its own.
    """
    p = logits.double().softmax(dim=1)
    # a generator of torch would look at 32 bits of a seed only, and forget one of the two numbers
    rows = np.stack(
        [
            np.random.default_rng([seed, place]).integers(0, 2, p.shape[1], dtype=np.int8)
            for place in range(first, first + len(logits))
        ]
    )
    root = p.sqrt() * (2 * torch.from_numpy(rows).to(p) - 1)
    return root - p * root.sum(dim=1, keepdim=True)


class Responses:
    """Collects, image by image, the first-order change of `vᵀ z` by every module and format."""

    def __init__(self, quantizers: Quantizers, formats: Sequence[str]) -> None:
        self._quantizers = quantizers
        self._formats = formats
        self._images = 0
        self._found: dict[str, Tensor] = {}
        self._weighted: set[str] = set()
        self._errors: dict[str, Tensor] = {}
        self._room = _ERROR_BYTES

    def begin(self, images: int) -> None:
        """A batch of so many images follows."""
        self._images = images
        self._found = {}

    def visit(self, flows: Sequence[Flow]) -> None:
        """Add what one operation contributes (a module may run several times)."""
        shape = (2, len(self._formats), self._images)
        for flow in flows:
            if flow.module.name not in self._found:
                value = next(iter(flow.values.values()))
                self._found[flow.module.name] = torch.zeros(shape, device=value.device)
            if flow.call is not None:
                self._weighted.add(flow.module.name)
                self._weight(flow)
        for role in flows[0].values:
            self._activation(role, flows)

    def changes(self, module: str) -> Tensor:
        """`(2, formats, images)`: by its weight, and by its activations."""
        return self._found[module]

    def estimates(self, parts: Sequence[Part], weights: Tensor) -> dict[Cell, Estimate]:
        """Half the squares, summed over the batch; each image for what it stands for, `(B,)`."""
        found = {}
        for module, changes in self._found.items():
            for part in parts:
                if part is Part.WEIGHTS and module not in self._weighted:
                    continue
                kl = 0.5 * changes[_SIDES[part]].sum(dim=0).double().square()
                weighed = kl * weights
                terms = torch.stack([weighed, weighed.square(), weighed * kl], dim=2)
                for name, sums in zip(self._formats, terms.sum(dim=1).tolist(), strict=True):
                    found[Cell.of(module, name, part)] = Estimate(self._images, *sums)
        return found

    def _weight(self, flow: Flow) -> None:
        site = flow.module.weight_site
        assert site is not None
        assert flow.call is not None
        assert flow.output_gradient is not None
        self._found[flow.module.name][_WEIGHTS] += weight_products(
            flow.call,
            flow.output_gradient,
            self._weight_errors(site, flow.call.weight.detach()),
            images=self._images,
            axis=flow.batch_axis,
        )

    def _weight_errors(self, site: Site, weight: Tensor) -> Tensor:
        """Rounding errors in all formats, `(formats, …)`; remembered while there is room."""
        known = self._errors.get(site.id)
        if known is not None:
            return known
        visits = (self._quantizers.visit(site, name) for name in self._formats)
        errors = torch.stack([visit(weight) - weight for visit in visits])
        size = errors.numel() * errors.element_size()
        if size <= self._room:
            self._room -= size
            self._errors[site.id] = errors
        return errors

    def _activation(self, role: SiteRole, flows: Sequence[Flow]) -> None:
        def rows(tensor: Tensor) -> Tensor:
            return by_image(tensor, self._images, flows[0].batch_axis).flatten(0, 1)

        value = rows(flows[0].values[role].detach())
        site = _site_of(flows[0], role)
        products = rounding_products(
            value,
            [rows(flow.gradients[role]) for flow in flows],
            [self._quantizers.grid(site, name, value) for name in self._formats],
            images=self._images,
        )
        for flow, product in zip(flows, products, strict=True):
            self._found[flow.module.name][_ACTIVATIONS] += product


def _site_of(flow: Flow, role: SiteRole) -> Site:
    return next(site for site in flow.module.sites if site.role is role)
