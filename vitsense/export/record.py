"""``export.json``: what was exported from a run, and how well it agrees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitsense import provenance
from vitsense.errors import UserInputError
from vitsense.export.source import ExportSource
from vitsense.runfolder import RunFolder, atomic_write, json_text, read_json
from vitsense.schemas import EXPORT_SCHEMA

EXPORT_FOLDER = "export"
"""Where exported files go, inside the run folder."""


def export_path(source: ExportSource, suffix: str, out: Path | None) -> Path:
    """Where an exported file goes; its folder is made.

    Files of a trained model have the training's name in theirs.

    Raises:
        UserInputError: there is no run and no ``out``, or the folder cannot be made.
    """
    run, key = source.run, source.key
    if source.fixed.trained is not None:
        key = f"{key}-{source.fixed.trained['name']}"
    if out is None and run is None:
        raise UserInputError("Say where the exported file goes: --out FILE.")
    if out is not None and out.is_dir():
        raise UserInputError(
            f"{out} is a folder; --out names a file, for example {out}/{key}{suffix}."
        )
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in key)
    path = out if out is not None or run is None else run.path / EXPORT_FOLDER / f"{safe}{suffix}"
    assert path is not None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserInputError(
            f"The folder {path.parent} cannot be made ({error.strerror}); choose another --out."
        ) from error
    return path


def record_path(run: RunFolder | None, file: Path) -> Path:
    """Where the record of an export stands: in the run, or beside a file without one."""
    return file.with_suffix(".export.json") if run is None else run.path / "export.json"


def read_exports(path: Path) -> list[dict[str, Any]]:
    """The exports on record, oldest first; none where nothing was exported.

    Raises:
        UserInputError: the file is damaged.
        SchemaVersionError: a newer version wrote it.
    """
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = read_json(path, EXPORT_SCHEMA)["exports"]
    return found


def keep_export(path: Path, entry: Mapping[str, Any]) -> None:
    """Add an export to the record; one of the same model, format and file is replaced."""

    def same(other: Mapping[str, Any]) -> bool:
        return all(other[key] == entry[key] for key in ("model", "format", "file"))

    kept = [other for other in read_exports(path) if not same(other)]
    atomic_write(path, json_text({"schema": EXPORT_SCHEMA, "exports": [*kept, dict(entry)]}))


def entry_of(source: ExportSource, form: str, path: Path) -> dict[str, Any]:
    """What every export records."""
    inside = source.run is not None and source.run.path in path.parents
    return {
        "model": source.key,
        "trained": None if source.fixed.trained is None else dict(source.fixed.trained),
        "format": form,
        "file": str(path.relative_to(source.run.path)) if inside and source.run else str(path),
        "bytes": path.stat().st_size,
        "budget": source.plan.budget,
        "avg_bits": (source.plan.cost or {}).get("avg_bits"),
        "weights_digest": source.about["weights_digest"],
        "command": provenance.command_line(),
    }
