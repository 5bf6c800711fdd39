"""The training loop: one optimizer step after the other, and what must survive a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitsense.errors import MeasurementError
from vitsense.observe.finite import first_not_finite
from vitsense.progress import Progress
from vitsense.qat.batches import StepBatch
from vitsense.qat.evaluate import Answers, Evaluation, gain_row, gained, outcome_row, score
from vitsense.qat.optimize import (
    Average,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)
from vitsense.qat.prepare import QuantizedModel
from vitsense.qat.processes import (
    Accelerator,
    answers_over_processes,
    from_all_processes,
    mean_over_processes,
)
from vitsense.qat.recipes import Recipe
from vitsense.qat.resume import random_state, restore_random, save_state
from vitsense.qat.steadying import Steadying
from vitsense.qat.stopping import Stop, stop_between_steps
from vitsense.qat.teacher import Teacher
from vitsense.sensitivity.interval import Interval
from vitsense.trainings import TrainingFolder

LOG_EVERY, LOG_ROWS = 10, 20
"""Steps between two rows of the training log, and rows that a short training has if it can."""

CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 10.0, 0.02
"""Time between two checkpoints at least, and what part of the time writing them may take."""

_DIVERGED = 10.0  # mean loss of the last steps over that of guessing, ln(classes)


@dataclass(slots=True, kw_only=True)
class Position:
    """How far a training is and what it found so far."""

    step: int = 0
    best_step: int = -1
    best_score: float = -math.inf
    best: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    best_right: Tensor | None = None
    """Which images the best evaluation had right, `(n,)`."""
    last_right: Tensor | None = None
    seconds: float = 0.0

    @property
    def since_best(self) -> Interval | None:
        """The last evaluation minus the best, points, paired; None where they are the same."""
        best, last = self.best_right, self.last_right
        if best is None or last is None or self.best_step == self.last["step"]:
            return None
        return gained(last, best)


@dataclass(slots=True, kw_only=True, eq=False)
class Engine:
    """Everything one training holds in memory."""

    model: QuantizedModel
    recipe: Recipe
    steps: int
    steps_per_epoch: float
    classes: int
    teacher: Teacher
    steadying: Steadying
    evaluation: Evaluation
    accelerator: Accelerator
    folder: TrainingFolder
    progress: Progress
    untrained: Answers
    """Those of the plan without training."""
    look: Callable[[int], None]
    """Told now and then to write down oscillation and scales."""
    write: Callable[[dict[str, Any]], None]
    """Takes a row of the log."""
    checkpoint_steps: int | None = None
    position: Position = field(default_factory=Position)
    wrapped: nn.Module = field(init=False)
    optimizer: Any = field(init=False)
    average: Average | None = field(init=False)
    _losses: list[float] = field(init=False, default_factory=list)
    _saved: float = field(init=False, default_factory=time.monotonic)
    _wait: float = field(init=False, default=CHECKPOINT_SECONDS)

    def __post_init__(self) -> None:
        """Make the optimizer and hand both to Accelerate."""
        groups = parameter_groups(self.model, self.recipe)
        optimizer = torch.optim.AdamW(groups, lr=self.recipe.lr)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.average = Average(self.model, self.recipe.ema) if self.recipe.ema else None

    def run(self, batches: Iterable[StepBatch]) -> Position:
        """Train from the current position to the last step.

        Where it is the only process, it ends and keeps the step in which it is told to stop.

        Args:
            batches: Those of the remaining steps, in order.

        Raises:
            KeyboardInterrupt: it was told to stop.
            MeasurementError: the loss is not finite or grew beyond hope; the module is named.
        """
        self.progress.start(self.steps - self.position.step, self.folder.name)
        started = time.monotonic()
        before = self.position.seconds
        if self.position.step == 0:
            self._evaluate()
            self.look(0)
        # processes that stop after different steps would wait for each other for ever
        alone = self.accelerator.num_processes == 1
        with stop_between_steps(self.progress.note) if alone else nullcontext() as stop:
            for batch in batches:
                self._step(batch)
                self.position.seconds = before + time.monotonic() - started
                if self._due():
                    self._evaluate()
                    self.look(self.position.step)
                if self._checkpoint_due():
                    self.save()
                self._stop_if_asked(stop)
        return self.position

    def _stop_if_asked(self, stop: Stop | None) -> None:
        if stop is not None and stop.asked and self.position.step < self.steps:
            self.save()
            raise KeyboardInterrupt

    def _step(self, batch: StepBatch) -> None:
        recipe, step = self.recipe, self.position.step
        began = time.monotonic()
        self._train_mode()
        rate = learning_rate(recipe, step, self.steps)
        set_learning_rate(self.optimizer, rate)
        often = max(1, min(LOG_EVERY, self.steps // LOG_ROWS))
        logged = step % often == 0 or step + 1 == self.steps
        loss, row = self._backward(batch, logged=logged)
        self._check_loss(loss, batch)
        if recipe.clip:
            row["gradient"] = float(
                self.accelerator.clip_grad_norm_(self.wrapped.parameters(), recipe.clip)
            )
        self.steadying.before_step(self.model, step, self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steadying.after_step(self.model, step, self.steps)
        if self.average is not None:
            self.average.update(self.model)
        self.position.step = step + 1
        crops = recipe.batch / max(time.monotonic() - began, 1e-9)
        self.progress.advance(1, f"loss {loss:.3f}, {crops:.0f} crops/s")
        if logged:
            epoch = (step + 1) / self.steps_per_epoch
            loss = mean_over_processes(loss, self.accelerator)
            row |= {"kind": "train", "step": step + 1, "epoch": epoch, "loss": loss, "lr": rate}
            row["crops_per_second"] = crops
            self.write(row)

    def _train_mode(self) -> None:
        self.wrapped.train()
        if self.recipe.norms == "frozen":
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _backward(self, batch: StepBatch, *, logged: bool) -> tuple[float, dict[str, Any]]:
        """Gradients of the whole step; gives the task's loss and what is logged of it."""
        parts, device = self.recipe.accumulate, self.accelerator.device
        total = 0.0
        row: dict[str, Any] = {}
        for part, piece in enumerate(_pieces(batch, parts)):
            last = part == parts - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                loss = self.teacher.loss(self.wrapped, piece, device) / parts
                total += loss.item()
                if last:
                    loss, row = self._with_regularizer(loss, logged=logged)
                self.accelerator.backward(loss)
        ratio = row.pop("_regularizer_norm", None)
        if ratio is not None:
            row["gradient_ratio"] = self._ratio(ratio)
        return total, row

    def _with_regularizer(self, loss: Tensor, *, logged: bool) -> tuple[Tensor, dict[str, Any]]:
        term = self.steadying.term(self.model, self.position.step, self.steps)
        if term is None or not term.requires_grad:  # no weight is rounded yet
            return loss, {}
        row: dict[str, Any] = {}
        if logged:
            row["regularizer"] = float(term.detach())
            weights = [p for p in self.model.weight_parameters() if p.requires_grad]
            gradients = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
            row["_regularizer_norm"] = list(gradients)
        return loss + term, row

    def _ratio(self, regularizer: list[Tensor | None]) -> float:
        """Norm of the regularizer's gradient over the task's, on the weights it acts on."""
        weights = [p for p in self.model.weight_parameters() if p.requires_grad]
        ours, task = 0.0, 0.0
        for parameter, gradient in zip(weights, regularizer, strict=True):
            if gradient is not None and parameter.grad is not None:
                ours += float(gradient.square().sum())
                task += float((parameter.grad - gradient).square().sum())
        return math.sqrt(ours / task) if task else 0.0

    def _check_loss(self, loss: float, batch: StepBatch) -> None:
        step = self.position.step + 1
        if not math.isfinite(loss):
            raise MeasurementError(
                f"The loss is {loss} at step {step}: {self._culprit(batch)}. The training "
                "diverged; use a smaller learning rate (--lr), warmup or clip=1. The last "
                "checkpoint is kept."
            )
        self._losses = [*self._losses[-19:], loss]
        mean = sum(self._losses) / len(self._losses)
        if len(self._losses) == 20 and mean > _DIVERGED * math.log(max(self.classes, 2)):
            raise MeasurementError(
                f"The loss is {mean:.3g} over the last 20 steps (step {step}), guessing would give "
                f"{math.log(self.classes):.3g}: the training diverged; use a smaller learning rate "
                "(--lr), warmup or clip=1."
            )

    def _culprit(self, batch: StepBatch) -> str:
        """The parameter or the module that is not finite."""
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                return f"the parameter {name!r} is not finite"
        path = first_not_finite(self.model, batch.images.to(self.accelerator.device))
        name = (path or "").removeprefix("model.")
        return f"the first output that is not finite is of {name or 'the loss itself'!r}"

    def _due(self) -> bool:
        if self.position.step == self.steps:
            return True
        every = round(self.recipe.evaluate * self.steps_per_epoch)
        return every > 0 and self.position.step % every == 0

    def _evaluate(self) -> None:
        answers = self.measured()
        row = outcome_row(answers.outcome) | gain_row(answers, self.untrained)
        position = self.position
        position.last, position.last_right = {"step": position.step, **row}, answers.right
        found = score(answers.outcome)
        if position.step and (found > position.best_score or position.best_step < 0):
            position.best_step, position.best_score = position.step, found
            position.best, position.best_right = dict(position.last), answers.right
            self._write_weights("best.safetensors")
        epoch = position.step / self.steps_per_epoch
        self.write({"kind": "evaluation", "step": position.step, "epoch": epoch, **row})

    def measured(self) -> Answers:
        """What the model (its average, where there is one) says about all evaluation images."""
        with self._averaged():
            own = self.evaluation.answers(self.model)
        return answers_over_processes(own, self.accelerator)

    def _averaged(self) -> Any:
        return nullcontext() if self.average is None else _Swapped(self.model, self.average.state)

    def _checkpoint_due(self) -> bool:
        if self.checkpoint_steps is not None:
            return self.position.step % self.checkpoint_steps == 0
        if self.accelerator.num_processes > 1:  # clocks differ: processes must agree
            return self._due()
        return time.monotonic() - self._saved >= self._wait

    def save(self) -> None:
        """Write the checkpoint to resume from.

        Raises:
            UserInputError: it cannot be written; the one before is kept whole.
        """
        began = time.monotonic()
        randoms = from_all_processes(random_state(self.accelerator.device))
        if not self.accelerator.is_main_process:
            return
        position = self.position
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state,
            "steadying": self.steadying.state_dict(),
            "random": randoms,
            "losses": self._losses,
            "position": {key: getattr(position, key) for key in Position.__slots__},
        }
        save_state(self.folder.path / "resume.pt", state)
        self._saved = time.monotonic()
        self._wait = max(CHECKPOINT_SECONDS, (self._saved - began) / CHECKPOINT_SHARE)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `save` wrote; the model itself was restored before."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load(state["average"])
        self.steadying.load_state_dict(state["steadying"])
        self._losses = list(state["losses"])
        self.position = Position(**state["position"])
        restore_random(state["random"][self.accelerator.process_index], self.accelerator.device)

    def write_last(self) -> None:
        """Write the trained model."""
        self._write_weights("last.safetensors")

    def _write_weights(self, name: str) -> None:
        if not self.accelerator.is_main_process:
            return
        from safetensors.torch import save

        from vitsense.runfolder import atomic_write

        state = self.model.state_dict() if self.average is None else self.average.state
        own = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
        atomic_write(self.folder.path / name, save(own))


class _Swapped:
    """The model holds other values for the length of a context."""

    def __init__(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        self._model = model
        self._state = state
        self._own: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        self._own = {k: v.detach().clone() for k, v in self._model.state_dict().items()}
        self._model.load_state_dict(self._state)

    def __exit__(self, *_: object) -> None:
        self._model.load_state_dict(self._own)


def _pieces(batch: StepBatch, parts: int) -> list[StepBatch]:
    """The batch in equal parts."""
    if parts == 1:
        return [batch]

    def split(tensor: Tensor | None) -> list[Tensor | None]:
        return [None] * parts if tensor is None else list(tensor.chunk(parts))

    columns = [
        split(tensor)
        for tensor in (
            batch.images, batch.labels, batch.teacher_images, batch.classes, batch.probabilities
        )
    ]  # fmt: skip
    names = ("images", "labels", "teacher_images", "classes", "probabilities")
    return [StepBatch(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]
