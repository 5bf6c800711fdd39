"""What the report of a training by itself says, as plain data: the content of ``training.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vitsense.report.document import ModelPart

TRAINING_SCHEMA = "vitsense.training/1"
"""Schema of ``training.json``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingDocument:
    """A training, or an ablation, that belongs to no run."""

    title: str
    question: str
    warnings: tuple[str, ...]
    models: tuple[ModelPart, ...]
    """The one that was trained."""
    method: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    words: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"schema": TRAINING_SCHEMA, **asdict(self)}
