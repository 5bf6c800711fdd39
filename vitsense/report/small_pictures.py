"""The histogram of a tensor as a labelled picture for the page: axes, grids, channels."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vitsense.report.formatters import count, number, short
from vitsense.report.sheet import HEIGHT, SPARK_HEIGHT, TALLEST, WIDTH, Ladder, Picture
from vitsense.report.svg import bars_path, grid_line

LEFT = 38
"""Room for the numbers left of the axis; all lengths here are units of the picture."""

_SHOWN = 170  # of the histogram's width
_TOP = 24  # above the histogram: what its axis counts, and the names of the dashed lines
_RUNG = 11
_LETTER = 5.7  # width of a letter
_BASE = _TOP + HEIGHT
_FIRST = _BASE + 22  # middle of the first grid
_GAP = 4
_TICKS = 4  # at most, on the axis of values


def frame(labels: tuple[str, ...]) -> str:
    """What all pictures of a model share: axes, their names, and the widths of the grids.

    Args:
        labels: Of the widths that have a grid, ``8 bits``, wide to narrow.
    """
    rungs = "".join(
        _text(LEFT - _GAP, _FIRST + _RUNG * k + 3, label, "e") for k, label in enumerate(labels)
    )
    return (
        f'<path class="a" d="M{LEFT} {_TOP}V{_BASE}H{LEFT + _SHOWN}"/>'
        + _text(LEFT, 8, "values per bin (log scale)")
        + _text(LEFT - _GAP, _BASE, "0", "e")
        + _text(LEFT + _SHOWN + _GAP, _BASE + 11, "value")
        + rungs
    )


def labelled(picture: Picture, colour: int, shared: str, planned: str) -> str:
    """The picture as an SVG element.

    Args:
        picture: A tensor's.
        colour: Number of the model.
        shared: Id of the group that `frame` fills.
        planned: Label of the plan's format; its grid is coloured.
    """
    bottom = _FIRST + _RUNG * len(picture.ladders) - 4
    parts = [
        f'<svg viewBox="0 0 {_wide(picture)} {bottom + (_channels_height(picture))}" role="img" '
        f'aria-label="{picture.summary}"><use href="#{shared}"/>',
        f'<path class="c{colour}" transform="{_placed(picture)}" '
        f'd="{bars_path(picture.heights, HEIGHT)}"/>',
        _text(LEFT - _GAP, _BASE - TALLEST + 6, count(picture.most), "e"),
        *_dashed(picture),
        *_axis(picture),
        *_grids(picture, colour, planned),
        *_spark(picture, bottom),
        "</svg>",
    ]
    return "".join(parts)


def _wide(picture: Picture) -> int:
    """Width of the picture, with room for the ends of its grids."""
    longest = max((len(_ends(ladder)) for ladder in picture.ladders), default=0)
    return LEFT + _SHOWN + _GAP + math.ceil(_LETTER * max(longest, len("value")))


def _ends(ladder: Ladder) -> str:
    return f"{short(ladder.low)} to {short(ladder.high)}"


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    how = f' class="{kind}"' if kind else ""
    return f'<text{how} x="{x:g}" y="{y:g}">{words}</text>'


def _at(place: float) -> float:
    """From pixels of the histogram to units of the picture."""
    return round(LEFT + place * _SHOWN / WIDTH, 1)


def _placed(picture: Picture) -> str:
    return f"matrix({picture.bin * _SHOWN / WIDTH:.4g} 0 0 1 {_at(picture.start):g} {_TOP})"


def _dashed(picture: Picture) -> Iterator[str]:
    """The mean and the deviations."""
    if picture.ticks:
        lines = "".join(f"M{_at(x):g} {_TOP}V{_BASE}" for x, _ in picture.ticks)
        yield f'<path class="t" d="{lines}"/>'


def _axis(picture: Picture) -> Iterator[str]:
    """Marks at round values, and the names of these and of the dashed lines."""
    ticks = round_values(picture.left, picture.right)
    reach = picture.right - picture.left
    places = [_at((value - picture.left) / reach * WIDTH) for value in ticks]
    if places:
        yield f'<path class="a" d="{"".join(f"M{x:g} {_BASE}v3" for x in places)}"/>'
    yield '<g class="m">'
    for x, label in picture.ticks:
        if label:
            yield _text(_at(x), _TOP - 3, label)
    for x, words in zip(places, _alike(ticks), strict=True):
        yield _text(min(x, LEFT + _SHOWN - 6), _BASE + 11, words)
    yield "</g>"


def round_values(low: float, high: float, most: int = _TICKS) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within an interval, at most so many."""
    if not low < high:
        return []
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power * k for k in (1, 2, 5, 10, 20, 50)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [k * step for k in range(first, last + 1)]
    return []


def _alike(values: list[float]) -> list[str]:
    """Round values with as many decimals as the finest needs."""
    for digits in range(5):
        texts = [number(value, digits) for value in values]
        exact = (abs(round(v, digits) - v) < 1e-9 + 1e-6 * abs(v) for v in values)
        if all(exact):
            return ["0" if value == 0 else text for value, text in zip(values, texts, strict=True)]
    return [short(value) for value in values]


def _grids(picture: Picture, colour: int, planned: str) -> Iterator[str]:
    yield '<g class="g">'
    for place, ladder in enumerate(picture.ladders):
        line, dashes = _line(ladder, place)
        mine = f' class="k{colour}"' if str(ladder.bits) == planned else ""
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        yield f'<path{mine} d="{line}"{dashed}/>'
    yield "</g>"
    for place, ladder in enumerate(picture.ladders):
        yield _text(LEFT + _SHOWN + _GAP, _FIRST + _RUNG * place + 3, _ends(ladder))


def _line(ladder: Ladder, place: int) -> tuple[str, str]:
    scale = _SHOWN / WIDTH
    return grid_line(
        LEFT + ladder.start * scale, ladder.step * scale, ladder.steps, _FIRST + _RUNG * place
    )


def _channels_height(picture: Picture) -> int:
    return SPARK_HEIGHT + 18 if picture.channels else 0


def _spark(picture: Picture, top: int) -> Iterator[str]:
    if not picture.channels:
        return
    words = f"largest magnitude by channel (0 to {picture.wide - 1}), up to {short(picture.top)}"
    yield _text(0, top + 11, words)
    each = f"{(LEFT + _SHOWN) / len(picture.channels):.4g}"
    yield (
        f'<path class="s" transform="matrix({each} 0 0 1 0 {top + 15})" '
        f'd="{bars_path(picture.channels, SPARK_HEIGHT)}"/>'
    )
