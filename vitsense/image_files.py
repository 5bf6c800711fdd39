"""Image files: a folder of class folders, a flat folder with or without labels, a tar of either."""

from __future__ import annotations

import csv
import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from vitsense.decimals import counted
from vitsense.errors import InputMissingError, UserInputError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif"})
"""File names that are taken for images."""

LABELS = "labels.csv"
"""Name of the table (columns file, label) in a flat folder."""


_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test"})


def existing(spec: str) -> Path:
    """The folder or archive of images that ``--data`` names.

    Raises:
        InputMissingError: it is not there.
    """
    path = Path(spec)
    if not path.exists():
        raise InputMissingError(
            f"There is no folder or archive {spec!r}. --data takes a folder of class folders, a "
            "folder of images (with labels.csv if there are labels), a .tar of either, or a timm "
            "data set such as hfds/NAME."
        )
    return path


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
        """Relative names of all files, sorted; hidden ones are left out, links are followed.

        Raises:
            InputMissingError: a folder cannot be read.
        """
        found: list[str] = []
        for folder, folders, files in os.walk(self._root, onerror=_stop, followlinks=True):
            here = Path(folder)
            folders[:] = [f for f in folders if not f.startswith(".") and not _climbs(here / f)]
            inside = here.relative_to(self._root)
            found += [(inside / f).as_posix() for f in files if not f.startswith(".")]
        return sorted(found)

    def read(self, name: str) -> bytes:
        """The bytes of one file."""
        return (self._root / name).read_bytes()


def _stop(error: OSError) -> None:
    raise InputMissingError(
        f"The folder {error.filename} cannot be read ({error.strerror}); check its permissions."
    ) from error


def _climbs(folder: Path) -> bool:
    """Whether a link leads back to a folder above it, so that following it would never end."""
    return folder.is_symlink() and folder.resolve() in folder.parent.resolve().joinpath("x").parents


class TarStore:
    """Files in a tar archive, read in place: nothing is extracted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                packed = file.read(6).startswith(_COMPRESSED)
            if packed:
                raise UserInputError(
                    f"{path} is compressed, so its images cannot be read in any order; unpack it "
                    "to a plain .tar or a folder."
                )
            with tarfile.open(path, "r:") as archive:
                members = [m for m in archive.getmembers() if m.isfile()]
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserInputError(f"{path} is not a whole tar archive ({error}).") from error
        named = [(PurePosixPath(m.name), (m.offset_data, m.size)) for m in members]
        named = [(n, m) for n, m in named if not any(part.startswith(".") for part in n.parts)]
        depth = _shared_folders([name for name, _ in named])
        self._places = {"/".join(name.parts[depth:]): place for name, place in named}

    def names(self) -> list[str]:
        """Relative names below the folders that all members share, sorted."""
        return sorted(self._places)

    def read(self, name: str) -> bytes:
        """The bytes of one member."""
        offset, size = self._places[name]
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


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
            f"{where} holds no images ({counted(len(names), 'other file')}). Expected: one folder "
            f"per class with images in it, or images with a {LABELS} (file,label), or images alone."
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
