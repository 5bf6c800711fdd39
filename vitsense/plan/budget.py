"""What a plan may cost, read from text once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from vitsense.errors import UserInputError


class BudgetKind(Enum):
    """What is limited."""

    AVG_BITS = "avg-bits"
    """Mean bits of a weight, and mean bits of the operands of products."""
    SIZE_MB = "size-mb"
    BITOPS_G = "bitops-g"
    LATENCY_MS = "latency-ms"
    """One image, by a latency profile."""
    MAX_DROP = "max-drop"
    """Predicted drop, percentage points; bits are minimised."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on one kind of cost."""

    kind: BudgetKind
    value: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``avg-bits=4``.

        Raises:
            UserInputError: not of that form.
        """
        name, _, number = text.partition("=")
        allowed = ", ".join(f"{kind.value}=NUMBER" for kind in BudgetKind)
        try:
            kind, value = BudgetKind(name.strip()), float(number)
        except ValueError as error:
            raise UserInputError(f"{text!r} is no budget: write one of {allowed}.") from error
        if not math.isfinite(value) or value <= 0:
            raise UserInputError(f"The budget {text!r} must be a positive number.")
        return cls(kind, value)

    @property
    def text(self) -> str:
        """The form that `parse` reads."""
        return f"{self.kind.value}={self.value:g}"
