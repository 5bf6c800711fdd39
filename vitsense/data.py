"""Images to calibrate and evaluate on: where they come from, and which are used for what."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vitsense.errors import UserInputError
from vitsense.glyphs import GLYPH_CLASSES, render_glyph
from vitsense.image_files import FolderStore, Store, TarStore, existing, list_images
from vitsense.preprocessing import Preprocessing
from vitsense.timm_images import is_timm_spec, open_timm_images

if TYPE_CHECKING:
    from vitsense.models import LoadedModel

GENERATED = "generated"
"""Kind of the built-in images."""


@dataclass(slots=True, eq=False, kw_only=True)
class ImageSource:
    """A numbered collection of images that are read on demand."""

    spec: str
    kind: str
    labels: tuple[int, ...]
    """Known without decoding; -1 where unknown."""
    read: Callable[[int], tuple[bytes, Image.Image]]
    """The bytes (for the digest) and the decoded image of a number."""
    name: Callable[[int], str] = str
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return all(label >= 0 for label in self.labels)


@dataclass(slots=True, eq=False, kw_only=True)
class ImageSet:
    """Images of one purpose in a fixed order, decoded again whenever they are needed."""

    source: ImageSource
    numbers: list[int] = field(default_factory=list)
    digest: str = ""
    """Over the bytes and labels of the images, in order."""
    skipped: list[str] = field(default_factory=list)
    """Names of images that could not be read and were left out."""

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return all(self.source.labels[number] >= 0 for number in self.numbers)

    def without_labels(self) -> ImageSet:
        """The same images, their labels unknown."""
        source = replace(self.source, labels=(-1,) * len(self.source))
        return replace(self, source=source)

    def batches(
        self, preprocessing: Preprocessing, size: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Preprocessed images `(B, 3, H, W)` and labels `(B,)`, always in the same order."""
        for start in range(0, len(self), size):
            yield self.read(preprocessing, range(start, min(start + size, len(self))), device)

    def read(
        self, preprocessing: Preprocessing, places: Sequence[int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The images at ``places`` of this set as one batch, as `batches` gives them."""
        transform = preprocessing.transform()
        numbers = [self.numbers[place] for place in places]
        images = [transform(self.source.read(number)[1]) for number in numbers]
        labels = torch.tensor([self.source.labels[number] for number in numbers])
        return torch.stack(images).to(device), labels.to(device)


def open_source(spec: str | None, *, at_most: int = 2000) -> ImageSource:
    """The images that ``--data`` names.

    Args:
        spec: None for the generated glyphs; a folder; a ``.tar``; or a timm data set
            (``hfds/NAME``, ``wds/PATH``, ``torch/NAME,root=DIR``; see `vitsense.timm_images`).
        at_most: How many images are taken from a data set that can only be streamed.

    Raises:
        InputMissingError: it is not there, cannot be reached, or is empty.
        UserInputError: it cannot be understood.
    """
    if spec is None:
        return _generated()
    if is_timm_spec(spec):
        return _from_timm(spec, at_most)
    path = existing(spec)
    store: Store = FolderStore(path) if path.is_dir() else TarStore(path)
    listing = list_images(store, str(path))

    def read(index: int) -> tuple[bytes, Image.Image]:
        data = store.read(listing.files[index])
        return data, decode(data)

    return ImageSource(
        spec=spec,
        kind=listing.kind if path.is_dir() else "tar",
        labels=listing.labels,
        read=read,
        name=lambda index: listing.files[index],
        classes=listing.classes,
    )


def decode(data: bytes) -> Image.Image:
    """An RGB image, upright, from the bytes of a file.

    Raises:
        OSError: the bytes are not a whole image.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return as_rgb(image)
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's plugins raise a dozen types for files that are cut, foreign or hostile
        raise OSError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """The image upright and in RGB: transparency on white, 16 bits scaled to 8."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        layered = upright.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    if upright.mode.startswith("I;16") or upright.mode == "I":
        sixteen = np.asarray(upright, dtype=np.float64) / 65535 * 255
        return Image.fromarray(np.clip(sixteen, 0, 255).astype(np.uint8)).convert("RGB")
    return upright.convert("RGB")


_GLYPHS = 20_000  # more than anyone draws; each is made when it is read


def _generated() -> ImageSource:
    """The glyphs: the first 20,000 numbers are evaluation images, the others calibration images."""

    def read(index: int) -> tuple[bytes, Image.Image]:
        split = "calibration" if index >= _GLYPHS else "evaluation"
        pixels, _ = render_glyph(split, index % _GLYPHS)
        return pixels.tobytes(), Image.fromarray(pixels)

    labels = tuple(index % _GLYPHS % len(GLYPH_CLASSES) for index in range(2 * _GLYPHS))
    return ImageSource(
        spec=GENERATED, kind=GENERATED, labels=labels, read=read, classes=GLYPH_CLASSES
    )


def _from_timm(spec: str, at_most: int) -> ImageSource:
    found = open_timm_images(spec, at_most)

    def read(index: int) -> tuple[bytes, Image.Image]:
        content = found.read(index)
        if isinstance(content, bytes):
            return content, decode(content)
        upright = as_rgb(content)
        return upright.tobytes(), upright

    return ImageSource(
        spec=spec, kind="timm", labels=found.labels, read=read, classes=found.classes
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How many images are wanted for what."""

    evaluation: int
    calibration: int
    seed: int = 0
    strict: bool = False
    """Whether an image that cannot be read ends the run instead of being left out."""


def draw_images(
    source: ImageSource, draw: Draw, calibration_source: ImageSource | None = None
) -> tuple[ImageSet, ImageSet]:
    """Calibration and evaluation images, which never overlap.

    The order is a permutation from the seed. Evaluation is its front; calibration comes from what
    is left, the classes in turn where there are labels. An image that cannot be read, and one for
    calibration whose bytes are those of an evaluation image, is taken out of the order and both are
    drawn again, as if it had never been there.

    Raises:
        UserInputError: too few images, or the same image in both sources.
    """
    order = _permuted(source, draw.seed)
    if calibration_source is not None:
        reserve = _permuted(calibration_source, draw.seed)
        calibration = _one_set(calibration_source, reserve, draw.calibration, draw, in_turn=True)
        evaluation = _one_set(source, order, draw.evaluation, draw)
        _refuse_overlap(calibration, evaluation)
        return calibration, evaluation
    if source.kind == GENERATED:
        reserve = list(range(_GLYPHS, 2 * _GLYPHS))
        calibration = _one_set(source, reserve, draw.calibration, draw)
        return calibration, _one_set(source, order, draw.evaluation, draw)
    return _readable(source, order, lambda left: _both(source, left, draw), draw)


_Parts = tuple[list[int], list[int]]


def _both(source: ImageSource, order: list[int], draw: Draw) -> _Parts:
    """Numbers for calibration and for evaluation, from images that are all readable."""
    if len(order) < 2:
        useless = len(source) - len(order)
        tried = (
            f", of which {useless} cannot be read as images or repeat another" if useless else ""
        )
        raise UserInputError(
            f"{source.spec} has {len(source)} image{'s' * (len(source) != 1)}{tried}; at least two "
            "different ones are needed: one to calibrate, one to evaluate."
        )
    wanted, front = draw.calibration, draw.evaluation
    if front + wanted > len(order):
        # too few for both: a tenth, at most what was asked, calibrates and the rest evaluates
        wanted = max(1, min(wanted, len(order) // 10))
        front = min(front, len(order) - wanted)
    return _in_turn(source, order[front:])[:wanted], order[:front]


def _one_set(
    source: ImageSource, order: list[int], wanted: int, draw: Draw, *, in_turn: bool = False
) -> ImageSet:
    def first(left: list[int]) -> _Parts:
        if not left:
            raise UserInputError(f"None of the {len(source)} images of {source.spec} can be read.")
        return (_in_turn(source, left) if in_turn else left)[:wanted], []

    return _readable(source, order, first, draw)[0]


def _readable(
    source: ImageSource, order: list[int], split: Callable[[list[int]], _Parts], draw: Draw
) -> tuple[ImageSet, ImageSet]:
    """Split ``order``; take out what cannot be read and split again until all can be."""
    sets = (ImageSet(source=source), ImageSet(source=source))
    digests: dict[int, bytes] = {}
    while True:
        parts = split(order)
        broken: set[int] = set()
        for images, numbers in zip(sets, parts, strict=True):
            for number in (n for n in numbers if n not in digests):
                try:
                    digests[number] = hashlib.sha256(source.read(number)[0]).digest()
                except (OSError, ValueError, EOFError, zlib.error) as error:
                    _refuse_if_strict(source, number, error, draw)
                    images.skipped.append(source.name(number))
                    broken.add(number)
        if not broken:
            # the same picture again, under another name
            evaluated = {digests[number] for number in parts[1]}
            broken = {number for number in parts[0] if digests[number] in evaluated}
        if not broken:
            break
        order = [number for number in order if number not in broken]
    for images, numbers in zip(sets, parts, strict=True):
        images.numbers.extend(numbers)
        told = (digests[n] + str(source.labels[n]).encode() for n in numbers)
        images.digest = hashlib.sha256(b"|".join(told)).hexdigest()[:16]
    return sets


def _refuse_if_strict(source: ImageSource, number: int, error: Exception, draw: Draw) -> None:
    if draw.strict:
        raise UserInputError(
            f"{source.name(number)} in {source.spec} cannot be read as an image ({error}); "
            "remove it or leave out --strict."
        ) from error


def _permuted(source: ImageSource, seed: int) -> list[int]:
    if source.kind == GENERATED:
        return list(range(_GLYPHS))  # every one is drawn at random already
    order: list[int] = np.random.default_rng(seed).permutation(len(source)).tolist()
    return order


def _in_turn(source: ImageSource, order: list[int]) -> list[int]:
    """The same numbers: first one of every class, then a second one of every class, and so on."""
    seen: dict[int, int] = {}
    rounds: dict[int, list[int]] = {}
    for number in order:
        label = source.labels[number]
        seen[label] = seen.get(label, -1) + 1
        # images without a label are no class: they keep their order
        rounds.setdefault(seen[label] if label >= 0 else 0, []).append(number)
    return list(chain.from_iterable(rounds[turn] for turn in sorted(rounds)))


def _refuse_overlap(calibration: ImageSet, evaluation: ImageSet) -> None:
    def pixels(images: ImageSet) -> list[bytes]:
        return [hashlib.sha256(images.source.read(n)[1].tobytes()).digest() for n in images.numbers]

    seen = set(pixels(calibration))
    both = sum(digest in seen for digest in pixels(evaluation))
    if both:
        raise UserInputError(
            f"{both} evaluation images are also calibration images; the accuracies would flatter "
            "the quantized model. Use a --calibration-data that shares no image with --data."
        )


def labelled_for(source: ImageSource, model: LoadedModel) -> bool:
    """Whether the labels of ``source`` are classes of ``model``."""
    if source.kind == GENERATED:
        return source.classes is not None and model.resolved.source.value == "zoo"
    return source.labelled


def _first_of(names: Sequence[str], most: int = 3) -> str:
    return ", ".join([*names[:most], "..."] if len(names) > most else names)


def check_labels(source: ImageSource, num_classes: int, model: str) -> None:
    """Refuse labels the model has no class for.

    Raises:
        UserInputError: a label is outside the model's classes, or folders cannot be matched.
    """
    highest = max(source.labels)
    if highest >= num_classes:
        raise UserInputError(
            f"{source.spec} has the label {highest}, but {model} has {num_classes} classes "
            f"(0 ... {num_classes - 1}): use data of the model's classes."
        )
    if (
        source.classes is not None
        and source.kind != GENERATED
        and len(source.classes) != num_classes
    ):
        raise UserInputError(
            f"{source.spec} has {len(source.classes)} classes ({_first_of(source.classes)}), "
            f"but {model} has {num_classes}, so they cannot be matched. Name class folders "
            "by the model's class index (0, 1, ...), or put the images in one folder with a "
            "labels.csv (file,label)."
        )
