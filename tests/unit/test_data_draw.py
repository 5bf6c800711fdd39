"""Which images calibrate and which evaluate: disjoint, repeatable, balanced."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from image_sets import class_folders, flat, labelled, tar_of
from PIL import Image

from vitsense.data import Draw, ImageSource, draw_images, open_source
from vitsense.errors import UserInputError
from vitsense.glyphs import GLYPH_CLASSES


def made_up(labels: list[int], broken: frozenset[int] = frozenset()) -> ImageSource:
    """Images that exist in memory only; the broken ones cannot be read."""

    def read(index: int) -> tuple[bytes, Image.Image]:
        if index in broken:
            raise OSError("planted")
        return index.to_bytes(4, "little"), Image.new("RGB", (1, 1), (index % 256, 0, 0))

    return ImageSource(spec="made up", kind="folder", labels=tuple(labels), read=read)


@settings(max_examples=500)
@given(
    labels=st.lists(st.integers(-1, 3), min_size=2, max_size=60),
    broken=st.frozensets(st.integers(0, 59)),
    evaluation=st.integers(1, 80),
    calibration=st.integers(1, 40),
    seed=st.integers(0, 5),
)
@example(labels=[0] * 27, broken=frozenset({1}), evaluation=1, calibration=26, seed=0)
@example(labels=[0] * 27, broken=frozenset(range(25)), evaluation=26, calibration=1, seed=0)
def test_no_image_is_in_both_and_none_is_used_twice(
    labels: list[int], broken: frozenset[int], evaluation: int, calibration: int, seed: int
) -> None:
    source = made_up(labels, broken)
    readable = len(set(range(len(labels))) - broken)
    draw = Draw(evaluation=evaluation, calibration=calibration, seed=seed)
    if readable < 2:
        with pytest.raises(UserInputError, match="at least two different"):
            draw_images(source, draw)
        return
    first, second = draw_images(source, draw)
    used = [*first.numbers, *second.numbers]
    assert len(used) == len(set(used))
    assert not set(used) & broken
    assert 1 <= len(first) <= calibration
    assert 1 <= len(second) <= evaluation
    if readable >= evaluation + calibration:
        assert (len(first), len(second)) == (calibration, evaluation)
    again = draw_images(source, draw)
    assert (again[0].numbers, again[1].numbers) == (first.numbers, second.numbers)


def test_another_seed_draws_other_images() -> None:
    source = made_up([0] * 100)
    one, two = (draw_images(source, Draw(evaluation=10, calibration=10, seed=s)) for s in (0, 1))
    assert one[1].numbers != two[1].numbers
    assert one[1].digest != two[1].digest


def test_calibration_takes_the_classes_in_turn() -> None:
    """Where one class has a hundred times the images of another, a plain draw would miss one."""
    source = made_up([0] * 1000 + [1] * 10 + [2] * 10)
    calibration, _ = draw_images(source, Draw(evaluation=5, calibration=12))
    assert Counter(source.labels[n] for n in calibration.numbers) == {0: 4, 1: 4, 2: 4}


def test_evaluation_does_not_depend_on_how_many_images_calibrate() -> None:
    source = made_up([0, 1] * 100)
    drawn = [
        draw_images(source, Draw(evaluation=30, calibration=n))[1].numbers for n in (1, 10, 100)
    ]
    assert drawn[0] == drawn[1] == drawn[2]


def test_unreadable_images_are_named_and_replaced_by_others() -> None:
    whole = made_up([0] * 40)
    draw = Draw(evaluation=10, calibration=10)
    calibration, evaluation = draw_images(whole, draw)
    broken = frozenset({calibration.numbers[3], evaluation.numbers[5]})
    found = draw_images(made_up([0] * 40, broken), draw)
    assert [len(images) for images in found] == [10, 10]
    assert [images.skipped for images in found] == [
        [str(calibration.numbers[3])],
        [str(evaluation.numbers[5])],
    ]
    kept = [n for n in evaluation.numbers if n not in broken]
    assert found[1].numbers[:9] == kept


def test_strict_ends_at_the_first_unreadable_image() -> None:
    source = made_up([0] * 20, frozenset(range(20)))
    with pytest.raises(UserInputError, match=r"made up cannot be read.*\(planted\).*--strict"):
        draw_images(source, Draw(evaluation=2, calibration=2, strict=True))


def test_too_few_images_leave_a_tenth_for_calibration() -> None:
    calibration, evaluation = draw_images(made_up([0] * 50), Draw(evaluation=1000, calibration=128))
    assert (len(calibration), len(evaluation)) == (5, 45)


@pytest.mark.parametrize("count", [1, 0])
def test_fewer_than_two_images_are_refused(count: int) -> None:
    with pytest.raises(UserInputError, match=f"has {count} image.*at least two different"):
        draw_images(made_up([0] * count), Draw(evaluation=1, calibration=1))


def test_two_sources_may_not_share_an_image(tmp_path: Path) -> None:
    """The same picture under another name, and as another file, is still the same picture."""
    ours = open_source(str(flat(tmp_path / "a", 6)))
    (tmp_path / "b").mkdir()
    Image.open(tmp_path / "a" / "0003.png").save(tmp_path / "b" / "other.bmp")
    theirs = open_source(str(tmp_path / "b"))
    with pytest.raises(UserInputError, match="1 evaluation images are also calibration images"):
        draw_images(ours, Draw(evaluation=6, calibration=1), theirs)


def test_two_sources_are_each_used_for_their_purpose(tmp_path: Path) -> None:
    ours = open_source(str(flat(tmp_path / "a", 6)))
    theirs = made_up([0] * 9)
    calibration, evaluation = draw_images(ours, Draw(evaluation=6, calibration=4), theirs)
    assert calibration.source is theirs
    assert sorted(evaluation.numbers) == [0, 1, 2, 3, 4, 5]
    assert len(calibration) == 4


def test_generated_images_can_be_evaluated_after_calibrating_on_others() -> None:
    theirs = made_up([0] * 9)
    calibration, evaluation = draw_images(
        open_source(None), Draw(evaluation=2, calibration=4), theirs
    )
    assert calibration.source is theirs
    assert evaluation.numbers == [0, 1]


def test_generated_images_are_labelled_disjoint_and_different() -> None:
    source = open_source(None)
    calibration, evaluation = draw_images(source, Draw(evaluation=40, calibration=40))
    assert (source.kind, source.labelled, source.classes) == ("generated", True, GLYPH_CLASSES)
    assert not set(calibration.numbers) & set(evaluation.numbers)
    labels = [source.labels[n] for n in evaluation.numbers]
    assert labels == [*range(36), 0, 1, 2, 3]
    pixels = {
        np.asarray(source.read(n)[1]).tobytes() for n in calibration.numbers + evaluation.numbers
    }
    assert len(pixels) == 80


def test_the_digest_sees_content_label_and_order(tmp_path: Path) -> None:
    draw = Draw(evaluation=4, calibration=1)

    def digest(name: str, labels: list[int | str]) -> str:
        return draw_images(open_source(str(labelled(tmp_path / name, labels))), draw)[1].digest

    same = digest("a", [0, 1, 0, 1, 0])
    assert digest("b", [0, 1, 0, 1, 0]) == same
    assert digest("c", [0, 1, 0, 1, 1]) != same or digest("d", [1, 1, 0, 1, 0]) != same
    changed = labelled(tmp_path / "e", [0, 1, 0, 1, 0])
    for file in changed.glob("*.png"):
        Image.new("RGB", (3, 3), (0, 0, int(file.stem))).save(file)
    assert draw_images(open_source(str(changed)), draw)[1].digest != same


def test_an_archive_draws_what_its_folder_draws(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set", {"cat": 8, "dog": 8})
    archive = tar_of(folder, tmp_path / "set.tar", inside="set")
    draw = Draw(evaluation=6, calibration=4)
    one, two = (draw_images(open_source(str(path)), draw) for path in (folder, archive))
    assert [images.digest for images in one] == [images.digest for images in two]
    assert (one[0].source.kind, two[0].source.kind) == ("folder", "tar")


def test_unreadable_images_are_as_if_they_had_never_been_there() -> None:
    """The draw depends on the readable images only, not on where the broken ones stood."""
    draw = Draw(evaluation=10, calibration=6)
    broken = frozenset(range(0, 60, 7))
    found = draw_images(made_up([0, 1, 2] * 20, broken), draw)
    order = np.random.default_rng(0).permutation(60).tolist()
    assert found[1].numbers == [n for n in order if n not in broken][:10]
    assert Counter(n % 3 for n in found[0].numbers) == {0: 2, 1: 2, 2: 2}


def test_no_image_is_decoded_that_was_not_drawn() -> None:
    """A set may have a million images."""
    source = made_up([0] * 10_000)
    seen: list[int] = []
    counted = replace(source, read=lambda n: (seen.append(n), source.read(n))[1])
    first, second = draw_images(counted, Draw(evaluation=20, calibration=5))
    assert sorted(seen) == sorted([*first.numbers, *second.numbers])


def test_a_source_of_calibration_images_alone_must_have_a_readable_one() -> None:
    theirs = made_up([0] * 4, frozenset(range(4)))
    with pytest.raises(UserInputError, match="None of the 4 images of made up can be read"):
        draw_images(made_up([0] * 4), Draw(evaluation=2, calibration=2), theirs)
