"""One file of a label bank: a teacher's answers for many crops of every image, memory-mapped.

::

    VSBANK01 | length of header, 4 bytes | header, JSON | zeros up to a multiple of 64
    index    images x (checksum of the image's bytes, checksum of its records), 4 bytes each
    records  images x crops x (box 8, flip 1, k classes 2 each, k probabilities 2 each) bytes

A record has 29 bytes at k = 5. An image whose checksums are 0, or do not fit, is not there: the
writer continues exactly those. Several writers (shards) make files of their own.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitsense.errors import InputMissingError, SchemaVersionError, UserInputError
from vitsense.qat.crops import Crop, CropPolicy

MAGIC = b"VSBANK01"
"""First bytes of a bank."""

BANK_SCHEMA = "vitsense.labelbank/1"
"""Schema of the header."""

_INDEX = np.dtype([("image", "<u4"), ("records", "<u4")])
_LARGEST = 0xFFFF


def record_type(top: int) -> np.dtype[Any]:
    """One crop's record for ``top`` classes."""
    return np.dtype(
        [
            ("box", "<u2", (4,)),
            ("flip", "u1"),
            ("classes", "<u2", (top,)),
            ("probabilities", "<f2", (top,)),
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BankHeader:
    """What a bank was made from."""

    data_digest: str
    """`vitsense.qat.training_images.collection_digest` of the images."""
    first: int
    """Number of the first image in this file (a shard holds a run of images)."""
    images: int
    total: int
    """Images of the whole collection."""
    crops: int
    """Crops of each image."""
    top: int
    """Classes kept of each crop."""
    classes: int
    policy: CropPolicy
    seed: int
    teacher: Mapping[str, Any]
    """name, weights_digest, input_size."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {key: getattr(self, key) for key in self.__slots__}
        policy, teacher = self.policy.to_json(), dict(self.teacher)
        return {"schema": BANK_SCHEMA, **plain, "policy": policy, "teacher": teacher}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> BankHeader:
        """The inverse of `to_json`."""
        known = {key: data[key] for key in cls.__slots__}
        return cls(**known | {"policy": CropPolicy.from_json(data["policy"])})


@dataclass(slots=True, eq=False)
class BankFile:
    """One file of a bank, mapped into memory."""

    path: Path
    header: BankHeader
    index: NDArray[Any]
    records: NDArray[Any]

    def has(self, number: int) -> bool:
        """Whether the records of an image are there and whole."""
        place = number - self.header.first
        entry = self.index[place]
        return bool(entry["image"]) and int(entry["records"]) == _checked(self.records[place])

    def put(self, number: int, image: int, rows: NDArray[Any]) -> None:
        """Write the records of an image, then its index entry."""
        place = number - self.header.first
        self.records[place] = rows
        self.index[place] = (image, _checked(rows))

    def flush(self) -> None:
        """See what was written onto the disk.

        Raises:
            UserInputError: the disk is full or the file cannot be written.
        """
        try:
            self.records.flush()  # type: ignore[attr-defined]
            self.index.flush()  # type: ignore[attr-defined]
        except OSError as error:
            raise UserInputError(
                f"{self.path} cannot be written ({error.strerror}); free space and run the same "
                "command again, it continues."
            ) from error


def _checked(rows: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(rows).tobytes()) or 1


def create_file(path: Path, header: BankHeader) -> BankFile:
    """A new file with nothing in it, or an unfinished one of the same header to continue.

    Raises:
        UserInputError: the path cannot be written, or holds a bank made from something else.
    """
    if path.exists():
        found = open_file(path, writable=True)
        wrong = differing(found.header, header)
        if wrong:
            raise UserInputError(
                f"{path} was made with another {', '.join(wrong)}; use another --out, or delete it."
            )
        return found
    front = _front(header)
    size = len(front) + header.images * (_INDEX.itemsize + _row_bytes(header))
    try:
        with path.open("xb") as stream:
            stream.write(front)
            if hasattr(os, "posix_fallocate"):  # a full disk is found now, not after hours
                os.posix_fallocate(stream.fileno(), 0, size)
            else:
                stream.truncate(size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise UserInputError(
            f"{path} cannot be made ({error.strerror}); it needs {size / 1e6:.1f} MB of free space."
        ) from error
    return open_file(path, writable=True)


def _row_bytes(header: BankHeader) -> int:
    return header.crops * record_type(header.top).itemsize


def _front(header: BankHeader) -> bytes:
    text = json.dumps(header.to_json(), separators=(",", ":")).encode()
    front = MAGIC + len(text).to_bytes(4, "little") + text
    return front + bytes(-len(front) % 64)


def open_file(path: Path, *, writable: bool = False) -> BankFile:
    """Map a file.

    Raises:
        InputMissingError: no such file.
        UserInputError: it is no bank, or is cut short.
        SchemaVersionError: a newer version wrote it.
    """
    header, start = _read_front(path)
    expected = start + header.images * (_INDEX.itemsize + _row_bytes(header))
    size = path.stat().st_size
    if size != expected:
        raise UserInputError(
            f"{path} has {size} bytes, its header says {expected}: it is cut short or damaged; "
            "make it again with vitsense distill."
        )
    mode = "r+" if writable else "r"
    index = np.memmap(path, _INDEX, mode, start, (header.images,))  # type: ignore[call-overload]
    begin = start + header.images * _INDEX.itemsize
    shape = (header.images, header.crops)
    records = np.memmap(path, record_type(header.top), mode, begin, shape)  # type: ignore[call-overload]
    return BankFile(path, header, index, records)


def _read_front(path: Path) -> tuple[BankHeader, int]:
    try:
        with path.open("rb") as stream:
            magic, length = stream.read(8), int.from_bytes(stream.read(4), "little")
            text = stream.read(length) if magic == MAGIC else b""
    except FileNotFoundError as error:
        raise InputMissingError(
            f"There is no label bank {path}; make one with vitsense distill."
        ) from error
    except OSError as error:
        raise UserInputError(f"{path} cannot be read ({error.strerror}).") from error
    if magic != MAGIC:
        raise UserInputError(f"{path} is not a label bank; make one with vitsense distill.")
    try:
        data = json.loads(text)
        seen = str(data["schema"])
        if seen != BANK_SCHEMA:
            raise SchemaVersionError(
                f"{path} follows {seen!r}, this version reads {BANK_SCHEMA!r}: update vitsense."
            )
        header = BankHeader.from_json(data)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, SchemaVersionError):
            raise
        raise UserInputError(
            f"The header of {path} cannot be read ({error}): it is cut short or damaged; make it "
            "again with vitsense distill."
        ) from error
    return header, (12 + len(text) + 63) // 64 * 64


_ALIKE = ("data_digest", "total", "crops", "top", "classes", "policy", "seed", "teacher")
_WORDS = {"data_digest": "data set", "total": "data set", "policy": "crop policy", "top": "--top"}


def differing(one: BankHeader, other: BankHeader) -> list[str]:
    """What two files of one bank should have in common and do not, in words."""
    wrong = [name for name in _ALIKE if getattr(one, name) != getattr(other, name)]
    return list(dict.fromkeys(_WORDS.get(name, name) for name in wrong))


def shard_path(path: Path, shard: int, shards: int) -> Path:
    """The file of one of several writers: ``labels.bank`` gives ``labels.bank.0-of-2``."""
    return path if shards == 1 else path.with_name(f"{path.name}.{shard}-of-{shards}")


@contextmanager
def written(file: BankFile) -> Iterator[BankFile]:
    """Flush whatever ends the writing."""
    try:
        yield file
    finally:
        file.flush()


def records_of(crops: Sequence[Crop], probabilities: Tensor, top: int) -> NDArray[Any]:
    """Records from crops and a teacher's probabilities, `(M, C)`.

    Raises:
        UserInputError: an image or the number of classes is larger than 65,535.
    """
    largest = max(max(c.top + c.height, c.left + c.width) for c in crops)
    if largest > _LARGEST or probabilities.shape[1] > _LARGEST:
        raise UserInputError(
            f"An image side of {largest} pixels or {probabilities.shape[1]} classes do not fit the "
            f"label bank ({_LARGEST} at most)."
        )
    values, classes = probabilities.float().cpu().topk(top, dim=1)
    rows = np.zeros(len(crops), record_type(top))
    rows["box"] = [(c.top, c.left, c.height, c.width) for c in crops]
    rows["flip"] = [c.flip for c in crops]
    rows["classes"] = classes.numpy()
    rows["probabilities"] = values.numpy()
    return rows
