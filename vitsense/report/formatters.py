"""Numbers as text, with one rule for each kind."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

from vitsense.decimals import MINUS, difference, number, short, short_span, span
from vitsense.verdict import loss_of

__all__ = [
    "MINUS", "count", "difference", "known", "loss_of", "number", "percent", "short",
    "short_span", "shortened", "signs", "span", "spelled", "visible",
]  # fmt: skip

ZWJ = "\u200d"  # holds the parts of an emoji together


def visible(text: str) -> str:
    """The text with characters that steer others (line breaks, directions) written as escapes.

    For sentences: a name that turns the direction of writing would turn the rest of the sentence.
    """
    return "".join(
        f"\\u{ord(c):04x}" if unicodedata.category(c) in {"Cc", "Cf"} and c != ZWJ else c
        for c in text
    )


_LONGEST = 60  # letters of a name in a sentence


def shortened(name: str) -> str:
    """A name for a sentence: of a long one the two ends, which tell modules apart."""
    half = (_LONGEST - 1) // 2
    return name if len(name) <= _LONGEST else f"{name[:half]}\u2026{name[-half:]}"


def spelled(text: str) -> str:
    """Numbers of a plan's file, ``1.4e-05``, as the report writes them, ``1.4e−5``."""
    return re.sub(r"(\d)e-0*(?=\d)", rf"\1e{MINUS}", text)


def signs(text: str) -> str:
    """Minus signs of numbers in a text, ``from -0.17``, as the report writes them."""
    return re.sub(r"(?<![\w.-])-(?=\d)", MINUS, text)


def count(value: int) -> str:
    """``1.2 M``, ``36.9 k`` or the number itself."""
    if value >= 1_000_000:
        return f"{value / 1e6:.1f} M"
    return f"{value / 1e3:.1f} k" if value >= 1000 else str(value)


def percent(value: float) -> str:
    """A share (0 to 1) in percent, with enough digits to see that it is not zero."""
    hundred = 100 * value
    if 0 < hundred < 0.01:
        return "< 0.01 %"
    return f"{hundred:.2f} %" if hundred < 1 else f"{hundred:.1f} %"


def known(value: Any) -> bool:
    """Whether a table's cell holds a number."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))
