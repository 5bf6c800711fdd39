"""Small image sets on disk: every image has its own pixels, so that digests tell them apart."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(number: int, size: int = 12) -> np.ndarray:
    """A gradient and a number in one corner."""
    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], ramp[:, None]), axis=-1)
    image = image.copy()
    image[0, 0] = (number % 256, number // 256, 77)
    return image


def save(path: Path, number: int) -> Path:
    """A PNG (lossless: the number survives)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(number)).save(path)
    return path


def class_folders(root: Path, counts: dict[str, int]) -> Path:
    """One folder per class."""
    number = 0
    for name, count in counts.items():
        for _ in range(count):
            save(root / name / f"{number:04}.png", number)
            number += 1
    return root


def flat(root: Path, n: int) -> Path:
    """Images without labels."""
    for number in range(n):
        save(root / f"{number:04}.png", number)
    return root


def labelled(root: Path, labels: list[int | str]) -> Path:
    """Images and a ``labels.csv``."""
    flat(root, len(labels))
    rows = [f"{number:04}.png,{label}" for number, label in enumerate(labels)]
    (root / "labels.csv").write_text("\n".join(["file,label", *rows]) + "\n", encoding="utf-8")
    return root


def tar_of(folder: Path, path: Path, *, inside: str = "") -> Path:
    """The folder's files in a tar, below ``inside``."""
    with tarfile.open(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = file.relative_to(folder).as_posix()
            archive.add(file, f"{inside}/{name}" if inside else name)
    return path


def truncated_jpeg(path: Path) -> Path:
    """The first half of a JPEG."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path
