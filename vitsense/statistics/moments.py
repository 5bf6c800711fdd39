"""Moments up to the fourth of many groups at once, exact under merging."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from vitsense.errors import SiteMismatchError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """Count, mean and central sums of ``G`` groups; every field is float64 `(G,)`.

    ``m2``, ``m3``, ``m4`` are sums of powers of deviations from the mean, in tensor units to that
    power. Variance is the population variance (divided by the count, ddof 0). Arrays are
    read-only: moments are values.
    """

    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    m3: NDArray[np.float64]
    m4: NDArray[np.float64]
    abs_sum: NDArray[np.float64]
    """Sum of absolute values."""
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]

    def __post_init__(self) -> None:
        for field in fields(self):
            array = np.asarray(getattr(self, field.name), dtype=np.float64).view()
            array.flags.writeable = False
            object.__setattr__(self, field.name, array)

    @classmethod
    def from_power_sums(
        cls,
        *,
        count: float,
        shift: NDArray[np.float64],
        sums: NDArray[np.float64],
        abs_sum: NDArray[np.float64],
        minimum: NDArray[np.float64],
        maximum: NDArray[np.float64],
    ) -> Moments:
        """Moments from sums of powers 1 to 4, `(4, G)`, of the values minus ``shift``, `(G,)`.

        A group of equal values gets exactly no variance, whatever was lost in the sums.

        Source: the binomial expansion of the central moments about the mean.
        """
        constant = minimum == maximum
        s1, s2, s3, s4 = sums
        n = np.full_like(shift, count)
        mean = s1 / n
        m2 = np.maximum(s2 - n * mean**2, 0.0)
        m3 = s3 - 3 * mean * s2 + 2 * n * mean**3
        m4 = np.maximum(s4 - 4 * mean * s3 + 6 * mean**2 * s2 - 3 * n * mean**4, 0.0)
        return cls(
            count=n,
            mean=np.where(constant, minimum, mean + shift),
            m2=np.where(constant, 0.0, m2),
            m3=np.where(constant, 0.0, m3),
            m4=np.where(constant, 0.0, m4),
            abs_sum=abs_sum,
            minimum=minimum,
            maximum=maximum,
        )

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.count)

    @property
    def variance(self) -> NDArray[np.float64]:
        """Population variance, `(G,)`."""
        return self.m2 / self.count

    @property
    def std(self) -> NDArray[np.float64]:
        """Population standard deviation, `(G,)`."""
        return np.sqrt(self.variance)

    @property
    def skewness(self) -> NDArray[np.float64]:
        """Third standardized moment, `(G,)`; NaN for a group without variance."""
        return self._standardized(self.m3, 1.5)

    @property
    def kurtosis(self) -> NDArray[np.float64]:
        """Excess kurtosis (0 for a normal distribution), `(G,)`; NaN without variance."""
        return self._standardized(self.m4, 2.0) - 3.0

    @property
    def abs_mean(self) -> NDArray[np.float64]:
        """Mean absolute value, `(G,)`."""
        return self.abs_sum / self.count

    @property
    def abs_max(self) -> NDArray[np.float64]:
        """Largest absolute value, `(G,)`."""
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum))

    def _standardized(self, central: NDArray[np.float64], power: float) -> NDArray[np.float64]:
        varies = self.m2 > 0
        safe = np.where(varies, self.variance, 1.0)
        return np.where(varies, central / self.count / safe**power, np.nan)

    def merge(self, other: Moments) -> Moments:
        """Moments of the union of two disjoint samples of the same groups.

        Raises:
            SiteMismatchError: the numbers of groups differ.

        Source: Chan, Golub and LeVeque 1979 (second moment); Pébay 2008, SAND2008-6212, pairwise
        update of central moments of arbitrary order (third and fourth). Written as the expansion
        about the joint mean, which is the same update for any number of parts.
        """
        if self.groups != other.groups:
            raise SiteMismatchError(
                f"Moments of {self.groups} and of {other.groups} groups cannot be merged."
            )
        pair = {
            f.name: np.stack([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)
        }
        return _union(pair)

    def collapse(self, parts: int = 1) -> Moments:
        """Moments of ``parts`` groups, each the union of equally many neighbours.

        ``collapse()`` gives the whole tensor; ``collapse(heads)`` the heads of channels that are
        ordered by head.

        Raises:
            SiteMismatchError: the groups cannot be divided evenly.
        """
        if parts < 1 or self.groups % parts:
            raise SiteMismatchError(
                f"{self.groups} groups cannot be united into {parts} equally large parts."
            )
        split = {
            f.name: getattr(self, f.name).reshape(parts, -1).T for f in fields(self)
        }  # (members, parts)
        return _union(split)


def _union(parts: dict[str, NDArray[np.float64]]) -> Moments:
    """Unite along the first axis of `(members, G)` fields."""
    n, m2, m3 = parts["count"], parts["m2"], parts["m3"]
    total = n.sum(0)
    weight = n / np.where(total > 0, total, 1.0)
    mean = (weight * parts["mean"]).sum(0)
    delta = np.where(n > 0, parts["mean"] - mean, 0.0)
    return Moments(
        count=total,
        mean=mean,
        m2=(m2 + n * delta**2).sum(0),
        m3=(m3 + 3 * delta * m2 + n * delta**3).sum(0),
        m4=(parts["m4"] + 4 * delta * m3 + 6 * delta**2 * m2 + n * delta**4).sum(0),
        abs_sum=parts["abs_sum"].sum(0),
        minimum=parts["minimum"].min(0),
        maximum=parts["maximum"].max(0),
    )
