"""Values brought into order with the least change."""

from __future__ import annotations

from collections.abc import Sequence


def rising(values: Sequence[float]) -> list[float]:
    """The numbers nearest to ``values`` in least squares that never fall.

    Source: pool adjacent violators; Best and Chakravarti 1990, "Active set algorithms for isotonic
    regression".
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, size = float(value), 1
        while pools and pools[-1][0] > mean:
            before, many = pools.pop()
            mean, size = (mean * size + before * many) / (size + many), size + many
        pools.append((mean, size))
    return [mean for mean, size in pools for _ in range(size)]


def falling(values: Sequence[float]) -> list[float]:
    """The numbers nearest to ``values`` in least squares that never rise."""
    return rising(values[::-1])[::-1]
