"""What chapters are composed from: the run's record and its tables, read once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vitsense.compare.best_known import best_known
from vitsense.errors import InputMissingError, SiteMismatchError
from vitsense.runfolder import DEFAULT_ROOT, RunFolder
from vitsense.schemas import SCHEMAS
from vitsense.trainings import AblationFolder, TrainingFolder, finished_in

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from vitsense.runfolder import StoredArrays


class Source:
    """A run as chapters see it. A table that was not written is empty, never an error."""

    def __init__(self, run: RunFolder, elsewhere: Sequence[Path] = ()) -> None:
        """Open the run.

        Args:
            run: Its folder.
            elsewhere: Folders of more trainings and ablations of its models.

        Raises:
            UserInputError: a file of the run is damaged, or a training is not finished.
            InputMissingError: the run holds no measurement yet, or a folder holds no training.
            SiteMismatchError: a training of other weights than the run's.
        """
        self.run = run
        self.record: Mapping[str, Any] = run.read_run()
        more = [finished_in(path) for path in elsewhere]
        trainings = [*TrainingFolder.all_in(run.path), *more]
        ablations = [*AblationFolder.all_in(run.path), *more]
        self.trainings = tuple(_each(trainings, TrainingFolder))
        self.ablations = tuple(_each(ablations, AblationFolder))
        self._tables: dict[str, pd.DataFrame] = {}
        self._stored: dict[str, StoredArrays] = {}
        measured = set(self.table("sensitivity")["model"])
        self.entries: tuple[Mapping[str, Any], ...] = tuple(
            entry for entry in self.record["models"] if entry["key"] in measured
        )
        if not self.entries:
            raise InputMissingError(
                f"{run.path} holds no finished measurement yet; continue it with vitsense analyze "
                f"--out {run.path}."
            )

        for folder in more:
            self._refuse_other_weights(folder)

    @cached_property
    def trained(self) -> tuple[tuple[TrainingFolder, dict[str, Any]], ...]:
        """The trainings with their records, which several parts of the report ask for."""
        return tuple((folder, folder.read_record()) for folder in self.trainings)

    def _refuse_other_weights(self, folder: TrainingFolder | AblationFolder) -> None:
        model = folder.read_record()["model"]
        if model["weights_digest"] not in {entry["weights_digest"] for entry in self.entries}:
            held = ", ".join(f"{e['key']} ({e['weights_digest']})" for e in self.entries)
            raise SiteMismatchError(
                f"{folder.path} trained {model['key']} with the weights {model['weights_digest']}; "
                f"{self.run.path} measured {held}. Its own report: vitsense report {folder.path}"
            )

    @property
    def shown_path(self) -> str:
        """The run's folder for a printed command, from where runs without a folder are made.

        Relative, so that a report says nothing of the machine that made it.
        """
        path = self.run.path.resolve()
        inside = path.parent.name == DEFAULT_ROOT.name
        return f"{DEFAULT_ROOT.name}/{path.name}" if inside else path.name

    @property
    def keys(self) -> tuple[str, ...]:
        """The models, in the order of the run; a model's place is its colour."""
        return tuple(entry["key"] for entry in self.entries)

    def table(self, name: str, model: str | None = None) -> pd.DataFrame:
        """A table of the run, or one model's rows of it.

        Of ``sensitivity`` the cells are those of `vitsense.compare.best_known`.

        Raises:
            UserInputError: the file is damaged.
        """
        if name not in self._tables:
            found = self.run.table(name)
            if name == "sensitivity":
                others = map(self.table, ("modules", "groups", "causes"))
                found = best_known(found, *others)
            self._tables[name] = found
        frame = self._tables[name]
        return frame if model is None else frame[frame["model"] == model]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table there is a schema for."""
        return {name: self.table(name) for name in SCHEMAS}

    def histograms(self, key: str) -> NDArray[Any] | None:
        """An array of ``histograms.npz``; None if it is not there."""
        return self._array("histograms", key)

    def channels(self, key: str) -> NDArray[Any] | None:
        """An array of ``channels.npz``; None if it is not there."""
        return self._array("channels", key)

    def _array(self, name: str, key: str) -> NDArray[Any] | None:
        if name not in self._stored:
            self._stored[name] = self.run.stored(name)
        return self._stored[name].get(key)

    def labelled(self, model: str) -> bool:
        """Whether a drop of accuracy was measured; else agreement takes its place."""
        # estimates have no drop; whole plans are measured in every mode
        tables = (self.table(name, model) for name in ("sensitivity", "joint"))
        return any(bool(table["drop"].notna().any()) for table in tables)

    def is_first(self, entry: Mapping[str, Any]) -> bool:
        """Whether the plan of this model is ``plan.json``."""
        return entry is self.record["models"][0]


_Folder = TypeVar("_Folder", TrainingFolder, AblationFolder)


def _each(
    folders: Sequence[TrainingFolder | AblationFolder], kind: type[_Folder]
) -> Iterator[_Folder]:
    """Those of one kind, each once, however its path is written."""
    seen = set()
    for folder in folders:
        place = folder.path.resolve()
        if isinstance(folder, kind) and place not in seen:
            seen.add(place)
            yield folder
