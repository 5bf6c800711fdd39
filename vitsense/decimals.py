"""Numbers as text, with one rule for each kind; a value and its interval share their decimals."""

from __future__ import annotations

import math
from collections.abc import Sequence

MINUS = "\u2212"
_LEAST_POINTS = 0.05  # what is less is shown as 0.0


def number(value: float, digits: int = 1) -> str:
    """A number with a real minus sign; negative zero is zero."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def counted(count: int, noun: str) -> str:
    """``1 step``, ``3,600 images``: a count with its noun, which takes an s in the plural."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def span(low: float, high: float, digits: int = 1) -> str:
    """``0.4 to 2.0``."""
    return f"{number(low, digits)} to {number(high, digits)}"


def difference(value: float, low: float, high: float, *, digits: int = 1) -> str:
    """``0.56 (−0.71 to 1.82)``: a difference with its interval.

    It is computed before rounding and has one decimal more than the two numbers that it comes from,
    which stand beside it: of 1.2 and 0.7, rounded to a tenth, ``0.6`` would look wrong and ``0.5``
    would be wrong, where 0.56 is the difference.

    Args:
        value: The difference.
        low: The lower end of its interval.
        high: The upper end.
        digits: Decimals of the two numbers.
    """
    return f"{number(value, digits + 1)} ({span(low, high, digits + 1)})"


def predicted(value: float, low: float, high: float) -> str:
    """``0.2 (0.1 to 0.5)``: a predicted loss in points; ``< 0.05`` where all of it rounds to zero.

    A prediction has no noise of images, so ``0.0 (0.0 to 0.0)`` would look like certainty.
    """
    if high < _LEAST_POINTS:
        return f"< {_LEAST_POINTS}"
    return f"{number(value)} ({span(low, high)})"


def short(value: float, digits: int = 2) -> str:
    """Significant digits, two unless told, for quantities over many magnitudes."""
    if not math.isfinite(value):
        return "infinite" if value > 0 else "unknown"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude >= 6:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    return number(value, max(digits - 1 - magnitude, 0))


def short_span(value: float, low: float, high: float) -> str:
    """``0.052 (0.010 to 0.110)``: a value with its interval, all to the same decimals.

    Two significant digits of the value, and at least one of every end that is not zero.
    """
    known = [v for v in (value, low, high) if math.isfinite(v) and v != 0]
    if not known:
        return f"{short(value)} ({short(low)} to {short(high)})"
    first = value if math.isfinite(value) and value != 0 else max(known, key=abs)
    top = math.floor(math.log10(abs(first)))
    if top < -4 or top >= 6:
        texts = [_scaled(v, top) for v in (value, low, high)]
    else:
        least = min(math.floor(math.log10(abs(v))) for v in known)
        digits = max(1 - top, min(-least, 4 - top), 0)
        texts = [number(v, digits) if math.isfinite(v) else short(v) for v in (value, low, high)]
    return f"{texts[0]} ({texts[1]} to {texts[2]})"


def _scaled(value: float, magnitude: int) -> str:
    """With the power of ten of another number."""
    if not math.isfinite(value) or value == 0:
        return short(value)
    return f"{number(value / 10.0**magnitude)}e{magnitude}".replace("-", MINUS)


def listed(names: Sequence[str]) -> str:
    """``8, 6 and 4``: a list in a sentence."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
