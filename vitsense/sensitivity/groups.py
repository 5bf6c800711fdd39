"""Which sites are quantized together: by module, role, block, stage, head or site. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vitsense.settings import By, Part
from vitsense.sites import ModuleRole, Site, SiteCatalog, SiteModule, SiteRole

MHSA = "mhsa"
"""Name of the group of all roles that the paper counts to attention."""

EVERYTHING = "all"
"""Name of the group of all modules; its ``by`` is ``model``."""


@dataclass(frozen=True, slots=True)
class Member:
    """A site of a group, or the slice of one attention head of it."""

    module: SiteModule
    site: Site
    head: int | None = None

    @property
    def axis(self) -> int:
        """The axis that holds the heads: of weights, the output channels."""
        if self.site.is_weight:
            return 0
        assert self.site.head_axis is not None
        return self.site.head_axis


@dataclass(frozen=True, slots=True)
class Group:
    """Sites that are quantized, or spared, together."""

    by: str
    """A `By`, or ``model`` for the group of everything."""
    name: str
    members: tuple[Member, ...]

    @property
    def modules(self) -> tuple[SiteModule, ...]:
        """The modules that have a member, each once."""
        return tuple({m.module.name: m.module for m in self.members}.values())

    @property
    def params(self) -> int:
        """Weights among the members (a head's share of them)."""
        found = 0
        for member in self.members:
            if member.site.is_weight:
                heads = member.module.heads if member.head is not None else None
                found += member.module.params // (heads or 1)
        return found

    def within(self, part: Part) -> tuple[Member, ...]:
        """The members that are quantized when only this part is."""
        return tuple(m for m in self.members if includes(part, m.site))


def includes(part: Part, site: Site) -> bool:
    """Whether the site is quantized when this part of a module is."""
    return part in (Part.WEIGHTS if site.is_weight else Part.ACTIVATIONS, Part.BOTH)


def everything(catalog: SiteCatalog) -> Group:
    """All sites of a model."""
    return Group("model", EVERYTHING, _whole(catalog))


def groups_of(catalog: SiteCatalog, by: By) -> list[Group]:
    """The groups of a model, in the order of their first members; MHSA comes before all roles."""
    if by is By.HEAD:
        return _heads(catalog)
    if by is By.SITE:
        return [
            Group(by.value, site.id, (Member(module, site),))
            for module in catalog
            for site in module.sites
        ]
    key: dict[By, Callable[[SiteModule], str]] = {
        By.MODULE: lambda m: m.name,
        By.ROLE: lambda m: m.role.value,
        By.BLOCK: lambda m: m.block,
        By.STAGE: lambda m: m.stage,
    }
    found: dict[str, list[SiteModule]] = {}
    if by is By.ROLE:
        found[MHSA] = [m for m in catalog if m.role.in_attention]
    for module in catalog:
        found.setdefault(key[by](module), []).append(module)
    return [Group(by.value, name, _whole(some)) for name, some in found.items() if name and some]


def _whole(modules: Iterable[SiteModule]) -> tuple[Member, ...]:
    return tuple(Member(module, site) for module in modules for site in module.sites)


_PROJECTIONS = (ModuleRole.QUERY, ModuleRole.KEY, ModuleRole.VALUE)


def _heads(catalog: SiteCatalog) -> list[Group]:
    """One group per attention and head: operands of its products, rows of its q, k and v."""
    products: dict[str, list[SiteModule]] = {}
    for module in catalog:
        if module.heads and any(site.head_axis is not None for site in module.sites):
            products.setdefault(module.path, []).append(module)
    found = []
    for path, some in products.items():
        heads = some[0].heads or 0
        prefix = f"{path}." if path else ""
        rows = [
            m
            for m in catalog
            if m.role in _PROJECTIONS
            and m.heads == heads
            and (m.path == path or m.path.startswith(prefix))
            and m.weight_shape[0] % heads == 0
        ]
        for head in range(heads):
            members = [
                Member(m, site, head)
                for m in (*rows, *some)
                for site in m.sites
                if site.head_axis is not None or (m in rows and site.role is SiteRole.WEIGHT)
            ]
            found.append(Group(By.HEAD.value, f"{path} head {head}", tuple(members)))
    return found
