"""The images a model is trained on, and which of them, with which crops, every step sees."""

from __future__ import annotations

import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitsense.data import GENERATED, ImageSet, ImageSource, open_source
from vitsense.errors import UserInputError
from vitsense.glyphs import GLYPH_CLASSES, render_glyph
from vitsense.preprocessing import Preprocessing
from vitsense.qat.crops import Crop, CropPolicy, cut, draw_crop

_SAMPLED = 64  # images whose bytes are part of the digest of a collection
TRAINING_GLYPHS = 3600
"""Generated training images, unless more or fewer are asked for."""

_KEPT_BYTES = 256 * 1024**2  # decoded images that are kept in memory, in one process


def training_source(spec: str | None, images: int | None = None) -> ImageSource:
    """The images that ``--data`` names for training; None draws ``images`` training glyphs.

    Raises:
        InputMissingError: it is not there, or is empty.
        UserInputError: it cannot be understood, or fewer images are asked for than one.
    """
    if images is not None and images < 1:
        raise UserInputError(f"--images is {images}: at least 1 training image is needed.")
    if spec is not None and spec != GENERATED:
        return open_source(spec, at_most=images or 10**7)

    def read(index: int) -> tuple[bytes, Image.Image]:
        pixels, _ = render_glyph("train", index)
        return pixels.tobytes(), Image.fromarray(pixels)

    labels = tuple(index % len(GLYPH_CLASSES) for index in range(images or TRAINING_GLYPHS))
    return ImageSource(
        spec=GENERATED, kind=GENERATED, labels=labels, read=read, classes=GLYPH_CLASSES
    )


def collection_digest(source: ImageSource) -> str:
    """16 hex digits over names, labels and the bytes of 64 images spread over the collection."""
    running = hashlib.sha256(str(len(source)).encode())
    for index, label in enumerate(source.labels):
        running.update(f"|{Path(source.name(index)).name}|{label}".encode())
    for index in np.linspace(0, len(source) - 1, min(_SAMPLED, len(source))).astype(int):
        running.update(hashlib.sha256(source.read(int(index))[0]).digest())
    return running.hexdigest()[:16]


def usable_numbers(source: ImageSource, evaluation: ImageSet | None) -> list[int]:
    """Numbers of the images that can be trained on: never one of ``evaluation``.

    Raises:
        UserInputError: nothing is left, or another source holds an evaluation image.
    """
    numbers = list(range(len(source)))
    if evaluation is not None and source.kind != GENERATED:
        if _same_place(source, evaluation.source):
            taken = set(evaluation.numbers)
            numbers = [number for number in numbers if number not in taken]
        else:
            _refuse_shared(source, evaluation)
    if not numbers:
        raise UserInputError(
            f"No training images: all {len(source)} images of {source.spec} are evaluation "
            "images. Name training images with --data."
        )
    return numbers


def at_most(images: int | None, numbers: list[int], seed: int) -> list[int]:
    """So many of the numbers, drawn from the seed; None: all."""
    if images is None or images >= len(numbers):
        return numbers
    order = np.random.default_rng(seed).permutation(len(numbers))[:images]
    return [numbers[i] for i in sorted(order)]


def calibration_pool(source: ImageSource, usable: Sequence[int]) -> Sequence[int]:
    """Numbers that calibration images are drawn from, however many images are trained on."""
    return range(TRAINING_GLYPHS) if source.kind == GENERATED else usable


def _same_place(source: ImageSource, other: ImageSource) -> bool:
    return Path(source.spec).resolve() == Path(other.spec).resolve()


_COMPARED = 5000  # images above which reading all of them once costs too much


def _refuse_shared(source: ImageSource, evaluation: ImageSet) -> None:
    if len(source) > _COMPARED:
        return

    def digest(origin: ImageSource, number: int) -> bytes:
        return hashlib.sha256(origin.read(number)[0]).digest()

    seen = {digest(evaluation.source, number) for number in evaluation.numbers}
    both = sum(digest(source, number) in seen for number in range(len(source)))
    if both:
        raise UserInputError(
            f"{both} training images of {source.spec} are also evaluation images; the accuracy "
            "would flatter the trained model. Use other images for --data or --eval-data."
        )


class CropReader:
    """Reads images and cuts crops; decoded images are kept while they fit in memory."""

    def __init__(self, source: ImageSource, preprocessing: Preprocessing) -> None:
        self.source = source
        self.preprocessing = preprocessing
        self._kept: OrderedDict[int, tuple[int, Image.Image]] = OrderedDict()
        self._bytes = 0

    def image(self, number: int) -> tuple[int, Image.Image]:
        """Checksum of the bytes, and the decoded image.

        Raises:
            UserInputError: the file cannot be read as an image.
        """
        if number in self._kept:
            return self._kept[number]
        try:
            data, image = self.source.read(number)
        except OSError as error:
            raise UserInputError(
                f"{self.source.name(number)} in {self.source.spec} cannot be read as an image "
                f"({error}); remove it from the training images."
            ) from error
        found = checksum(data), image
        size = image.width * image.height * 3
        if self._bytes + size <= _KEPT_BYTES:
            self._kept[number] = found
            self._bytes += size
        return found

    def draw(self, number: int, policy: CropPolicy, key: tuple[int, ...]) -> Crop:
        """The crop that ``key`` draws from the image."""
        image = self.image(number)[1]
        return draw_crop(policy, (image.height, image.width), key)

    def cut(self, number: int, crops: Sequence[Crop]) -> Tensor:
        """Crops of one image, `(M, 3, H, W)`."""
        image = self.image(number)[1]
        return torch.stack([cut(image, crop, self.preprocessing) for crop in crops])


def checksum(data: bytes) -> int:
    """CRC-32 of the bytes of an image; never 0, which stands for *not there*."""
    return zlib.crc32(data) or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOrder:
    """Which images each step sees: permutations, one after the other, cut into steps.

    A function of the numbers below alone, so that a resumed training goes on where it stopped and
    several processes share a step without talking to each other.
    """

    images: int
    per_step: int
    """Images of one optimizer step, over all processes."""
    seed: int

    def __post_init__(self) -> None:
        """Check that a step can be filled.

        Raises:
            UserInputError: fewer images than one step needs.
        """
        if self.images < self.per_step:
            raise UserInputError(
                f"{self.images} training images are fewer than the {self.per_step} images of one "
                "batch; use a smaller --batch-size, more crops per image, or more images."
            )

    def at(self, step: int) -> list[tuple[int, int]]:
        """(pass, position) of every image of a step; positions count from 0 to ``images``."""
        start = step * self.per_step
        places = range(start, start + self.per_step)
        split = [divmod(place, self.images) for place in places]
        return [(n, int(_permutation(self.seed, n, self.images)[at])) for n, at in split]


@lru_cache(maxsize=4)  # a step touches two passes at most
def _permutation(seed: int, number: int, images: int) -> Any:
    return np.random.default_rng([seed, number, 7]).permutation(images)


def calibration_batches(
    reader: CropReader, numbers: Sequence[int], *, images: int, batch: int, seed: int
) -> Iterator[Tensor]:
    """Shuffled training images, whole and scaled as for evaluation, `(B, 3, H, W)`.

    Drawn from the seed alone, so that every process calibrates on the same images.
    """
    transform = reader.preprocessing.transform()
    order = np.random.default_rng([seed, 11]).permutation(len(numbers))[:images]
    for start in range(0, len(order), batch):
        chosen = [numbers[i] for i in order[start : start + batch]]
        yield torch.stack([transform(reader.image(number)[1]) for number in chosen])
