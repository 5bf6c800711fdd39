"""The tables of a run as Parquet, for programs that read many runs."""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from vitsense.errors import InputMissingError
from vitsense.runfolder import atomic_write
from vitsense.schemas import SCHEMAS

if TYPE_CHECKING:
    import pandas as pd

    from vitsense.runfolder import RunFolder


def write_parquet_tables(run: RunFolder, folder: Path) -> list[Path]:
    """Every table that the run has, as ``<table>.parquet`` in a folder, with the same columns.

    Raises:
        InputMissingError: pyarrow is not installed.
        UserInputError: a table is damaged, or the folder cannot be written.
    """
    names = [name for name in SCHEMAS if (run.path / f"{name}.csv").is_file()]
    return [write_parquet(folder / f"{name}.parquet", run.table(name)) for name in names]


def write_parquet(path: Path, frame: pd.DataFrame) -> Path:
    """One table.

    Raises:
        InputMissingError: pyarrow is not installed.
        UserInputError: the folder cannot be written.
    """
    if find_spec("pyarrow") is None:
        raise InputMissingError(
            "Parquet needs the pyarrow package: pip install 'vitsense[parquet]', or read the CSV "
            "tables, which hold the same."
        )
    buffer = BytesIO()
    frame.to_parquet(buffer, engine="pyarrow", index=False)
    atomic_write(path, buffer.getvalue())
    return path
