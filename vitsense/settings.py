"""The settings of a run: frozen, checked when made, written into ``run.json``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from vitsense.errors import UserInputError, refuse_all
from vitsense.formats import ALLOWED_BITS, format_of

HESSIAN_PROBES = 32
"""Random vectors in mode hessian, at least; every eight images have one at least."""


class Part(Enum):
    """Which sites of a module are quantized in a measurement."""

    BOTH = "both"
    WEIGHTS = "weights"
    ACTIVATIONS = "activations"


class SweepMode(Enum):
    """How the cells of the sensitivity table are filled."""

    EXACT = "exact"
    """Every module in every format on every image."""
    ADAPTIVE = "adaptive"
    """Rounds of images; a module and format that is known well enough sees no more."""
    FAST = "fast"
    """Divergences estimated from one forward and one backward pass; drops are not measured."""
    HESSIAN = "hessian"
    """Divergences estimated from traces of Hessians, as HAWQ-V2 does; for comparison."""


class By(Enum):
    """Which modules (or sites) are quantized together as one group."""

    MODULE = "module"
    ROLE = "role"
    """FFN, MHSA, Q, K, V, projection, ...: the groups of the paper."""
    BLOCK = "block"
    STAGE = "stage"
    HEAD = "head"
    """The slices of one attention head."""
    SITE = "site"
    """Single tensors: the weight or an input of a module."""


class Direction(Enum):
    """What a group is compared with."""

    ALONE = "one-at-a-time"
    """Only the group is quantized."""
    SPARED = "leave-one-out"
    """Everything is quantized but the group."""


class WeightSource(Enum):
    """Where the weights of a model come from."""

    HUB = "hub"
    FILE = "file"
    RANDOM = "random"
    ZOO = "zoo"
    FACTORY = "factory"


class Granule(Enum):
    """Granularity of weight scales."""

    TENSOR = "per_tensor"
    CHANNEL = "per_channel"


class RangeChoice(Enum):
    """How ranges are chosen (`vitsense.numerics.ranges` says what they mean)."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"


class ProbsGrid(Enum):
    """How integer formats hold attention probabilities."""

    UNIFORM = "uniform"
    """Evenly spaced, as every other activation."""
    LOG2 = "log2"
    """Powers of two (`vitsense.numerics.log2`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """A model as the user asked for it."""

    name: str
    checkpoint: Path | None = None
    weights: WeightSource = WeightSource.HUB

    def __post_init__(self) -> None:
        """Settle that a checkpoint means weights from a file."""
        if self.checkpoint is not None and self.weights is WeightSource.HUB:
            object.__setattr__(self, "weights", WeightSource.FILE)
        if self.checkpoint is not None and self.weights is WeightSource.RANDOM:
            raise UserInputError(
                f"{self.name}: --checkpoint and --weights random contradict each other; drop one."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantSettings:
    """How tensors are quantized when a module is measured."""

    weight_granularity: Granule = Granule.CHANNEL
    weight_range: RangeChoice = RangeChoice.MSE
    activation_range: RangeChoice = RangeChoice.MSE
    attention_probs: ProbsGrid = ProbsGrid.UNIFORM


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyzeSettings:
    """Everything that decides the numbers of a run."""

    model: ModelRequest
    compares: tuple[ModelRequest, ...] = ()
    data: str | None = None
    """None: the generated glyphs."""
    calibration_data: str | None = None
    images: int = 1000
    """Evaluation images."""
    calibration: int = 128
    """Calibration images."""
    bits: tuple[int, ...] = (8, 6, 4, 3, 2)
    """Widths of integer formats; not looked at where ``formats`` are given."""
    formats: tuple[str, ...] = ()
    """Names of formats, instead of ``bits``."""
    parts: tuple[Part, ...] = (Part.BOTH,)
    by: tuple[By, ...] | None = None
    """How modules are grouped; empty: no groups are measured. None: by role, except in modes that
    estimate, where measuring groups would cost more than everything else."""
    directions: tuple[Direction, ...] = (Direction.ALONE, Direction.SPARED)
    group_formats: tuple[str, ...] = ()
    """Formats in which groups are measured; empty: 4 bits and the next narrower width."""
    quant: QuantSettings = QuantSettings()
    mode: SweepMode = SweepMode.ADAPTIVE
    tolerance: float = 0.5
    """Adaptive: a drop is known when its interval is this narrow either way, percentage points."""
    confidence: float = 0.95
    """Adaptive: of the intervals that decide."""
    estimates: bool = True
    """Whether the estimates of mode fast are made beside what is measured, to be compared."""
    hessian_probes: int | None = None
    """Random vectors for traces of Hessians; None: 32 in mode hessian, none in others."""
    budget: str = "avg-bits=4"
    refine: int = 3
    """Steps by which the recommended plan is improved as a whole; 0: it stays as solved."""
    refine_images: int = 64
    """Calibration images on which exchanges are measured at most; others compare plans."""
    profile: Path | None = None
    """Latency profile of a device; needed for a budget of ``latency-ms``."""
    batch: int | None = None
    """Images per micro-batch; None: chosen from the memory the model needs."""
    memory: int = 2 * 2**30
    """Bytes that replay may remember of one micro-batch."""
    budget_time: float | None = None
    """Seconds after which measuring stops with what it has; None: never."""
    device: str = "auto"
    seed: int = 0
    strict: bool = False

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            UserInputError: some are out of range; all of them are said.
        """
        refuse_all([*self._wrong_widths(), *self._wrong_numbers(), *self._wrong_stopping()])

    def _wrong_widths(self) -> Iterator[str]:
        wrong = [b for b in self.bits if b not in ALLOWED_BITS]
        if wrong or not self.bits:
            allowed = ", ".join(map(str, ALLOWED_BITS))
            seen = ", ".join(map(str, wrong)) or "nothing"
            yield f"--bits has {seen}: use some of {allowed}, for example 8,6,4."
        if len(set(self.bits)) != len(self.bits):
            yield f"--bits names a width twice: {self.bits}."
        names = [format_of(name).name for name in self.formats]
        if len(set(names)) != len(names):
            yield f"--formats names a format twice: {', '.join(names)}."
        for name in self.group_formats:
            format_of(name)
        if not self.directions:
            yield "--direction is empty: use one-at-a-time, leave-one-out or both."
        if not self.parts:
            yield "--parts is empty: use both, weights or activations."

    def _wrong_numbers(self) -> Iterator[str]:
        for name, value, least in (
            ("--images", self.images, 1),
            ("--calibration", self.calibration, 1),
            ("--batch-size", 1 if self.batch is None else self.batch, 1),
            ("--seed", self.seed, 0),
            ("--memory", self.memory, 1),
            ("--refine", self.refine, 0),
            ("--refine-images", self.refine_images, 1),
            ("--hessian-probes", 2 if self.hessian_probes is None else self.hessian_probes, 2),
        ):
            if value < least:
                yield f"{name} is {value}: it must be at least {least}."
        if self.budget.startswith("latency-ms") and self.profile is None:
            yield (
                f"--budget is {self.budget}: latency needs a profile of the device; measure one "
                "with vitsense profile and name it with --profile FILE."
            )

    def _wrong_stopping(self) -> Iterator[str]:
        if not 0 < self.tolerance <= 100:
            yield (
                f"--tolerance is {self.tolerance}: it is in percentage points, above 0 and up to "
                "100, for example 0.5."
            )
        if not 0.5 <= self.confidence < 1:
            yield (
                f"--confidence is {self.confidence}: it must be at least 0.5 and below 1, for "
                "example 0.95."
            )

    @property
    def format_names(self) -> tuple[str, ...]:
        """Names of the formats that are measured, as they were given."""
        return self.formats or tuple(f"int{bits}" for bits in self.bits)

    @property
    def planned_part(self) -> Part:
        """What plans are made of: weights and activations, or the one part measured first."""
        return Part.BOTH if Part.BOTH in self.parts else self.parts[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits of the integer formats among them."""
        forms = map(format_of, self.format_names)
        return tuple(form.bits for form in forms if form.is_integer)

    @property
    def groupings(self) -> tuple[By, ...]:
        """How modules are grouped, settled."""
        if self.by is not None:
            return self.by
        return () if self.estimating else (By.ROLE,)

    @property
    def estimating(self) -> bool:
        """Whether single modules are estimated and not measured."""
        return self.mode in (SweepMode.FAST, SweepMode.HESSIAN)

    @property
    def probes(self) -> int:
        """Random vectors for traces of Hessians; 0: none are wanted."""
        if self.hessian_probes is not None:
            return self.hessian_probes
        return HESSIAN_PROBES if self.mode is SweepMode.HESSIAN else 0

    @property
    def group_format_names(self) -> tuple[str, ...]:
        """Formats in which groups are measured: of the measured ones nearest to 4 bits, two."""
        if self.group_formats:
            return tuple(format_of(name).name for name in self.group_formats)
        forms = sorted(
            (form for form in map(format_of, self.format_names) if form.bits <= 4),
            key=lambda form: (-form.bits, not form.is_integer, form.effective_bits),
        )
        return tuple(form.name for form in forms[:2])

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``run.json``."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    def differing(self, other: dict[str, Any]) -> list[str]:
        """Names of settings that are not as in ``other`` (a `to_json` of an earlier run).

        Left out is what changes no measured number (budget, search, device), or changes it only by
        the rounding of another batch size (memory), or decides only how much is measured (time,
        estimates).
        """
        free = {"budget", "profile", "refine", "refine_images", "device", "memory"}
        free |= {"budget_time", "estimates"}
        mine = self.to_json()
        return sorted(
            key
            for key in mine.keys() | other.keys()
            if key not in free and mine.get(key) != other.get(key)
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
