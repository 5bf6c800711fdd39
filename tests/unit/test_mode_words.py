"""Every mode is explained in the method of the report."""

from __future__ import annotations

from vitsense.report.compose import MODE_WORDS
from vitsense.settings import SweepMode


def test_the_method_of_every_mode_is_described() -> None:
    assert MODE_WORDS.keys() == {mode.value for mode in SweepMode}
    assert all(words.startswith(f"{mode}:") for mode, words in MODE_WORDS.items())
