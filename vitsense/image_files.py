"""Image files: a folder of class folders, a flat folder with or without labels, a tar of either."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from vitsense.errors import InputMissingError, UserInputError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif"})
"""File names that are taken for images."""

LABELS = "labels.csv"
"""Name of the table (columns file, label) in a flat folder."""


_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test"})


class Store(Protocol):
    """Named files, wherever they are."""

    def names(self) -> list[str]:
        """Relative names, with ``/``, sorted."""

    def read(self, name: str) -> bytes:
        """The bytes of one file."""


class FolderStore:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        """Relative names of all files, sorted; hidden ones are left out."""
        found = (p.relative_to(self._root) for p in self._root.rglob("*") if p.is_file())
        return sorted(p.as_posix() for p in found if not any(s.startswith(".") for s in p.parts))

    def read(self, name: str) -> bytes:
        """The bytes of one file."""
        return (self._root / name).read_bytes()


class TarStore:
    """Files in a tar archive, read in place."""

    def __init__(self, path: Path) -> None:
        try:
            self._tar = tarfile.open(path)  # noqa: SIM115  kept open for the life of the store
            members = [m for m in self._tar.getmembers() if m.isfile()]
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserInputError(f"{path} is not a whole tar archive ({error}).") from error
        named = [(PurePosixPath(m.name), m) for m in members]
        named = [(n, m) for n, m in named if not any(part.startswith(".") for part in n.parts)]
        depth = _shared_folders([name for name, _ in named])
        self._members = {"/".join(name.parts[depth:]): member for name, member in named}

    def names(self) -> list[str]:
        """Relative names below the folders that all members share, sorted."""
        return sorted(self._members)

    def read(self, name: str) -> bytes:
        """The bytes of one member."""
        stream = self._tar.extractfile(self._members[name])
        assert stream is not None
        return stream.read()


def _shared_folders(names: Sequence[PurePosixPath]) -> int:
    """How many leading folders all names share: archives are often made of one folder.

    (One class folder alone looks the same; its images are then without labels.)
    """
    depth = 0
    while names and all(len(n.parts) > depth + 1 for n in names):
        if len({n.parts[depth] for n in names}) > 1:
            break
        depth += 1
    return depth


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a store holds."""

    kind: str
    """``folder``, ``csv`` or ``flat``."""
    files: tuple[str, ...]
    labels: tuple[int, ...]
    """-1 where unknown."""
    classes: tuple[str, ...] | None
    """Names of the class folders, in label order."""


def list_images(store: Store, where: str) -> Listing:
    """Find images and labels.

    Raises:
        InputMissingError: there are no images.
        UserInputError: ``labels.csv`` is wrong.
    """
    names = store.names()
    images = [n for n in names if PurePosixPath(n).suffix.lower() in SUFFIXES]
    if LABELS in names:
        return _from_csv(store.read(LABELS), names, where)
    if not images:
        raise InputMissingError(
            f"{where} holds no images ({len(names)} other files). Expected: one folder per class "
            f"with images in it, or images with a {LABELS} (file,label), or images alone."
        )
    loose = [n for n in images if "/" not in n]
    if not loose:
        classes = tuple(sorted({n.split("/")[0] for n in images}))
        if _SPLITS.issuperset(classes):
            raise UserInputError(
                f"{where} holds the splits {', '.join(classes)}, not classes: name one of them, "
                f"for example {where}/{classes[-1]}."
            )
        if all(c.isdecimal() for c in classes):
            labels = tuple(int(n.split("/")[0]) for n in images)  # folders named by class index
            return Listing(kind="folder", files=tuple(images), labels=labels, classes=None)
        number = {name: i for i, name in enumerate(classes)}
        labels = tuple(number[n.split("/")[0]] for n in images)
        return Listing(kind="folder", files=tuple(images), labels=labels, classes=classes)
    if len(loose) < len(images):
        raise UserInputError(
            f"{where} holds {len(loose)} images beside folders with {len(images) - len(loose)} "
            f"more (first {loose[0]!r}), so it is not clear which are classes: keep all images in "
            "class folders, or all in one folder."
        )
    return Listing(kind="flat", files=tuple(images), labels=(-1,) * len(images), classes=None)


def _from_csv(data: bytes, names: list[str], where: str) -> Listing:
    table = f"{where}/{LABELS}"
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        rows, columns = list(reader), reader.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserInputError(f"{table} is not a CSV file in UTF-8 ({error}).") from error
    if not {"file", "label"} <= set(columns):
        seen = ", ".join(columns) or "nothing"
        raise UserInputError(f"{table} needs the columns file and label; it has {seen}.")
    if not rows:
        raise InputMissingError(f"{table} names no images; add a row (file,label) for each.")
    present, files, labels = set(names), [], []
    missing = [row["file"] for row in rows if row["file"] not in present]
    if missing:
        raise UserInputError(
            f"{table} names {len(missing)} files that are not there, first {missing[0]!r}; "
            "remove those rows or add the files."
        )
    for line, row in enumerate(rows, start=2):
        label = _class_index(row["label"])
        if label is None:
            raise UserInputError(
                f"{table} line {line}: the label {row['label']!r} is not a class index (0, 1, ...)."
            )
        files.append(row["file"])
        labels.append(label)
    if len(set(files)) != len(files):
        double = next(name for name in files if files.count(name) > 1)
        raise UserInputError(f"{table} names {double!r} twice; every image may appear once.")
    return Listing(kind="csv", files=tuple(files), labels=tuple(labels), classes=None)


def _class_index(text: str | None) -> int | None:
    stripped = (text or "").strip()
    return int(stripped) if stripped.isascii() and stripped.isdecimal() else None
