"""How much of a forward pass replay computes for a module."""

from __future__ import annotations

from vitsense.sites import SiteCatalog


def rests(catalog: SiteCatalog) -> dict[str, float]:
    """Share of the multiplications that come with or after each module, by its name."""
    total, after, found = sum(module.macs for module in catalog), 0, dict[str, float]()
    for module in reversed(catalog.modules):
        after += module.macs
        found[module.name] = after / max(total, 1)
    return found


def remaining_share(catalog: SiteCatalog) -> float:
    """Mean of `rests` over all modules: what replay computes of a cell."""
    shares = rests(catalog).values()
    return sum(shares) / max(len(shares), 1)
