"""How long a module takes on a device, from peak rates (an estimate) or from a table. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    rest_ms: float = 0.0
    """Of everything that is no module (normalization, softmax, copies)."""
    model: str = ""
    """Key of the model that was measured."""

    @property
    def is_estimate(self) -> bool:
        """Whether nothing in it was measured."""
        return not self.measured

    @classmethod
    def load(cls, path: Path) -> LatencyProfile:
        """Read a profile.

        Raises:
            InputMissingError: no such file.
            UserInputError: a value is missing or not positive, or measuring was interrupted.
        """
        data = read_json(path, PROFILE_SCHEMA)
        if data.get("status", "complete") != "complete":
            raise UserInputError(
                f"{path} is not finished; the vitsense profile command that began it continues."
            )
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
                rest_ms=float(data.get("rest_ms", 0.0)),
                model=str(data.get("model", {}).get("key", "")),
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
            raise UserInputError(self._silent([f"{module} in {form.name}"]))
        compute = macs / (rate * 1e12)
        traffic = params * form.effective_bits / 8 / (self.bandwidth_gb * 1e9)
        return 1e3 * max(compute, traffic) + 1e-3 * self.overhead_us

    def total(self, modules: Iterable[Mapping[str, Any]], formats: Mapping[str, str]) -> float:
        """Milliseconds of a whole model, for one image: its modules and the rest.

        Args:
            modules: Rows with ``module``, ``params`` and ``macs``.
            formats: Module -> format; one that is not named is in float, and counts where float
                was measured.

        Raises:
            UserInputError: the profile says nothing about some module; all of them are counted.
        """
        rows = {str(row["module"]): row for row in modules}
        quantized = self.times((rows[name], formats[name]) for name in rows if name in formats)
        floats = (self.measured.get(n, {}).get("float", 0.0) for n in rows if n not in formats)
        return self.rest_ms + sum(quantized) + sum(floats)

    def times(self, choices: Iterable[tuple[Mapping[str, Any], FormatLike]]) -> list[float]:
        """Milliseconds of modules (rows as in `total`), each in a format.

        Raises:
            UserInputError: the profile says nothing about some of them; all are counted.
        """
        wanted = list(choices)
        self.check((str(row["module"]), like) for row, like in wanted)
        return [
            self.milliseconds(str(row["module"]), int(row["params"]), int(row["macs"]), like)
            for row, like in wanted
        ]

    def prediction(
        self, modules: Iterable[Mapping[str, Any]], formats: Mapping[str, str]
    ) -> dict[str, Any]:
        """`total` with the profile's name and whether it is an estimate, plain values."""
        return {
            "profile": self.name,
            "ms": self.total(modules, formats),
            "kind": "estimate" if self.is_estimate else "measured per module",
        }

    def check(self, needed: Iterable[tuple[str, FormatLike]]) -> None:
        """Refuse a profile that lacks some of the modules in the formats, as another model's does.

        Raises:
            UserInputError: naming the first and counting the others.
        """
        widest = max(self.tera_macs, default=0)
        lacking = [
            f"{name} in {form.name}"
            for name, form in ((name, format_of(like)) for name, like in needed)
            if form.name not in self.measured.get(name, {}) and form.bits > widest
        ]
        if lacking:
            raise UserInputError(self._silent(lacking))

    def _silent(self, lacking: list[str]) -> str:
        others = f" and {len(lacking) - 1} others" if len(lacking) > 1 else ""
        model = f" (it was measured for {self.model})" if self.model else ""
        return (
            f"The profile {self.name}{model} says nothing about {lacking[0]}{others}: measure "
            "them with vitsense profile --model NAME --formats NAMES, or give tera_macs of that "
            "many bits or more."
        )


def _check(profile: LatencyProfile, path: Path) -> None:
    values: list[Any] = [*profile.tera_macs.values()]
    values += [v for row in profile.measured.values() for v in row.values()]
    if not values or any(not v > 0 for v in values):
        raise UserInputError(f"{path}: every rate and time must be a positive number.")
    if profile.rest_ms < 0:
        raise UserInputError(f"{path}: rest_ms is {profile.rest_ms:g}; it must not be negative.")
    if profile.tera_macs and not profile.bandwidth_gb > 0:
        raise UserInputError(f"{path}: tera_macs needs bandwidth_gb, a positive number.")
