"""The generated data set: readable, independent of its surroundings, strict about its arguments."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from itertools import combinations

import numpy as np
import pytest
from PIL import ImageFont
from PIL.ImageFont import core

from vitsense import glyphs
from vitsense.errors import UserInputError
from vitsense.glyphs import (
    DEFAULT_SPEC,
    GLYPH_CLASSES,
    SPLITS,
    font_folder,
    glyph_digest,
    glyph_images,
    render_glyph,
)

FACES = glyphs._FACES
PLAIN = replace(
    DEFAULT_SPEC,
    shift=0.0,
    shear=0.0,
    rotation=0.0,
    scale=(1.0, 1.0),
    blur=0.0,
    contrast=(0.9, 0.9),
    lines=0,
    noise=0.0,
)


@pytest.fixture
def _fresh_masks() -> Iterator[None]:
    glyphs._mask.cache_clear()
    yield
    glyphs._mask.cache_clear()


def ink(face: int, character: str) -> np.ndarray:
    """Coverage of the large drawing, 0 to 1."""
    return np.asarray(glyphs._mask(face, GLYPH_CLASSES.index(character)), dtype=np.float64) / 255


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the heavier character's ink that the two do not share, wherever they lie."""
    heavier = max(first.sum(), second.sum())
    moves = [(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4)]
    moved = (np.abs(np.roll(first, move, (0, 1)) - second).sum() for move in moves)
    return float(min(moved) / heavier)


def test_there_are_at_least_36_classes_in_at_least_10_faces() -> None:
    assert len(GLYPH_CLASSES) == len(set(GLYPH_CLASSES)) >= 36
    assert len(FACES) == len(set(FACES)) >= 10
    assert all((font_folder() / face).is_file() for face in FACES)


@pytest.mark.parametrize("face", range(len(FACES)), ids=FACES)
def test_a_face_has_every_character_and_no_two_alike(face: int) -> None:
    """A missing character would be the face's box, so that two missing ones would be equal."""
    font = ImageFont.truetype(str(font_folder() / FACES[face]), 40)
    missing = bytes(font.getmask("\ue123"))  # private use: no face has it
    for character in GLYPH_CLASSES:
        assert bytes(font.getmask(character)) != missing, character
    drawn = {character: ink(face, character) for character in GLYPH_CLASSES}
    closest = min((difference(drawn[a], drawn[b]), a + b) for a, b in combinations(drawn, 2))
    # the tail of a bold Q and the flag of a Roman 1 are a twelfth of their ink; a look-alike has 0
    assert closest[0] > 0.07, closest[1]


@pytest.mark.parametrize("face", range(len(FACES)), ids=FACES)
def test_characters_are_whole(face: int) -> None:
    """What the large drawing cuts off is at most the tip of a serif: one pixel's row or column."""
    for character in GLYPH_CLASSES:
        drawn = ink(face, character)
        edge = np.concatenate([drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]])
        assert edge.sum() < 0.05 * drawn.sum(), character


@pytest.mark.parametrize("split", SPLITS)
def test_every_character_is_darker_than_its_ground(split: str) -> None:
    """The border is mostly ground; the darkest fiftieth of the rest is mostly ink."""
    images, _ = glyph_images(split, 4 * len(GLYPH_CLASSES))
    grey = images.astype(np.float64).mean(-1)
    ring = np.ones((32, 32), dtype=bool)
    ring[2:-2, 2:-2] = False
    ground = np.median(grey[:, ring], axis=1)
    darkest = np.quantile(grey[:, 2:-2, 2:-2].reshape(len(grey), -1), 0.02, axis=1)
    assert (ground - darkest).min() > 255 * 0.1


@pytest.mark.usefixtures("_fresh_masks")
def test_images_do_not_depend_on_the_text_engine_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pillow lays text out with Raqm where FriBidi is installed, and moves characters with it."""
    drawn = [np.asarray(glyphs._mask(f, c)) for f in range(len(FACES)) for c in range(36)]
    for available in (True, False):
        monkeypatch.setattr(core, "HAVE_RAQM", available)
        glyphs._mask.cache_clear()
        again = [np.asarray(glyphs._mask(f, c)) for f in range(len(FACES)) for c in range(36)]
        assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))


@pytest.mark.parametrize("split", SPLITS)
def test_any_part_can_be_drawn_alone(split: str) -> None:
    whole, labels = glyph_images(split, 24)
    part, part_labels = glyph_images(split, 8, start=16)
    assert whole.dtype == np.uint8
    assert labels.dtype == np.int64
    assert whole.shape == (24, 32, 32, 3)
    assert np.array_equal(whole[16:], part)
    assert np.array_equal(labels[16:], part_labels)
    image, label = render_glyph(split, 20)
    assert np.array_equal(whole[20], image)
    assert label == labels[20]


def test_no_image_of_one_split_is_in_another_under_any_of_these_seeds() -> None:
    sets = {
        (split, seed): {image.tobytes() for image in glyph_images(split, 72, seed=seed)[0]}
        for split in SPLITS
        for seed in (0, 1, 2, 2**32, 2**32 + 1)
    }
    assert all(len(images) == 72 for images in sets.values())
    assert len(set().union(*sets.values())) == 72 * len(sets)


def test_the_global_random_state_is_left_alone() -> None:
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    glyph_images("train", 8)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"shift": 2.0},
        {"shear": 0.1},
        {"rotation": 3.0},
        {"scale": (0.5, 0.6)},
        {"blur": 2.5},
        {"contrast": (0.2, 0.3)},
        {"lines": 6},
        {"noise": 0.2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_changes_the_images(change: dict[str, object]) -> None:
    spec = replace(DEFAULT_SPEC, **change)
    assert glyph_digest("train", 12, spec=spec) != glyph_digest("train", 12)


def test_the_digest_tells_splits_seeds_and_sizes_apart() -> None:
    digests = {glyph_digest(split, n, seed=s) for split in SPLITS for n in (3, 4) for s in (0, 1)}
    assert len(digests) == 12
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)


def test_without_difficulty_a_character_looks_the_same_in_the_same_face() -> None:
    """All that is left to vary is the face and the colours."""
    index = range(0, 40 * 36, 36)  # forty times the first class
    pictures = [render_glyph("train", i, spec=PLAIN)[0].astype(np.float64).mean(-1) for i in index]
    shapes = {
        np.rint((p.max() - p) / (p.max() - p.min()) * 10).astype(int).tobytes() for p in pictures
    }
    assert 1 < len(shapes) <= 2 * len(FACES)  # rounding may split a face in two


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        DEFAULT_SPEC.noise = 0.5  # type: ignore[misc]


def test_an_unknown_split_is_named_with_those_that_exist() -> None:
    with pytest.raises(UserInputError, match="'test'.*train, calibration, evaluation"):
        render_glyph("test", 0)


@pytest.mark.parametrize(("index", "seed"), [(-1, 0), (0, -1)])
def test_negative_numbers_are_refused(index: int, seed: int) -> None:
    with pytest.raises(UserInputError, match="0 or more"):
        render_glyph("train", index, seed=seed)


def test_drawing_needs_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys; from vitsense.glyphs import glyph_images; import vitsense.zoo; "
        "glyph_images('train', 2); heavy = {'torch', 'timm', 'matplotlib'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
