"""From a recipe to what steadies weights: regularizers, freezing, annealing and their schedules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vitsense.qat.freezing import ConfidenceGuidedAnnealing, IterativeFreezing
from vitsense.qat.oscillation import OscillationTracker
from vitsense.qat.prepare import QuantizedModel
from vitsense.qat.recipes import Recipe
from vitsense.qat.regularize import BinReduction, dampening_loss, obr_loss, ramp
from vitsense.qat.settings import Offsets, QatSettings, StepGradient, WeightMethod
from vitsense.settings import Granule

_REDUCTIONS = {"obr": BinReduction.SUM, "obr_mean": BinReduction.PUBLISHED}


def qat_settings(recipe: Recipe) -> QatSettings:
    """How the recipe quantizes sites; the plan decides what the recipe leaves to it."""
    granule, head = recipe.weight_granularity, recipe.per_head
    return QatSettings(
        weights=WeightMethod(recipe.weights),
        step_gradient=StepGradient(recipe.step_gradient),
        offsets=Offsets(recipe.offsets),
        weight_granularity=None if granule == "plan" else Granule(granule),
        per_head=None if head == "plan" else head == "yes",
    )


@dataclass(slots=True, kw_only=True, eq=False)
class Steadying:
    """Watches and steadies the weights of one training; all state survives a checkpoint."""

    recipe: Recipe
    tracker: OscillationTracker
    freezing: IterativeFreezing | None = None
    annealing: ConfidenceGuidedAnnealing | None = None
    _held: bool = field(default=False)

    @classmethod
    def of(cls, model: QuantizedModel, recipe: Recipe) -> Steadying:
        """What the recipe asks for, starting from the model's present weights."""
        device = next(model.parameters()).device
        tracker = OscillationTracker(model, recipe.oscillation_momentum).to(device)
        freezing = IterativeFreezing(model).to(device) if recipe.freeze else None
        annealing = ConfidenceGuidedAnnealing(recipe.anneal_range) if recipe.anneal else None
        return cls(recipe=recipe, tracker=tracker, freezing=freezing, annealing=annealing)

    def strength(self, step: int, steps: int) -> float:
        """Weight of the regularizer in a step."""
        return self.recipe.strength * ramp(step / steps, self.recipe.strength_start)

    def term(self, model: QuantizedModel, step: int, steps: int) -> Tensor | None:
        """The weighted regularizer of a step; None where there is none yet."""
        strength = self.strength(step, steps)
        if self.recipe.regularizer == "none" or strength == 0:
            return None
        if self.recipe.regularizer == "dampen":
            return strength * dampening_loss(model)
        return strength * obr_loss(model, _REDUCTIONS[self.recipe.regularizer])

    def before_step(self, model: QuantizedModel, step: int, steps: int) -> None:
        """Just before the optimizer changes the weights."""
        if self.annealing is not None and step >= (1 - self.recipe.anneal) * steps:
            self.annealing.hold(model)
            self._held = True

    def after_step(self, model: QuantizedModel, step: int, steps: int) -> None:
        """Just after the optimizer changed the weights."""
        if self.annealing is not None and self._held:
            self.annealing.release(model)
            self._held = False
        self.tracker.update(model)
        if self.freezing is not None:
            self.freezing.update(model, self.tracker, self.threshold(step, steps))

    def threshold(self, step: int, steps: int) -> float:
        """Frequency above which weights are frozen in a step: half a cosine down.

        Source: Nagel et al. 2022 (arXiv 2203.11086), section 5.1.
        """
        first, last = self.recipe.freeze_start, self.recipe.freeze
        return first + (last - first) * ramp(step / steps, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Oscillation state and frozen weights."""
        return {
            "tracker": self.tracker.state_dict(),
            "freezing": None if self.freezing is None else self.freezing.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.tracker.load_state_dict(state["tracker"])
        if self.freezing is not None:
            self.freezing.load_state_dict(state["freezing"])
