"""Which images are trained on, in which order, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitsense.data import Draw, draw_images, open_source
from vitsense.errors import InputMissingError, UserInputError
from vitsense.glyphs import render_glyph
from vitsense.qat.training_images import (
    StepOrder,
    at_most,
    collection_digest,
    training_source,
    usable_numbers,
)


def _folder(path: Path, seeds: range) -> str:
    path.mkdir()
    for seed in seeds:
        pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{seed}.png")
    return str(path)


def test_generated_training_images_are_of_the_train_split() -> None:
    source = training_source(None, 40)
    assert len(source) == 40
    for index in (0, 39):
        pixels, label = render_glyph("train", index)
        np.testing.assert_array_equal(np.asarray(source.read(index)[1]), pixels)
        assert source.labels[index] == label


def test_every_pass_shows_every_image_once_in_another_order() -> None:
    order = StepOrder(images=10, per_step=4, seed=3)
    seen = [pair for step in range(5) for pair in order.at(step)]  # 20 images: two passes
    for number in (0, 1):
        places = [position for n, position in seen if n == number]
        assert Counter(places) == Counter(range(10))
    assert [p for n, p in seen if n == 0] != [p for n, p in seen if n == 1]
    assert order.at(2) == StepOrder(images=10, per_step=4, seed=3).at(2)
    assert order.at(2) != StepOrder(images=10, per_step=4, seed=4).at(2)


def test_fewer_images_than_one_batch_are_refused() -> None:
    with pytest.raises(UserInputError, match="3 training images are fewer than the 4"):
        StepOrder(images=3, per_step=4, seed=0)


def test_evaluation_images_of_the_same_folder_are_not_trained_on(tmp_path: Path) -> None:
    spec = _folder(tmp_path / "all", range(10))
    source = open_source(spec)
    _, evaluation = draw_images(source, Draw(evaluation=6, calibration=2))
    numbers = usable_numbers(training_source(spec), evaluation)
    assert not set(numbers) & set(evaluation.numbers)
    assert len(numbers) == 10 - len(evaluation)
    evaluation.numbers = list(range(10))
    with pytest.raises(UserInputError, match="No training images"):
        usable_numbers(training_source(spec), evaluation)


def test_a_training_folder_that_holds_an_evaluation_image_is_refused(tmp_path: Path) -> None:
    train = training_source(_folder(tmp_path / "train", range(5)))
    source = open_source(_folder(tmp_path / "val", range(4, 9)))
    _, evaluation = draw_images(source, Draw(evaluation=4, calibration=1))
    evaluation.numbers = list(range(5))
    with pytest.raises(UserInputError, match="1 training images of .* are also evaluation images"):
        usable_numbers(train, evaluation)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="holds no images"):
        training_source(str(tmp_path))
    with pytest.raises(UserInputError, match="--images is 0"):
        training_source(None, 0)


def test_the_digest_tells_collections_apart(tmp_path: Path) -> None:
    spec = _folder(tmp_path / "a", range(5))
    before = collection_digest(open_source(spec))
    assert before == collection_digest(open_source(spec))
    (tmp_path / "a" / "3.png").write_bytes((tmp_path / "a" / "2.png").read_bytes())
    assert collection_digest(open_source(spec)) != before
    (tmp_path / "a" / "3.png").unlink()
    assert collection_digest(open_source(spec)) != before


def test_fewer_images_are_drawn_from_the_seed() -> None:
    source = training_source(None, 30)
    usable = usable_numbers(source, None)
    numbers = at_most(8, usable, seed=1)
    assert len(set(numbers)) == 8
    assert numbers == at_most(8, usable, seed=1)
    assert numbers != at_most(8, usable, seed=2)
    assert at_most(None, usable, seed=1) == usable
