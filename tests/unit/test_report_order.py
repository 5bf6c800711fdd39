"""How sure a ranking is, what a nat is worth, and ticks that can be read."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from vitsense.plan.predict import DropModel
from vitsense.report.chapters.causes import order_finding
from vitsense.report.compose_words import glossary
from vitsense.report.drawing import plain_ticks


def cells(**ends: tuple[float, float]) -> pd.DataFrame:
    rows = [
        {"module": name, "format": "int4", "part": "both", "status": "measured"}
        | {"kl": (low + high) / 2, "kl_low": low, "kl_high": high}
        for name, (low, high) in ends.items()
    ]
    return pd.DataFrame(rows)


CLEAR = {"a": (9.0, 10.0), "b": (7.0, 8.0), "c": (5.0, 6.0), "d": (4.0, 4.5), "e": (3.0, 3.5)}


def test_an_order_with_intervals_apart_is_called_sure() -> None:
    (found,) = order_finding(cells(**CLEAR, f=(1.0, 2.0)))
    assert found.headline.startswith("a is the most sensitive module at 4 bits")
    assert found.numbers == "All of the first 5 surely belong there."


def test_intervals_that_overlap_leave_the_order_open() -> None:
    (found,) = order_finding(cells(**CLEAR | {"b": (7.0, 9.5)}, f=(1.0, 3.2), g=(1.0, 4.2)))
    assert found.headline == "Which module is the most sensitive at 4 bits cannot be told"
    assert found.numbers == (
        "The interval of one other reaches that of a; of the first 5, a, b and c surely belong "
        "there; the intervals of 2 others reach theirs."
    )


def test_five_modules_have_no_others() -> None:
    assert order_finding(cells(**CLEAR)) == []


MODEL = DropModel(ceiling=90.0, log_c=3.0, exponent=1.3, scatter=0.2, points=5, basis="plans")


def test_the_worth_of_a_nat_is_that_of_the_fit() -> None:
    entry = {"key": "vit", "drop_model": {**_fields(MODEL)}}
    said = dict(glossary([entry]))["divergence, nats"]
    one = MODEL.whole_kl_at(1.0)
    # A(1 - exp(-c J^g / A)) at that J is one point
    rate = math.exp(3.0 + 1.3 * math.log(one))
    assert 90.0 * -math.expm1(-rate / 90.0) == pytest.approx(1.0)
    assert f"for vit a whole plan of {one:.3f} nats loses about 1 point" in said
    assert "loses" not in dict(glossary([{"key": "vit"}]))["divergence, nats"]


def _fields(model: DropModel) -> dict[str, object]:
    return {name: getattr(model, name) for name in model.__dataclass_fields__}


def test_a_short_logarithmic_axis_has_more_than_two_ticks() -> None:
    figure, ax = plt.subplots()
    ax.set_yscale("log")
    ax.set_ylim(1.2, 3.4)
    plain_ticks(ax.yaxis, log=True)
    low, high = ax.get_ylim()
    assert [t for t in ax.yaxis.get_majorticklocs() if low <= t <= high] == [1.5, 2.0, 3.0]
    plt.close(figure)
