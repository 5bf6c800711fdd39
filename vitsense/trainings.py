"""The files of a training: ``<run>/qat/<name>/``, their names and schemas. No torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsense.decimals import counted
from vitsense.errors import InputMissingError, UserInputError
from vitsense.runfolder import atomic_write, json_text, read_json

if TYPE_CHECKING:
    import pandas as pd

QAT_SCHEMA = "vitsense.qat/1"
"""Schema of ``qat.json``; a larger number after the slash is a newer version's."""

FOLDER = "qat"
"""Folder of a run that holds its trainings."""

ABLATION_TABLE = "ablation.csv"
"""The table of an ablation, in its folder."""

ABLATION_COLUMNS = (
    "variant", "seeds", "last", "last_low", "last_high", "kl", "kl_low", "kl_high", "best",
    "seconds",
)  # fmt: skip
"""Columns that every such table has."""

_AGAINST = (
    "against_full", "against_low", "against_high", "kl_against_full", "kl_against_low",
    "kl_against_high",
)  # fmt: skip


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

    def refuse_run(self) -> None:
        """Refuse the folder of a run, whose plan a training would replace by its own.

        Raises:
            UserInputError: it is one.
        """
        if (self.path / "run.json").is_file():
            raise UserInputError(
                f"{self.path} is the folder of a run: a training there would replace its "
                f"plan.json. Leave --out away to train into {self.path / FOLDER}, or choose "
                "another folder."
            )

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


@dataclass(frozen=True, slots=True)
class AblationFolder:
    """The folder of an ablation: one for every variant and seed, and ``ablation.csv``."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the ablation."""
        return self.path.name

    @classmethod
    def all_in(cls, run: Path) -> list[AblationFolder]:
        """The ablations of a run, by name."""
        return [cls(path.parent) for path in sorted((run / FOLDER).glob(f"*/{ABLATION_TABLE}"))]

    @property
    def started(self) -> bool:
        """Whether a variant was finished here."""
        return (self.path / ABLATION_TABLE).is_file()

    @property
    def begun(self) -> set[str]:
        """Folders of variants with a training that was begun, without their seeds."""
        found = (path.parent.name for path in self.path.glob("*/qat.json"))
        return {name.rpartition("-seed")[0] for name in found}

    def read_record(self) -> dict[str, Any]:
        """``qat.json`` of one of its trainings: model, plan and images are those of all.

        Raises:
            InputMissingError: there is none.
            UserInputError: it is damaged.
        """
        found = sorted(self.path.glob("*/qat.json"))
        if not found:
            raise InputMissingError(
                f"{self.path} holds {ABLATION_TABLE} and no training; the same vitsense qat "
                "--ablate makes them again."
            )
        return TrainingFolder(found[0].parent).read_record()

    def read_table(self) -> pd.DataFrame:
        """A row per variant.

        Raises:
            UserInputError: the file is damaged.
        """
        import pandas as pd

        path = self.path / ABLATION_TABLE
        try:
            frame = pd.read_csv(path)
            missing = [name for name in ABLATION_COLUMNS if name not in frame.columns]
        except (OSError, ValueError) as error:
            raise UserInputError(
                f"{path} cannot be read ({error}); the same vitsense qat --ablate writes it again."
            ) from error
        if missing:
            raise UserInputError(
                f"{path} has no column {missing[0]}; the same vitsense qat --ablate "
                "writes it again."
            )
        for name in _AGAINST:  # an ablation without the recipe itself has none
            if name not in frame.columns:
                frame[name] = math.nan
        return frame


def finished_in(path: Path) -> TrainingFolder | AblationFolder:
    """The finished training, or the ablation, whose folder ``path`` is.

    Raises:
        InputMissingError: it is none.
        UserInputError: the training is not finished, or its record is damaged.
    """
    ablation, training = AblationFolder(path), TrainingFolder(path)
    if ablation.started:
        return ablation
    if not training.started:
        raise InputMissingError(
            f"{path} is not the folder of a training: it holds neither qat.json nor "
            f"{ABLATION_TABLE}. vitsense qat prints the folder that it writes."
        )
    status = training.read_record().get("status")
    if status != "complete":
        raise UserInputError(
            f"The training {path} is not finished ({status}); the same vitsense qat continues it."
        )
    return training


def budget_words(record: Mapping[str, Any]) -> str:
    """What every training of an ablation may use.

    Args:
        record: ``qat.json`` of one of them.
    """
    recipe, data = record["recipe"], record["data"]
    return (
        f"Budget of every training: {counted(record['steps'], 'step')} of "
        f"{counted(recipe['batch'], 'crop')}, {counted(data['images'], 'training image')} "
        f"({data['spec']}), {counted(record['evaluation']['images'], 'evaluation image')}."
    )


def prediction_missed(record: Mapping[str, Any]) -> bool:
    """Whether the plan without training lost what lies outside of its predicted band.

    Args:
        record: ``qat.json``.
    """
    told, row = record["plan"].get("predicted"), record["ptq"]
    if not told or row is None or row.get("drop") is None:
        return False
    return bool(row["drop_high"] < told["low"] or row["drop_low"] > told["high"])


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
