"""What chapters are composed from: the run's record and its tables, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitsense.compare.best_known import best_known
from vitsense.errors import InputMissingError
from vitsense.runfolder import RunFolder
from vitsense.schemas import SCHEMAS
from vitsense.trainings import TrainingFolder

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from vitsense.runfolder import StoredArrays


class Source:
    """A run as chapters see it. A table that was not written is empty, never an error."""

    def __init__(self, run: RunFolder, trainings: Sequence[TrainingFolder] = ()) -> None:
        """Open the run.

        Args:
            run: Its folder.
            trainings: More trainings of its models, which lie elsewhere.

        Raises:
            UserInputError: a file of the run is damaged.
            InputMissingError: the run holds no measurement yet.
        """
        self.run = run
        self.record: Mapping[str, Any] = run.read_run()
        self.trainings = tuple(dict.fromkeys((*TrainingFolder.all_in(run.path), *trainings)))
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
