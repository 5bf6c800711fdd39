"""Names of whole plans as readers see them."""

from __future__ import annotations

from vitsense.formats import format_of

BUDGETED = "best within the budget"
"""The plan that was searched for, in words that do not say whether it holds."""


def plan_name(name: str) -> str:
    """A plan of ``joint.csv`` in words: ``uniform-4`` is ``4 bits everywhere``."""
    kind, _, value = name.partition("-")
    if kind == "uniform":
        return f"{format_of(int(value) if value.isdecimal() else value).words} everywhere"
    if kind == "pareto":
        return f"mixed, about {value} bits"
    if kind == "random":
        return f"random formats, {value}"
    if name == "recommended":
        return BUDGETED
    return "as solved from single modules" if name == "solved" else name
