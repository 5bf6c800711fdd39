"""wip"""
from __future__ import annotations
from collections.abc import Sequence
import torch
from torch import Tensor
from vitsense.observe import Flow, Visit
from vitsense.sensitivity.per_image import by_image, rounding_products, weight_products
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.settings import Part
from vitsense.sites import SiteModule, SiteRole

WEIGHTS, ACTIVATIONS = 0, 1

class Responses:
    def __init__(self, quantizers: Quantizers, bits: Sequence[int]) -> None:
        self._quantizers = quantizers
        self._bits = bits
        self.images = 0
        self.found: dict[str, Tensor] = {}

    def begin(self, images: int) -> None:
        self.images, self.found = images, {}

    def visit(self, flows: Sequence[Flow]) -> None:
        for flow in flows:
            if flow.module.name not in self.found:
                value = next(iter(flow.values.values()))
                self.found[flow.module.name] = value.new_zeros(2, len(self._bits), self.images)
            if flow.call is not None:
                self._weight(flow)
        for role in flows[0].values:
            self._activation(role, flows)

    def _site_visits(self, module: SiteModule, role: SiteRole) -> list[Visit]:
        part = Part.WEIGHTS if role is SiteRole.WEIGHT else Part.ACTIVATIONS
        name = f"{module.name}:{role.value}"
        return [self._quantizers.visits(module, b, part)[name] for b in self._bits]

    def _weight(self, flow: Flow) -> None:
        weight = flow.call.weight.detach()
        errors = [q(weight) - weight for q in self._site_visits(flow.module, SiteRole.WEIGHT)]
        self.found[flow.module.name][WEIGHTS] += weight_products(
            flow.call, flow.output_gradient, errors, images=self.images, axis=flow.batch_axis)

    def _activation(self, role: SiteRole, flows: Sequence[Flow]) -> None:
        def rows(t): return by_image(t, self.images, flows[0].batch_axis).flatten(0, 1)
        products = rounding_products(
            rows(flows[0].values[role].detach()), [rows(f.gradients[role]) for f in flows],
            [self._quantizers.grid(next(s_ for s_ in flows[0].module.sites if s_.role is role), b, flows[0].values[role]) for b in self._bits], images=self.images)
        for f, p in zip(flows, products):
            self.found[f.module.name][ACTIVATIONS] += p

def rademacher_direction(logits: Tensor, generator: torch.Generator) -> Tensor:
    p = logits.double().softmax(dim=1)
    signs = torch.randint(0, 2, p.shape, generator=generator).to(p) * 2 - 1
    root = p.sqrt() * signs
    return root - p * root.sum(dim=1, keepdim=True)
