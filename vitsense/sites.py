"""Where a model can be quantized: plain data, no torch.

A **site** is a tensor at a place in a model (the weight of a convolution, the input of a linear
layer, an operand of an attention product). A **module** is the unit of one measurement: the sites
that are quantized together. Found by `vitsense.discover.find_sites`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum

from vitsense.errors import SiteMismatchError


class SiteRole(Enum):
    """What the tensor at a site is to its operation."""

    WEIGHT = "weight"
    INPUT = "input"
    QUERY = "query"
    KEY = "key"
    ATTENTION_PROBS = "attention_probs"
    VALUE = "value"
    LEFT = "left"
    RIGHT = "right"


class Kind(Enum):
    """The operation of a module."""

    LINEAR = "linear"
    CONV = "conv"
    PRODUCT = "product"


class ModuleRole(Enum):
    """What a module does in its architecture (the paper's groups)."""

    PATCH_EMBED = "patch_embed"
    QUERY = "q"
    KEY = "k"
    VALUE = "v"
    QKV = "qkv"
    """A fused projection that could not be split."""
    QK_PRODUCT = "qk_product"
    PV_PRODUCT = "pv_product"
    PRODUCT = "product"
    """An activation product outside softmax attention."""
    PROJECTION = "projection"
    FFN = "ffn"
    PATCH_MERGING = "patch_merging"
    CONV = "conv"
    DEPTHWISE = "depthwise"
    HEAD = "head"
    OTHER = "other"

    @property
    def in_attention(self) -> bool:
        """Whether the paper counts it to MHSA."""
        return self in _MHSA


_MHSA = frozenset(
    {
        ModuleRole.QUERY,
        ModuleRole.KEY,
        ModuleRole.VALUE,
        ModuleRole.QKV,
        ModuleRole.QK_PRODUCT,
        ModuleRole.PV_PRODUCT,
        ModuleRole.PROJECTION,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One tensor that can be quantized.

    Axes are counted from the end (-1 is the last), because the batch axis in front may be split.
    """

    module: str
    role: SiteRole
    tensor: str
    """Sites with equal ``tensor`` see the very same tensor."""
    channel_axis: int | None
    """Axis of the channels; None where channels mean nothing (attention probabilities)."""
    head_axis: int | None = None
    """Axis of the attention heads, if the tensor has one."""

    @property
    def id(self) -> str:
        """``"blocks.3.attn.proj:input"``, unique in a model."""
        return f"{self.module}:{self.role.value}"

    @property
    def is_weight(self) -> bool:
        """Whether the tensor is a parameter rather than an activation."""
        return self.role is SiteRole.WEIGHT


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteModule:
    """The unit of one measurement: sites that are quantized together."""

    name: str
    kind: Kind
    role: ModuleRole
    path: str
    """Dotted path of the torch module the operation runs in."""
    call: int
    """Which operation of this kind inside ``path`` (products only; 0 otherwise)."""
    index: int
    """Place in execution order, from 0."""
    block: str
    """Dotted path of the repeated block it belongs to (``""`` if none)."""
    stage: str
    """Dotted path of the stage it belongs to (``""`` if none)."""
    depth: float
    """Relative depth, 0 (first) to 1 (last)."""
    heads: int | None
    params: int
    """Number of weights; 0 for products."""
    macs: int
    """Multiply-accumulates of one image."""
    weight_shape: tuple[int, ...]
    """Shape of the (slice of the) weight, `(O, I, ...)`; empty for products."""
    sites: tuple[Site, ...]
    weight: str | None = None
    """Name of the parameter."""
    derived_weight: bool = False
    """Whether the model computes the weight from the parameter (weight standardization)."""
    channels: tuple[int, ...] | None = None
    """Output channels of the weight that belong to this module; None means all."""

    @property
    def weight_site(self) -> Site | None:
        """The weight's site, if the module has a weight."""
        return next((site for site in self.sites if site.is_weight), None)

    @property
    def activation_sites(self) -> tuple[Site, ...]:
        """The sites whose tensors depend on the image."""
        return tuple(site for site in self.sites if not site.is_weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncovered:
    """A parameter or operation that gets no quantizer, and why."""

    name: str
    operation: str
    reason: str
    params: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCatalog:
    """All modules of a model in execution order, and what was left out."""

    modules: tuple[SiteModule, ...]
    uncovered: tuple[Uncovered, ...] = ()

    def __len__(self) -> int:
        return len(self.modules)

    def __iter__(self) -> Iterator[SiteModule]:
        return iter(self.modules)

    def __getitem__(self, name: str) -> SiteModule:
        """The module of that name.

        Raises:
            SiteMismatchError: no such module; the nearest names are listed.
        """
        for module in self.modules:
            if module.name == name:
                return module
        near = get_close_matches(name, [m.name for m in self.modules], n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else "."
        raise SiteMismatchError(f"The model has no module {name!r}{hint}")

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites, in execution order."""
        return tuple(site for module in self.modules for site in module.sites)

    @property
    def digest(self) -> str:
        """16 hex digits over names, roles and shapes: equal for equal architectures."""
        text = "\n".join(f"{m.name}|{m.role.value}|{m.weight_shape}" for m in self.modules)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
