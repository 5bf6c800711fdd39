"""The files of a training: ``<run>/qat/<name>/``, their names and schemas. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsense.errors import UserInputError
from vitsense.runfolder import atomic_write, json_text, read_json

QAT_SCHEMA = "vitsense.qat/1"
"""Schema of ``qat.json``; a larger number after the slash is a newer version's."""

FOLDER = "qat"
"""Folder of a run that holds its trainings."""


@dataclass(frozen=True, slots=True)
class TrainingFolder:
    """The folder of one training.

    ``qat.json`` says what was done and what came out; ``metrics.jsonl`` holds a row per logged
    step, evaluation and look at the weights (its ``kind``); ``movement.csv`` how each module's
    weight moved; ``sensitivities.csv`` what each module alone costs before and after;
    ``weights.npz`` histograms of latent weights; ``last.safetensors`` and ``best.safetensors`` the
    trained model; ``plan.json`` the plan it was trained for; ``resume.pt`` what an interrupted
    training needs.
    """

    path: Path

    @property
    def name(self) -> str:
        """Name of the training."""
        return self.path.name

    @classmethod
    def at(cls, path: Path) -> TrainingFolder:
        """The folder ``path``, made if it is not there.

        Raises:
            UserInputError: it cannot be made.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserInputError(
                f"The folder {path} cannot be made ({error.strerror}); choose another with --out."
            ) from error
        return cls(path)

    @classmethod
    def all_in(cls, run: Path) -> list[TrainingFolder]:
        """The trainings of a run, by name."""
        return [cls(path.parent) for path in sorted((run / FOLDER).glob("*/qat.json"))]

    @property
    def plan_path(self) -> Path:
        """The plan of the training, whatever has become of the run's own."""
        return self.path / "plan.json"

    @property
    def run_path(self) -> Path | None:
        """The folder of the run that the training belongs to; None outside of one."""
        run = self.path.parent.parent
        inside = self.path.parent.name == FOLDER and (run / "run.json").is_file()
        return run if inside else None

    @property
    def another(self) -> str:
        """The option that puts a training elsewhere."""
        return "--out" if self.run_path is None else "--name"

    @property
    def started(self) -> bool:
        """Whether a training was begun here."""
        return (self.path / "qat.json").is_file()

    def read_record(self) -> dict[str, Any]:
        """``qat.json``.

        Raises:
            UserInputError: it is damaged.
            SchemaVersionError: a newer version wrote it.
        """
        return read_json(self.path / "qat.json", QAT_SCHEMA)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Replace ``qat.json``."""
        atomic_write(self.path / "qat.json", json_text({"schema": QAT_SCHEMA, **record}))

    def append_metric(self, row: Mapping[str, Any]) -> None:
        """Add a row to ``metrics.jsonl``.

        Raises:
            UserInputError: the disk is full or the file cannot be written.
        """
        path = self.path / "metrics.jsonl"
        line = json.dumps(row, separators=(",", ":")) + "\n"
        try:
            with path.open("ab") as stream:
                stream.write(line.encode())
        except OSError as error:
            raise UserInputError(
                f"{path} cannot be written ({error.strerror}); free space, then continue with "
                "--resume."
            ) from error

    def metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Rows of ``metrics.jsonl``, of one kind; a line torn by a crash is left out."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return []
        rows: list[dict[str, Any]] = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return [row for row in rows if kind is None or row.get("kind") == kind]

    def cut_metrics(self, step: int) -> None:
        """Forget rows after ``step``: the resumed training writes them again."""
        kept = [row for row in self.metrics() if row.get("step", 0) <= step]
        text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in kept)
        atomic_write(self.path / "metrics.jsonl", text)


def training_path(run: Path, name: str) -> Path:
    """Where a training of a run lies.

    Raises:
        UserInputError: the name cannot be a folder's.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise UserInputError(
            f"--name is {name!r}: use letters, digits, dots, dashes and underscores."
        )
    return run / FOLDER / name
