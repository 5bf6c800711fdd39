"""``plan.json``: bits per module, by the solver or by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vitsense.errors import SiteMismatchError, UserInputError
from vitsense.formats import ALLOWED_BITS, format_of
from vitsense.runfolder import atomic_write, json_text, read_json

PLAN_SCHEMA = "vitsense.plan/1"
"""Schema of a plan; a larger number after the slash is a newer version's."""

FLOAT = "float"
"""Format of a module's weight or activation that stays in full precision; set from Python."""


def near_names(unknown: str, names: Sequence[str]) -> str:
    """A sentence that lists the names nearest to one that is not among them, or nothing."""
    near = get_close_matches(unknown, list(names), n=3, cutoff=0.4)
    return f" Near names: {', '.join(near)}." if near else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModulePlan:
    """What one module gets."""

    name: str
    bits: int
    role: str = ""
    weight: str | None = None
    """Format of the weight, ``int4`` or ``mxfp4``; None for products; see `FLOAT`."""
    activation: str | None = None
    """Format of the activations, ``uint4`` or ``mxfp4``."""
    pinned: bool = False
    reason: str = ""
    """In plain words, from the measured numbers."""

    @property
    def format(self) -> str:
        """The format that was measured: ``int4`` for int4 weights and uint4 activations."""
        named = [form for form in (self.weight, self.activation) if form and form != FLOAT]
        return (named or [f"int{self.bits}"])[0].removeprefix("u")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Bits for the modules of one model, where they come from, and what they are expected to do."""

    modules: tuple[ModulePlan, ...]
    model: Mapping[str, Any] = field(default_factory=dict)
    """key, name, weights_digest, sites_digest, num_classes."""
    quantization: Mapping[str, Any] = field(default_factory=dict)
    budget: str = ""
    cost: Mapping[str, float] | None = None
    predicted: Mapping[str, Any] | None = None
    measured: Mapping[str, Any] | None = None
    """The whole plan's measured outcome; None when it was not measured."""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bits(self) -> dict[str, int]:
        """Module -> bits."""
        return {module.name: module.bits for module in self.modules}

    @property
    def formats(self) -> dict[str, str]:
        """Module -> format, as `vitsense.formats` names it."""
        return {module.name: module.format for module in self.modules}

    def to_json(self) -> dict[str, Any]:
        """Plain values in the order of the file."""
        return {"schema": PLAN_SCHEMA, **asdict(self)}

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        atomic_write(path, json_text(self.to_json()))

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan.

        Raises:
            InputMissingError: no such file.
            UserInputError: not a plan, or an entry is wrong (which one is said).
            SchemaVersionError: a newer version wrote it.
        """
        return cls.from_json(read_json(path, PLAN_SCHEMA), str(path))

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "the plan") -> Plan:
        """The inverse of `to_json`; a hand-written plan needs only modules with name and bits.

        Raises:
            UserInputError: an entry is wrong (which one is said).
        """
        rows = data.get("modules")
        if not isinstance(rows, list) or not rows:
            raise UserInputError(f"{where}: 'modules' must be a list with at least one entry.")
        modules = tuple(_module(row, f"{where}: modules[{i}]") for i, row in enumerate(rows))
        names = [module.name for module in modules]
        if len(set(names)) != len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise UserInputError(f"{where} names the module {double!r} twice.")
        optional = {
            key: data[key]
            for key in (
                "model",
                "quantization",
                "budget",
                "cost",
                "predicted",
                "measured",
                "provenance",
            )
            if data.get(key) is not None
        }
        return cls(modules=modules, **optional)

    def check_against(
        self, names: Sequence[str], *, weights_digest: str = "", model: str = "the model"
    ) -> None:
        """Refuse a plan of another model.

        Raises:
            SiteMismatchError: a module is unknown (near names are listed), or the weights differ.
        """
        unknown = [module.name for module in self.modules if module.name not in names]
        if unknown:
            raise SiteMismatchError(
                f"The plan names {len(unknown)} modules that {model} does not have, first "
                f"{unknown[0]!r}: it belongs to another model."
                f"{near_names(unknown[0], names)}"
            )
        theirs = self.model.get("weights_digest")
        if theirs and weights_digest and theirs != weights_digest:
            raise SiteMismatchError(
                f"The plan was made for weights with the digest {theirs}, {model} has "
                f"{weights_digest}: analyze these weights, or delete weights_digest from the plan."
            )


def _module(row: Any, where: str) -> ModulePlan:
    if not isinstance(row, dict):
        raise UserInputError(
            f"{where} is {json.dumps(row)}; expected an object with name and bits."
        )
    name, bits = row.get("name"), row.get("bits")
    if not isinstance(name, str) or not name:
        raise UserInputError(f"{where}: name is {json.dumps(name)}; expected a module's name.")
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in ALLOWED_BITS:
        allowed = ", ".join(map(str, ALLOWED_BITS))
        raise UserInputError(
            f"{where} ({name}): bits is {json.dumps(bits)}; allowed are {allowed}."
        )
    known = {key: row[key] for key in ModulePlan.__slots__ if key in row}
    module = ModulePlan(**known)
    try:
        form = format_of(module.format)
    except (UserInputError, AttributeError) as error:
        raise UserInputError(f"{where} ({name}): {error}") from error
    if form.bits != bits:
        raise UserInputError(
            f"{where} ({name}): bits is {bits}, but {form.name} has {form.bits}; make them agree."
        )
    return module
