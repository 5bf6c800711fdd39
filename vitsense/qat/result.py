"""What a training leaves behind: its log, its record, and how weights moved."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vitsense import provenance
from vitsense.errors import InputMissingError
from vitsense.models import LoadedModel
from vitsense.qat.looks import WeightFacts, histogram_arrays, movement_rows
from vitsense.qat.request import QatRequest
from vitsense.qat.sensitivities import ModuleDivergence, sensitivity_rows
from vitsense.qat.training_set import TrainingSet
from vitsense.qat.worth import Worth, analysis_of, decline, worth_of
from vitsense.runfolder import atomic_write
from vitsense.sensitivity.interval import Interval
from vitsense.trainings import TrainingFolder

if TYPE_CHECKING:
    from vitsense.qat.engine import Engine


class TrainingLog:
    """Writes the rows and tables of a training; silent in all processes but the first."""

    def __init__(self, folder: TrainingFolder, *, writes: bool, board: bool = False) -> None:
        self._folder = folder
        self._writes = writes
        self._board = _tensorboard(folder) if board and writes else None
        self._arrays: dict[str, Any] = {}

    def write(self, row: dict[str, Any]) -> None:
        """Add a row to ``metrics.jsonl``, and its numbers to TensorBoard."""
        if not self._writes:
            return
        self._folder.append_metric(row)
        if self._board is not None:
            for key, value in row.items():
                if isinstance(value, (int, float)) and key not in ("step", "epoch"):
                    self._board.add_scalar(f"{row['kind']}/{key}", value, row["step"])

    def cut(self, step: int) -> None:
        """Forget rows after ``step``; with 0, all of them."""
        if self._writes:
            self._folder.cut_metrics(step or -1)

    def histograms(self, moment: str, facts: Mapping[str, WeightFacts]) -> None:
        """Add the histograms of a moment to ``weights.npz``."""
        path = self._folder.path / "weights.npz"
        if path.is_file():
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                self._arrays = {k: stored[k] for k in stored.files if moment != k.split("|")[0]}
        self._arrays |= histogram_arrays(moment, facts)
        buffer = BytesIO()
        np.savez_compressed(buffer, **self._arrays)
        atomic_write(path, buffer.getvalue())

    def movement(
        self,
        before: Mapping[str, WeightFacts],
        after: Mapping[str, WeightFacts],
        shares: Mapping[str, float],
    ) -> None:
        """Write ``movement.csv``; nothing where no weight is rounded."""
        frame = pd.DataFrame(movement_rows(before, after, shares))
        if frame.empty:
            return
        atomic_write(self._folder.path / "movement.csv", frame.to_csv(index=False))

    def sensitivities(
        self, before: Mapping[str, ModuleDivergence], after: Mapping[str, ModuleDivergence]
    ) -> dict[str, Any]:
        """Write ``sensitivities.csv``; gives their sums for the record."""
        rows = sensitivity_rows(before, after)
        atomic_write(
            self._folder.path / "sensitivities.csv", pd.DataFrame(rows).to_csv(index=False)
        )
        sums = {key: sum(row[key] for row in rows) for key in ("kl_before", "kl_after")}
        return {"sensitivity": {"images": rows[0]["n"] if rows else 0, **sums}}

    def close(self) -> None:
        """Release TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def _tensorboard(folder: TrainingFolder) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputMissingError(
            "--tensorboard needs the tensorboard package: pip install tensorboard."
        ) from error
    return SummaryWriter(str(folder.path / "tensorboard"))


def first_record(
    request: QatRequest, model: LoadedModel, images: TrainingSet, steps: int, command: list[str]
) -> dict[str, Any]:
    """``qat.json`` before anything is measured."""
    plan, recipe = request.plan, request.recipe
    teacher = images.teacher
    bank = None if images.bank is None else images.bank.header.to_json()
    return {
        "status": "running",
        "settings": request.to_json(),
        "recipe": recipe.to_json(),
        "fingerprint": {
            "weights": model.digest,
            "plan": provenance.digest([repr(sorted(plan.bits.items())).encode()]),
            "training images": images.digest,
            "evaluation images": images.evaluation.digest,
        },
        "model": {
            "key": model.key,
            "name": model.resolved.name,
            "weights_digest": model.digest,
            "num_classes": model.num_classes,
            "params": model.params,
        },
        "origin": {
            "name": request.model.name,
            "checkpoint": None
            if request.model.checkpoint is None
            else str(request.model.checkpoint),
            "weights": request.model.weights.value,
            "eval_calibration": request.eval_calibration,
        },
        "plan": {
            "budget": plan.budget,
            "bits": plan.bits,
            "cost": plan.cost,
            "predicted": plan.predicted,
            "measured": plan.measured,
        },
        "data": {
            "spec": images.reader.source.spec,
            "kind": images.reader.source.kind,
            "images": len(images.numbers),
            "crops": images.policy.to_json(),
        },
        "evaluation": {
            "spec": images.evaluation.source.spec,
            "images": len(images.evaluation),
            "labelled": images.evaluation.labelled,
        },
        "teacher": {"bank": bank} if bank else {"live": None if teacher is None else teacher.key},
        "steps": steps,
        "provenance": {"versions": provenance.versions(), "machine": provenance.machine()},
        "commands": [command],
    }


def finished(engine: Engine, folder: TrainingFolder) -> dict[str, Any]:
    """What is known at the end: best and last accuracy, time, oscillation, gradient ratio."""
    position = engine.position
    rows = folder.metrics("train") if engine.accelerator.is_main_process else []
    ratios = [row["gradient_ratio"] for row in rows if row.get("gradient_ratio")]
    start = next((r for r in folder.metrics("evaluation") if r["step"] == 0), None)
    return {
        "start": start,
        "best": position.best,
        "last": position.last,
        "seconds": round(position.seconds, 2),
        "crops_per_second": round(
            engine.steps * engine.recipe.batch / max(position.seconds, 1e-9), 2
        ),
        "gradient_ratio": float(np.median(ratios)) if ratios else None,
        "oscillating": engine.steadying.tracker.total_share(),
        "processes": engine.accelerator.num_processes,
        "device": str(engine.accelerator.device),
    }


def told(
    record: Mapping[str, Any],
    since_best: Interval | None,
    images: TrainingSet,
    request: QatRequest,
) -> dict[str, Any]:
    """What training was worth, in words, and what a reader must know about the numbers.

    Args:
        record: With everything that was measured.
        since_best: The last evaluation minus the best, points; None where they are the same.
        images: That were read.
        request: What was asked.
    """
    worth = worth_of(record)
    worse = worth["kind"] == Worth.WORSE.value
    warnings = [f"{worth['text']} {worth['advice']}" if worse else "", decline(since_best, record)]
    warnings += images.notes
    inside = bool(request.analyzed_evaluation)
    return {
        "worth": worth,
        "analysis": analysis_of(
            record,
            same_images=request.analyzed_evaluation == images.evaluation.digest,
            inside=inside,
        ),
        "calibration": {
            "spec": images.untrained.source.spec,
            "images": len(images.untrained),
            "as_analyzed": inside and request.analyzed_calibration == images.untrained.digest,
            "start": (
                f"Step 0 rounds to the grids that training starts from, found on "
                f"{min(request.recipe.calibration, len(images.pool))} training images; the plan "
                "without training rounds to those of the analysis. Gains count from the latter."
            ),
        },
        "warnings": [warning for warning in warnings if warning],
    }
