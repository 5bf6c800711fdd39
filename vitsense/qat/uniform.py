"""A plan with the same bits everywhere, for those who measured nothing."""

from __future__ import annotations

import torch

from vitsense.discover import find_sites
from vitsense.models import LoadedModel
from vitsense.plan.plan import ModulePlan, Plan

ENDS = 8
"""Bits of the first and the last weight, as in the literature."""


def uniform_plan(model: LoadedModel, bits: int) -> Plan:
    """Equal bits for every module, but for the first and the last one with a weight.

    Args:
        model: Whose modules are planned.
        bits: Of weights and activations; the ends get at least `ENDS`.
    """
    device = next(model.module.parameters()).device
    catalog = find_sites(
        model.module, torch.zeros(1, *model.preprocessing.input_size, device=device)
    )
    weights = [module.name for module in catalog if module.params]
    ends = {weights[0], weights[-1]}
    modules = tuple(
        ModulePlan(
            name=module.name,
            bits=max(bits, ENDS) if module.name in ends else bits,
            role=module.role.value,
            pinned=module.name in ends,
            reason="first or last weight" if module.name in ends else "uniform",
        )
        for module in catalog
    )
    about = {
        "key": model.key,
        "name": model.resolved.name,
        "weights_digest": model.digest,
        "sites_digest": catalog.digest,
        "num_classes": model.num_classes,
    }
    return Plan(modules=modules, model=about, budget=f"W{bits}A{bits}")
