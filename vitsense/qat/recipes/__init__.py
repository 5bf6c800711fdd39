"""Recipes: everything that decides a training, as versioned data files that can be overridden."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from importlib import resources
from typing import Any

from vitsense.errors import SchemaVersionError, UserInputError

RECIPE_SCHEMA = "vitsense.recipe/1"
"""Schema of a recipe; a larger number after the slash is a newer version's."""


def _one_of(default: str, *others: str) -> Any:
    return field(default=default, metadata={"choices": (default, *others)})


def _from(default: float, low: float, high: float = float("inf")) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All values of a training; a recipe file names those that differ from these defaults."""

    name: str = "own"
    version: int = 1
    about: str = ""
    source: str = ""

    epochs: float = _from(10.0, 0)
    """Passes over the training images, counted in crops: `epochs * images` crops are seen."""
    batch: int = _from(64, 1)
    """Crops of one optimizer step, over all processes."""
    crops: int = _from(1, 1)
    """Crops of one image in a step; ``batch`` holds ``batch / crops`` images."""
    accumulate: int = _from(1, 1)
    """Parts in which a step's batch is computed, to save memory."""

    lr: float = _from(5e-4, 0)
    """Highest learning rate (AdamW)."""
    min_lr: float = _from(0.0, 0)
    """Learning rate at the end of the cosine."""
    warmup: float = _from(0.0, 0, 1)
    """Share of the steps in which the learning rate rises linearly."""
    scale_lr: float = _from(1.0, 0)
    """Learning rate of quantizer parameters, relative to ``lr``."""
    weight_decay: float = _from(1e-4, 0)
    norm_weight_decay: float = _from(0.0, 0)
    """Of biases, norms and other one-dimensional parameters."""
    scale_weight_decay: float = _from(0.0, 0)
    """Of quantizer parameters."""
    clip: float = _from(0.0, 0)
    """Largest norm of the gradient; 0 turns clipping off."""
    ema: float = _from(0.0, 0, 1)
    """Decay per step of an average of the parameters, which is then evaluated; 0 is off."""
    norms: str = _one_of("train", "frozen")
    """Whether batch norms go on estimating their statistics."""

    teacher: str = _one_of("self", "none")
    """``self``: the full-precision model; ``none``: labels only. A bank or --teacher overrides."""
    hard: float = _from(0.0, 0, 1)
    """Share of the hard-label loss."""
    crop_scale: tuple[float, float] | None = None
    """Least and largest share of the area; None: 0.08,1, for generated characters 0.7,1."""
    flip: float | None = None
    """Probability of mirroring; None: 0.5, for generated characters 0."""

    weights: str = _one_of("lsq", "statsq")
    """Where the step of a weight comes from: learned, or twice the mean absolute weight."""
    step_gradient: str = _one_of("lsq", "module", "none")
    """``module``: the paper's 1/sqrt(Qp * |w|_1) for weights; ``lsq``: 1/sqrt(N * Qp). AdamW
    divides a gradient by its own size, so a factor matters little with it; ``scale_lr`` does."""
    offsets: str = _one_of("one_sided", "never", "always")
    """Which activations get a learned offset (LSQ+)."""
    weight_granularity: str = _one_of("plan", "per_channel", "per_tensor")
    per_head: str = _one_of("plan", "yes", "no")
    """One step per attention head; ``plan``: as the plan says."""
    calibration: int = _from(128, 1)
    """Training images from which the quantizers are initialised."""

    regularizer: str = _one_of("none", "obr", "obr_mean", "dampen")
    """``obr_mean`` is the reduction of the published code, kept for comparison."""
    strength: float = _from(0.0, 0)
    """Weight of the regularizer at the end of its schedule."""
    strength_start: float = _from(0.25, 0, 1)
    """Share of the training after which the weight rises from 0 along half a cosine."""
    freeze: float = _from(0.0, 0, 1)
    """Oscillation frequency above which a weight is frozen at the end; 0 turns freezing off."""
    freeze_start: float = _from(0.04, 0, 1)
    """The same at the beginning; the threshold falls along half a cosine."""
    oscillation_momentum: float = _from(0.001, 0, 1)
    """Weight of the newest step in a weight's oscillation frequency."""
    anneal: float = _from(0.0, 0, 1)
    """Share of the training, at its end, in which confident weights are frozen; 0 is off."""
    anneal_range: float = _from(0.005, 0, 0.5)
    """Weights farther than this from a rounding threshold, in steps, are confident."""

    schedule: str = _one_of("both", "activations_first")
    """``activations_first``: weights stay in full precision and are quantized at the end."""
    mimic: float = _from(0.0, 0)
    """Weight of the distance to the teacher's features (principal components)."""

    evaluate: float = _from(1.0, 0)
    """Epochs between two evaluations; 0: only at the end."""
    precision: str = _one_of("no", "bf16", "fp16")
    seed: int = _from(0, 0)

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            UserInputError: naming the key, the value and what is allowed.
        """
        for spec in fields(self):
            _check(spec.name, getattr(self, spec.name), spec.metadata)
        if self.batch % (self.crops * self.accumulate):
            raise UserInputError(
                f"batch is {self.batch}: it must be a multiple of crops x accumulate "
                f"({self.crops} x {self.accumulate})."
            )
        if self.epochs == 0:
            raise UserInputError("epochs is 0: nothing would be trained; use 1 or more.")
        if self.lr == 0:
            raise UserInputError("lr is 0: nothing would be learned; use a number above 0.")
        if self.teacher == "none" and self.hard == 0:
            raise UserInputError(
                "teacher is none and hard is 0: there is nothing to learn from; set hard=1 for "
                "labels only, or teacher=self."
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"schema": RECIPE_SCHEMA, **plain}

    def differing(self, other: Mapping[str, Any]) -> list[str]:
        """Keys whose value is not as in ``other`` (a `to_json`), but for words about the recipe."""
        mine, words = self.to_json(), {"about", "source", "schema"}
        return sorted(
            k for k in mine.keys() | other.keys() if k not in words and mine.get(k) != other.get(k)
        )


def _check(key: str, value: Any, limits: Mapping[str, Any]) -> None:
    choices = limits.get("choices")
    if choices is not None and value not in choices:
        raise UserInputError(f"{key} is {value!r}: use one of {', '.join(map(str, choices))}.")
    if "low" in limits:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserInputError(f"{key} is {value!r}: a number is needed.")
        low, high = limits["low"], limits["high"]
        if not low <= value <= high or value == float("inf"):
            upper = f" and at most {high:g}" if high != float("inf") else ""
            raise UserInputError(f"{key} is {value}: it must be finite, at least {low:g}{upper}.")


def recipe_names() -> list[str]:
    """The recipes that come with vitsense."""
    files = resources.files(__package__).iterdir()
    return sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json"))


def load_recipe(name: str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """A recipe by name, with values from the command line.

    Args:
        name: One of `recipe_names`.
        overrides: Key to text, as of ``--set key=value``.

    Raises:
        UserInputError: no such recipe or key, or a value that is not allowed.
    """
    if name not in recipe_names():
        known = ", ".join(recipe_names())
        raise UserInputError(f"There is no recipe {name!r}; there are {known}.")
    text = resources.files(__package__).joinpath(f"{name}.json").read_text(encoding="utf-8")
    return overridden(recipe_from_json(json.loads(text), name), overrides or {})


def recipe_from_json(data: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from a file's values.

    Raises:
        SchemaVersionError: a newer version wrote it.
        UserInputError: an unknown key, or a value that is not allowed.
    """
    values = dict(data)
    schema = values.pop("schema", None)
    if schema != RECIPE_SCHEMA:
        raise SchemaVersionError(f"{where} has the schema {schema!r}; expected {RECIPE_SCHEMA!r}.")
    for key in values:
        _known(key)
    if values.get("crop_scale") is not None:
        values["crop_scale"] = tuple(values["crop_scale"])
    return Recipe(**values)


def overridden(recipe: Recipe, overrides: Mapping[str, str]) -> Recipe:
    """The recipe with other values, given as text.

    Raises:
        UserInputError: no such key, or a value that is not allowed.
    """
    kinds = {spec.name: str(spec.type) for spec in fields(Recipe)}
    values = {}
    for key, text in overrides.items():
        _known(key)
        values[key] = _value(key, text.strip(), kinds[key])
    return replace(recipe, **values)


def _value(key: str, text: str, kind: str) -> Any:
    if "None" in kind and text.lower() in ("none", "auto"):
        return None
    try:
        if kind.startswith("tuple"):
            low, high = (float(part) for part in text.split(","))
            return (low, high)
        if kind.startswith("int"):
            return int(text)
        return float(text) if kind.startswith("float") else text
    except ValueError as error:
        wanted = {"t": "two numbers with a comma", "i": "a whole number"}.get(kind[0], "a number")
        raise UserInputError(f"{key} is {text!r}: write {wanted}.") from error


def _known(key: str) -> None:
    names = [spec.name for spec in fields(Recipe)]
    if key not in names:
        near = get_close_matches(key, names, n=3, cutoff=0.4)
        hint = f" Near: {', '.join(near)}." if near else f" There are {', '.join(names)}."
        raise UserInputError(f"A recipe has no value {key!r}.{hint}")
