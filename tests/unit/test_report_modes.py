"""Every way of measuring is explained in the report."""

from __future__ import annotations

from vitsense.report.compose import _MODE_WORDS
from vitsense.settings import SweepMode


def test_every_mode_has_its_words() -> None:
    assert set(_MODE_WORDS) == {mode.value for mode in SweepMode}
