"""Whether a file differs more than arithmetic itself does."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from vitsense.export.floor import floor_of


def _logits(changed: int, by: float, images: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Two classes; the last ``changed`` images get the other one, all others move ``by``."""
    single = np.tile(np.array([1.0, 0.0], dtype=np.float32), (images, 1))
    other = single + np.float32(by)
    other[images - changed :] = [0.0, 1.0]
    return single, other


@pytest.mark.parametrize(("file", "double"), [(13, 12), (20, 12), (16, 12), (0, 0), (3, 0)])
def test_more_changed_classes_are_above_the_floor_when_chance_does_not_explain_them(
    file: int, double: int
) -> None:
    single, theirs = _logits(file, 0.01)
    _, own = _logits(double, 0.01)
    found = floor_of(single, theirs, own, step=0.01)
    more = file - double
    p = binomtest(more, more, alternative="greater").pvalue if more else 1.0
    assert found.p_value == pytest.approx(p)
    assert (found.only_file, found.only_double, found.same_top1) == (more, 0, 100 - double)
    assert found.within == (p >= 0.05)
    said = found.conclusion
    assert f"the file differs from the torch model on {file} of 100 classes" in said
    assert f"from itself on {double} and" in said
    assert said.startswith("within" if found.within else "above")
    assert ("than by chance" in said) != found.within


def test_images_that_change_on_either_side_are_paired() -> None:
    single, theirs = _logits(6, 0.01)
    own = single.copy()
    own[:5] = [0.0, 1.0]  # five other images
    found = floor_of(single, theirs, own, step=0.01)
    assert (found.only_file, found.only_double) == (6, 5)
    assert found.p_value == pytest.approx(binomtest(6, 11, alternative="greater").pvalue)


@pytest.mark.parametrize(("by", "within"), [(0.019, True), (0.021, False)])
def test_logits_may_differ_twice_as_much(by: float, within: bool) -> None:
    single, theirs = _logits(0, by)
    _, own = _logits(0, 0.01)
    found = floor_of(single, theirs, own, step=0.005)
    assert found.within == within
    assert ("twice as much" in found.conclusion) != within
    assert found.median_steps == pytest.approx(2, rel=1e-5)
    assert found.file_median_steps == pytest.approx(by / 0.005, rel=1e-5)
    assert found.largest_steps == pytest.approx(2, rel=1e-5)
    assert found.file_largest_steps == pytest.approx(by / 0.005, rel=1e-5)
    assert found.within_step == 0
