"""How long a module takes on a device, from peak rates (an estimate) or from a table. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitsense.errors import UserInputError
from vitsense.formats import FormatLike, format_of
from vitsense.runfolder import read_json

PROFILE_SCHEMA = "vitsense.profile/1"
"""Schema of a latency profile; ``docs/latency-profile.md`` describes it."""

FLOAT_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyProfile:
    """Milliseconds of a module in a format.

    Where the table of measured modules has the module in the format, that is taken; else the
    roofline: the larger of the time to compute and the time to read the weights, plus an overhead.

    Source: Williams, Waterman and Patterson 2009, "Roofline". Only weights are counted as traffic:
    activations of one image stay in the cache of an accelerator.
    """

    name: str
    tera_macs: Mapping[int, float] = field(default_factory=dict)
    """Bits of the operands -> 10^12 multiply-accumulates per second."""
    bandwidth_gb: float = 0.0
    """10^9 bytes per second."""
    overhead_us: float = 0.0
    """Of every module, microseconds."""
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Module -> format -> milliseconds."""

    @property
    def is_estimate(self) -> bool:
        """Whether nothing in it was measured."""
        return not self.measured

    @classmethod
    def load(cls, path: Path) -> LatencyProfile:
        """Read a profile.

        Raises:
            InputMissingError: no such file.
            UserInputError: a value is missing or not positive.
        """
        data = read_json(path, PROFILE_SCHEMA)
        try:
            rates = {int(bits): float(rate) for bits, rate in data.get("tera_macs", {}).items()}
            profile = cls(
                name=str(data["name"]),
                tera_macs=rates,
                bandwidth_gb=float(data.get("bandwidth_gb", 0.0)),
                overhead_us=float(data.get("overhead_us", 0.0)),
                measured={
                    str(name): {str(k): float(v) for k, v in row.items()}
                    for name, row in data.get("measured", {}).items()
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserInputError(
                f"{path} is no latency profile ({error}): it needs a name and tera_macs (bits -> "
                "10^12 multiply-accumulates per second) with bandwidth_gb, or measured (module -> "
                "format -> milliseconds)."
            ) from error
        _check(profile, path)
        return profile

    def milliseconds(self, module: str, params: int, macs: int, like: FormatLike) -> float:
        """Time of one module for one image.

        Raises:
            UserInputError: the profile says nothing about this module or format.
        """
        form = format_of(like)
        known = self.measured.get(module, {}).get(form.name)
        if known is not None:
            return known
        rate = next((self.tera_macs[b] for b in sorted(self.tera_macs) if b >= form.bits), None)
        if rate is None:
            raise UserInputError(
                f"The profile {self.name} says nothing about {module} in {form.name}: add it to "
                "measured, or give tera_macs of that many bits or more."
            )
        compute = macs / (rate * 1e12)
        traffic = params * form.effective_bits / 8 / (self.bandwidth_gb * 1e9)
        return 1e3 * max(compute, traffic) + 1e-3 * self.overhead_us


def _check(profile: LatencyProfile, path: Path) -> None:
    values: list[Any] = [*profile.tera_macs.values()]
    values += [v for row in profile.measured.values() for v in row.values()]
    if not values or any(not v > 0 for v in values):
        raise UserInputError(f"{path}: every rate and time must be a positive number.")
    if profile.tera_macs and not profile.bandwidth_gb > 0:
        raise UserInputError(f"{path}: tera_macs needs bandwidth_gb, a positive number.")
