"""The files of a run: names, schemas, atomic and durable writes. No torch."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from zipfile import BadZipFile

from vitsense.errors import InputMissingError, SchemaVersionError, UserInputError
from vitsense.provenance import without_option
from vitsense.schemas import OPTIONAL, SCHEMAS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

RUN_SCHEMA = "vitsense.run/1"
"""Schema of ``run.json``; a larger number after the slash is a newer version's."""

DEFAULT_ROOT = Path("vitsense-runs")
"""Where runs go unless told otherwise."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run."""

    path: Path
    rank: int = 0
    """Number of the process that appends results; each has a file of its own."""

    @classmethod
    def create(cls, root: Path, name: str) -> RunFolder:
        """A new folder ``<time>-<name>`` below ``root``.

        Raises:
            UserInputError: it cannot be made.
        """
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")[:80]
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for suffix in ("", *(f"-{i}" for i in range(2, 100))):
            path = root / f"{stamp}-{slug}{suffix}"
            if not path.exists():
                return cls.at(path)
        raise UserInputError(f"Too many runs in {root} within one second.")

    @classmethod
    def at(cls, path: Path) -> RunFolder:
        """The folder ``path``, made if it is not there.

        Raises:
            UserInputError: it cannot be made or written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path):
                pass
        except OSError as error:
            raise UserInputError(
                f"The folder {path} cannot be written ({error.strerror}); choose another with "
                "--out."
            ) from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            InputMissingError: the folder is not there or holds no ``run.json``.
        """
        if not (path / "run.json").is_file():
            raise InputMissingError(
                f"{path} is not a run folder (no run.json in it); make one with vitsense analyze."
            )
        return cls(path)

    @classmethod
    def all_in(cls, root: Path = DEFAULT_ROOT) -> list[RunFolder]:
        """The runs below ``root``, oldest first."""
        found = root.glob("*/run.json") if root.is_dir() else ()
        return [cls(p.parent) for p in sorted(found, key=lambda p: (p.stat().st_mtime, str(p)))]

    @classmethod
    def newest(cls, root: Path = DEFAULT_ROOT) -> RunFolder:
        """The run that was written last.

        Raises:
            InputMissingError: there is none.
        """
        runs = cls.all_in(root)
        if not runs:
            raise InputMissingError(
                f"There is no run in {root}; make one with vitsense analyze, or name its folder."
            )
        return runs[-1]

    def read_run(self) -> dict[str, Any]:
        """``run.json``.

        Raises:
            UserInputError: it is corrupt.
            SchemaVersionError: a newer version wrote it.
        """
        return read_json(self.path / "run.json", RUN_SCHEMA)

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Replace ``run.json``."""
        atomic_write(self.path / "run.json", json_text({"schema": RUN_SCHEMA, **run}))

    def table(self, name: str) -> pd.DataFrame:
        """A table of the run, with typed columns; empty if it was not written yet.

        Raises:
            UserInputError: the file cannot be read or lacks columns.
        """
        frame = self._typed(name)
        recorded = self._recorded().get("rows", {}).get(name, 0)
        if len(frame) < recorded:
            raise UserInputError(
                f"{self.path / f'{name}.csv'} has {len(frame)} of the {recorded} rows that the run "
                f"wrote: it is damaged. {self._mended()}"
            )
        return frame

    def _typed(self, name: str) -> pd.DataFrame:
        import pandas as pd

        columns = SCHEMAS[name]
        path = self.path / f"{name}.csv"
        if not path.is_file():
            return pd.DataFrame({key: pd.Series(dtype=kind) for key, kind in columns.items()})
        text = [key for key, kind in columns.items() if kind == "str"]
        try:
            frame = pd.read_csv(
                path,
                dtype=dict.fromkeys(text, "str"),
                keep_default_na=False,
                na_values={key: [""] for key in columns if key not in text},
            )
            for key in OPTIONAL.get(name, ()):
                if key not in frame.columns:
                    frame[key] = math.nan
            missing = [key for key in columns if key not in frame.columns]
            if not missing:
                return frame[list(columns)].astype(dict(columns))
        except (ValueError, KeyError, TypeError) as error:
            raise UserInputError(f"{path} cannot be read ({error}). {self._mended()}") from error
        raise UserInputError(
            f"{path} lacks the columns {', '.join(missing)}: it is damaged, or another version of "
            f"vitsense wrote it, which run.json names. {self._mended()}"
        )

    def _recorded(self) -> dict[str, Any]:
        """``run.json``, of which nothing is said where it cannot be read."""
        try:
            return self.read_run()
        except (InputMissingError, UserInputError):
            return {}

    def _mended(self) -> str:
        """How a damaged table is written again."""
        words = next(iter(self._recorded().get("commands", ())), ())
        command = ["vitsense", "analyze", "..."]
        if "analyze" in words:  # a run that was made from Python has no command
            command = without_option([str(word) for word in words], "--out")
        return (
            "The command that made the run writes it again, and measures nothing twice: "
            f"{shlex.join([*command, '--out', str(self.path)])}"
        ).replace("'...'", "...")

    def write_table(self, name: str, frame: pd.DataFrame) -> None:
        """Replace a table; its columns must be those of the schema."""
        missing = [key for key in SCHEMAS[name] if key not in frame.columns]
        assert not missing, f"table {name} lacks {missing}"
        buffer = StringIO()
        frame[list(SCHEMAS[name])].to_csv(buffer, index=False)
        atomic_write(self.path / f"{name}.csv", buffer.getvalue())

    def arrays(self, name: str) -> dict[str, NDArray[np.float64]]:
        """The arrays of ``<name>.npz``; empty if it was not written yet.

        Raises:
            UserInputError: the file is damaged.
        """
        stored = self.stored(name)
        return {key: stored.read(key) for key in stored.keys}

    def stored(self, name: str) -> StoredArrays:
        """The same, each array read when it is asked for.

        Raises:
            UserInputError: the file is damaged.
        """
        return StoredArrays(self.path / f"{name}.npz")

    def write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Replace ``<name>.npz``."""
        import numpy as np

        buffer = BytesIO()
        np.savez_compressed(buffer, **dict(arrays))
        atomic_write(self.path / f"{name}.npz", buffer.getvalue())

    def plan_path(self, model: str | None = None) -> Path:
        """``plan.json``, or the plan of another model of the run."""
        return self.path / ("plan.json" if model is None else f"plan-{_slug(model)}.json")

    def statistics_name(self, model: str) -> str:
        """Name of the arrays that keep what a model's statistics are made from."""
        return f"state-statistics-{_slug(model)}"

    def append_state(self, record: Mapping[str, Any]) -> None:
        """Add one result to this process's ``state.jsonl`` and see it onto the disk."""
        line = json.dumps(record, separators=(",", ":")) + "\n"
        path = self.path / (f"state-{self.rank}.jsonl" if self.rank else "state.jsonl")
        try:
            with path.open("ab") as stream:
                stream.write(line.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise UserInputError(_cannot_write(path, error)) from error

    def read_state(self) -> list[dict[str, Any]]:
        """The results so far, of every process; a last line that a crash tore is cut off its file.

        Raises:
            UserInputError: a file is damaged.
        """
        others = self.path.glob("state-*.jsonl")
        numbered = [(int(p.stem[6:]), p) for p in others if p.stem[6:].isdecimal()]
        paths = [self.path / "state.jsonl", *(path for _, path in sorted(numbered))]
        return [record for path in paths for record in self._records(path)]

    def _records(self, path: Path) -> list[dict[str, Any]]:
        if not path.is_file():
            return []
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        records = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise UserInputError(
                    f"{path} is damaged at line {number}; move it away to measure again."
                ) from error
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        return records


class StoredArrays:
    """The arrays of an ``npz`` file, of which a few are needed; none if there is no file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stored: Any = None
        if path.is_file():
            # from memory: numpy leaves a file open when it turns out to be damaged
            self._stored = self._checked(
                lambda np: np.load(BytesIO(path.read_bytes()), allow_pickle=False)
            )

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return () if self._stored is None else tuple(self._stored.files)

    def get(self, key: str) -> NDArray[Any] | None:
        """An array; None if there is none of that name.

        Raises:
            UserInputError: the file is damaged.
        """
        if self._stored is None or key not in self._stored:
            return None
        return self.read(key)

    def read(self, key: str) -> NDArray[Any]:
        """An array that is there.

        Raises:
            UserInputError: the file is damaged.
        """
        found: NDArray[Any] = self._checked(lambda _: self._stored[key])
        return found

    def _checked(self, load: Callable[[Any], Any]) -> Any:
        import numpy as np

        try:
            return load(np)
        except (ValueError, OSError, EOFError, AttributeError, TypeError, BadZipFile) as error:
            raise UserInputError(
                f"{self._path} cannot be read ({error}); run vitsense analyze again with --out "
                f"{self._path.parent}."
            ) from error


def read_json(path: Path, schema: str) -> dict[str, Any]:
    """A JSON file that says it follows ``schema`` (``name/version``).

    Raises:
        InputMissingError: no such file.
        UserInputError: not JSON, or of another kind.
        SchemaVersionError: of a newer version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputMissingError(f"There is no file {path}.") from error
    except IsADirectoryError as error:
        raise UserInputError(f"{path} is a folder; name the file in it.") from error
    except (ValueError, OSError) as error:
        raise UserInputError(f"{path} is not valid JSON ({error}); make it again.") from error
    name, _, number = schema.partition("/")
    seen = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(seen, str) or seen.partition("/")[0] != name:
        raise UserInputError(f"{path} has the schema {seen!r}; expected {schema!r}.")
    if not seen.partition("/")[2].isdigit() or int(seen.partition("/")[2]) > int(number):
        raise SchemaVersionError(
            f"{path} follows {seen!r}, this version reads up to {schema!r}: update vitsense."
        )
    checked: dict[str, Any] = data
    return checked


def json_text(value: Any) -> str:
    """Readable JSON with a final newline; not-a-number is refused."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all.

    Raises:
        UserInputError: the folder cannot be written or the disk is full; an earlier file is kept.
    """
    with replacing(path) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A stream whose content takes the place of ``path`` at the end, whole or not at all.

    Raises:
        UserInputError: the folder cannot be written or the disk is full; an earlier file is kept.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".tmp-", delete=False) as stream:
            temporary = Path(stream.name)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise UserInputError(_cannot_write(path, error)) from error
    finally:  # after a full disk and after Ctrl-C alike; a replaced file is gone already
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _slug(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model)


def _cannot_write(path: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{path} cannot be written ({reason}); free space or choose another folder with --out."
