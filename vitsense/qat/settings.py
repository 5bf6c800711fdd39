"""How a plan's sites are quantized in training."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from vitsense.settings import Granule


class WeightMethod(Enum):
    """Where the step of a weight comes from."""

    LEARNED = "lsq"
    """Learned by gradient descent (LSQ)."""
    STATISTIC = "statsq"
    """Twice the mean absolute weight, never learned (StatsQ)."""


class StepGradient(Enum):
    """The factor on the gradient of a learned step (`vitsense.qat.quantizers` has the formulas)."""

    LSQ = "lsq"
    """1 / sqrt(N * Qp)."""
    MODULE = "module"
    """1 / sqrt(Qp * sum |w|) for weights, LSQ's for activations (the paper's)."""
    NONE = "none"
    """1."""


class Offsets(Enum):
    """Which activations are unsigned with a learned offset (LSQ+)."""

    NEVER = "never"
    ONE_SIDED = "one_sided"
    """Those that reach far less below zero than above, as after GELU."""
    ALWAYS = "always"
    """All that have negative values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QatSettings:
    """Everything that decides how a prepared model computes, beside the plan's bits."""

    weights: WeightMethod = WeightMethod.LEARNED
    step_gradient: StepGradient = StepGradient.MODULE
    offsets: Offsets = Offsets.ONE_SIDED
    weight_granularity: Granule | None = None
    """One step per output channel or per tensor; None: as the plan says, else per channel."""
    per_head: bool | None = None
    """One step per attention head for the weights of q, k and v and for the operands of attention
    products; None: as the plan's ``quantization.per_head`` says, else not."""
    share_inputs: bool = False
    """Whether q, k and v of one projection round their common input with one step (cheaper: it is
    rounded once) where their bits are equal."""
