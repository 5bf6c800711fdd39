"""What more bits of a module would take and save, from its weights and its divergences."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from vitsense.decimals import predicted
from vitsense.plan.plan import ModulePlan, Plan
from vitsense.report.compose_prices import more_bits
from vitsense.report.remedy import outcome, shown

MODULES = pd.DataFrame(
    {
        "module": ["a", "b", "c", "d"],
        "params": [36_864, 432, 640, 0],
        "weight_shape": ["64x64x3x3", "16x3x3x3", "10x64", ""],
    }
)


def cells() -> pd.DataFrame:
    rows = [(n, f"int{bits}", 0.8 / 4**bits) for n in "abcd" for bits in (8, 6, 4)]
    return pd.DataFrame(rows, columns=["module", "format", "kl"]).assign(status="measured")


def plan(budget: str = "avg-bits=4") -> Plan:
    chosen = {"a": 4, "b": 8, "c": 4, "d": 4}
    modules = tuple(
        ModulePlan(
            name=name,
            bits=bits,
            role="conv",
            weight=f"int{bits}" if name != "d" else None,
            activation=f"uint{bits}",
            pinned=name == "c",
            reason="",
        )
        for name, bits in chosen.items()
    )
    return Plan(modules=modules, budget=budget)


def test_a_module_says_what_two_more_bits_cost_and_save() -> None:
    found = more_bits(MODULES, cells(), plan())
    # 36,864 weights times 2 bits are 9,216 bytes; 0.8/4^4 - 0.8/4^6 = 0.00293
    # b is widest, c is pinned, d has no weights
    assert found == {"a": "; 6 bits would take 9.2 kB more and save 0.0029 nats (0.00032 per kB)"}


@pytest.mark.parametrize("budget", ["bitops-g=1", "latency-ms=2", "max-drop=1"])
def test_other_budgets_are_not_paid_in_memory(budget: str) -> None:
    assert more_bits(MODULES, cells(), plan(budget)) == {}


def test_nothing_is_promised_where_more_bits_save_nothing() -> None:
    worse = cells().replace({"kl": {0.8 / 4**6: 1.0}})
    assert more_bits(MODULES, worse, plan()) == {}
    assert more_bits(MODULES, cells(), None) == {}
    assert more_bits(MODULES, cells(), replace(plan(), modules=())) == {}


def test_a_prediction_that_rounds_to_zero_is_no_certainty() -> None:
    assert predicted(0.0003, 0.0001, 0.0009) == "< 0.05"
    assert predicted(0.01, 0.0, 0.3) == "0.0 (0.0 to 0.3)"


@pytest.mark.parametrize(
    ("remedy", "after", "known"),
    [
        ("one scale per channel", 0.1, True),
        ("one scale per channel", 0.9, False),
        ("two more bits", 0.1, False),
        ("", None, False),
    ],
)
def test_a_cause_is_a_reason_only_where_taking_it_away_helped(
    remedy: str, after: float | None, known: bool
) -> None:
    row = {"remedy": remedy, "kl_before": 1.0, "kl_after": after}
    row |= {"kl_after_low": after and 0.9 * after, "kl_after_high": after and 1.2 * after}
    assert shown(row) is known


TRIED = {"kl_before": 1.0, "kl_after": 0.5, "kl_after_low": 0.4, "kl_after_high": 0.6}
DROPS = ("drop_before", "drop_after", "drop_after_low", "drop_after_high")


@pytest.mark.parametrize(
    ("remedy", "drops", "said"),
    [
        ("powers of two", (1.0, 0.5, 0.1, 0.9), "helps"),
        ("powers of two", (1.0, 1.5, 0.1, 2.9), "helps, but the drop rises (within its interval)"),
        ("powers of two", (1.0, 2.5, 2.1, 2.9), "helps, but the drop rises"),
        ("two more bits", (1.0, 0.5, 0.1, 0.9), "tests no cause"),
    ],
)
def test_more_bits_test_no_cause_and_a_drop_that_rises_is_said(
    remedy: str, drops: tuple[float, ...], said: str
) -> None:
    assert outcome(TRIED | {"remedy": remedy} | dict(zip(DROPS, drops, strict=True))) == said
