"""The built-in data set: printed characters, drawn on demand from fonts that ship with matplotlib.

Every image depends only on the seed, the split and its index, so any part of the set can be made
on any machine in any order. It exists so that the demo, the tests and the examples measure true
accuracies without a download; it says nothing about natural images.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from vitsense.errors import UserInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

GLYPH_CLASSES: tuple[str, ...] = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
"""The characters, in label order."""

SPLITS: dict[str, int] = {"train": 0, "calibration": 1, "evaluation": 2}
"""Splits and the number that keeps their random streams apart."""

SIZE = 32
"""Height and width of an image in pixels."""

_FACES = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
    "STIXGeneralBolIta.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
)
_DRAWN = 48  # side in pixels of the large grey mask that is transformed into the image


@dataclass(frozen=True, slots=True, kw_only=True)
class GlyphSpec:
    """How hard the set is."""

    version: int = 1
    """Raised whenever equal arguments give other images."""
    shift: float = 4.0
    """Largest displacement of the character, pixels."""
    shear: float = 0.25
    """Largest horizontal shear (tangent)."""
    rotation: float = 12.0
    """Largest rotation, degrees."""
    scale: tuple[float, float] = (0.55, 1.0)
    """Height of the character relative to the image."""
    blur: float = 0.9
    """Largest radius of the Gaussian blur, pixels."""
    contrast: tuple[float, float] = (0.35, 0.9)
    """Distance in lightness between ground and character, 0 to 1."""
    lines: int = 2
    """Most stray lines."""
    noise: float = 0.06
    """Largest standard deviation of the pixel noise, of full range."""


DEFAULT_SPEC = GlyphSpec()


def font_folder() -> Path:
    """Folder of the TrueType fonts that ship with matplotlib (matplotlib itself is not loaded)."""
    from importlib.util import find_spec

    spec = find_spec("matplotlib")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"


@cache
def _mask(face: int, label: int) -> Image.Image:
    """The character in white on black, filling `(48, 48)` up to a margin."""
    # Pillow's other engine is used only where FriBidi is installed, and moves some characters by a
    # pixel: the images would depend on the machine
    font = ImageFont.truetype(
        str(font_folder() / _FACES[face]), 40, layout_engine=ImageFont.Layout.BASIC
    )
    left, top, right, bottom = font.getbbox(GLYPH_CLASSES[label])
    picture = Image.new("L", (_DRAWN, _DRAWN), 0)
    origin = ((_DRAWN - (right - left)) / 2 - left, (_DRAWN - (bottom - top)) / 2 - top)
    ImageDraw.Draw(picture).text(origin, GLYPH_CLASSES[label], fill=255, font=font)
    return picture


def render_glyph(
    split: str, index: int, *, seed: int = 0, spec: GlyphSpec = DEFAULT_SPEC
) -> tuple[NDArray[np.uint8], int]:
    """One image, `(32, 32, 3)`, and its label.

    Args:
        split: ``train``, ``calibration`` or ``evaluation``; their images never coincide.
        index: Number of the image, from 0; labels repeat with the period of the classes.
        seed: Another seed gives another set.
        spec: How hard the image is.

    Raises:
        UserInputError: no such split, or a negative index or seed.
    """
    if split not in SPLITS:
        raise UserInputError(f"The glyphs have no split {split!r}; they have {', '.join(SPLITS)}.")
    if index < 0 or seed < 0:
        raise UserInputError(f"Glyph {index} of seed {seed}: both must be 0 or more.")
    rng = np.random.default_rng([seed, SPLITS[split], index, spec.version])
    label = index % len(GLYPH_CLASSES)
    mask = _placed(_mask(int(rng.integers(len(_FACES))), label), rng, spec)
    ground, ink = _colours(rng, spec)
    pixels = ground + (ink - ground) * (np.asarray(mask, dtype=np.float64) / 255)[..., None]
    pixels += rng.normal(0.0, 255 * spec.noise * rng.random(), pixels.shape)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), label


def _placed(mask: Image.Image, rng: np.random.Generator, spec: GlyphSpec) -> Image.Image:
    """The mask sheared, rotated, scaled, moved, crossed by stray lines and blurred."""
    angle = np.deg2rad(rng.uniform(-spec.rotation, spec.rotation))
    shear = rng.uniform(-spec.shear, spec.shear)
    zoom = _DRAWN / SIZE / rng.uniform(*spec.scale)
    free = spec.shift * rng.uniform(-1, 1, 2)
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = zoom * rotate @ np.array([[1.0, shear], [0.0, 1.0]])
    centre = np.array([SIZE / 2, SIZE / 2]) + free
    offset = np.array([_DRAWN / 2, _DRAWN / 2]) - linear @ centre
    matrix = (*linear[0], offset[0], *linear[1], offset[1])
    placed = mask.transform(
        (SIZE, SIZE), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR
    )
    pen = ImageDraw.Draw(placed)
    for _ in range(int(rng.integers(spec.lines + 1))):
        ends = rng.uniform(-4, SIZE + 4, 4)
        pen.line([float(v) for v in ends], fill=int(rng.integers(60, 170)), width=1)
    return placed.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, spec.blur))))


def _colours(
    rng: np.random.Generator, spec: GlyphSpec
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ground and character colour, `(3,)` each, 0 to 255: dark characters on light ground.

    The polarity is fixed because small models do not begin to learn when it is random.
    """
    contrast = rng.uniform(*spec.contrast)
    light = rng.uniform(contrast, 1.0)
    tint = rng.uniform(-0.12, 0.12, (2, 3))
    ground, ink = light + tint[0], light - contrast + tint[1] * 0.5
    return 255 * np.clip(ground, 0, 1), 255 * np.clip(ink, 0, 1)


def glyph_images(
    split: str, n: int, *, seed: int = 0, spec: GlyphSpec = DEFAULT_SPEC, start: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images ``start`` to ``start + n`` of a split, `(n, 32, 32, 3)`, and labels `(n,)`."""
    images = np.empty((n, SIZE, SIZE, 3), dtype=np.uint8)
    labels = np.empty(n, dtype=np.int64)
    for i in range(n):
        images[i], labels[i] = render_glyph(split, start + i, seed=seed, spec=spec)
    return images, labels


def glyph_digest(split: str, n: int, *, seed: int = 0, spec: GlyphSpec = DEFAULT_SPEC) -> str:
    """16 hex digits over the first ``n`` images: tells whether two machines draw the same set."""
    images, labels = glyph_images(split, n, seed=seed, spec=spec)
    return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:16]
