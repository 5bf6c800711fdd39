"""The adaptive sweep: what it looks at, what it leaves out, and that it continues the same."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import images, tiny_resnet

from vitsense.discover import find_sites
from vitsense.numerics.distance import nats_to_flip
from vitsense.plan.solve import make_problem
from vitsense.progress import NoProgress
from vitsense.sensitivity.adaptive import measure_adaptive
from vitsense.sensitivity.doubt import Doubt, Doubts, doubts
from vitsense.sensitivity.ledger import Entry, Ledger
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Status
from vitsense.sensitivity.stopping import Rule
from vitsense.sensitivity.sweep import measure_exact
from vitsense.settings import Part, QuantSettings
from vitsense.statistics.collect import collect_statistics

N = 150
BITS = (6, 4, 2)


@pytest.fixture(scope="module")
def setting():
    model = tiny_resnet()
    with torch.no_grad():
        model.fc.weight.mul_(20)  # so that the random model is sure of some images
    catalog = find_sites(model, images(1))
    statistics = collect_statistics(model, catalog, [images(8)])
    quantizers = Quantizers(catalog, statistics, QuantSettings(), "cpu")
    x = torch.randn(N, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        labels = model(x).argmax(1)
    labels[::10] = 0
    doubt = doubts(model, lambda numbers: (x[list(numbers)], labels[list(numbers)]), N)
    return model, catalog, quantizers, x, labels, doubt


def sweep(setting, n: int = N, **options):
    model, catalog, quantizers, x, labels, doubt = setting
    return measure_adaptive(
        model,
        catalog,
        quantizers,
        lambda numbers: (x[list(numbers)], labels[list(numbers)]),
        Doubts(doubt.nats[:n], doubt.wrong[:n]),
        **{"bits": BITS, **options},
    )


def rows(found) -> pd.DataFrame:
    return pd.DataFrame([m.row("adaptive") for m in found])


@pytest.fixture(scope="module")
def whole(setting):
    kept: list[Entry] = []
    return rows(sweep(setting, ledger=Ledger(keep=kept.append))), kept


def test_doubt_is_the_nats_to_flip_of_every_image_and_is_not_computed_twice(setting) -> None:
    model, _, _, x, labels, doubt = setting
    with torch.no_grad():
        logits = model(x)
    assert doubt.nats == pytest.approx(nats_to_flip(logits).numpy(), rel=1e-4)
    assert doubt.wrong.tolist() == (logits.argmax(1) != labels).tolist()
    read: list[int] = []

    def reading(numbers):
        read.extend(numbers)
        return x[list(numbers)], labels[list(numbers)]

    known = dict.fromkeys(range(0, N, 2), Doubt(0.5, wrong=None))
    kept: dict[int, Doubt] = {}
    found = doubts(model, reading, N, known=known, keep=kept.update)
    assert read == list(range(1, N, 2))
    assert set(kept) == set(read)
    assert found.nats[::2].tolist() == [0.5] * (N // 2)
    assert found.wrong is None  # some have no label


def test_every_cell_is_in_the_table_and_says_how_many_images_it_saw(setting, whole) -> None:
    table, _ = whole
    assert len(table) == len(setting[1]) * len(BITS)
    assert set(table["mode"]) == {"adaptive"}
    assert set(table["status"]) <= {"measured", "bounded"}
    seen = table[table["status"] == "measured"]
    assert seen["n"].between(24, N).all()
    assert len(set(seen["n"])) > 1  # effort goes where it matters
    for name in ("drop", "kl", "agreement"):
        assert (seen[f"{name}_low"] <= seen[name]).all()
        assert (seen[name] <= seen[f"{name}_high"]).all()


def test_estimates_agree_with_the_exact_table(setting, whole) -> None:
    model, catalog, quantizers, x, labels, _ = setting
    batches = list(zip(x.split(50), labels.split(50), strict=True))
    exact = rows(measure_exact(model, catalog, quantizers, batches, bits=BITS))
    table, _ = whole
    both = table.merge(exact, on=["module", "bits"], suffixes=("", "_exact"))
    both = both[both["status"] == "measured"]
    for name in ("drop", "kl", "agreement"):
        value = both[f"{name}_exact"].astype(float)
        inside = (value >= both[f"{name}_low"]) & (value <= both[f"{name}_high"])
        assert inside.mean() > 0.95, name
    ranks = both[["kl", "kl_exact"]].astype(float).corr("spearman").iloc[0, 1]
    assert ranks > 0.97


def test_with_few_images_all_are_seen_and_the_numbers_are_the_exact_ones(setting) -> None:
    model, catalog, quantizers, x, labels, _ = setting
    exact = rows(measure_exact(model, catalog, quantizers, [(x[:20], labels[:20])], bits=(3,)))
    found = rows(sweep(setting, 20, bits=(3,)))
    assert (found["n"] == 20).all()
    for name in ("kl", "drop", "agreement", "sqnr_db"):
        expected = exact[name].to_numpy(dtype=float)
        assert found[name].to_numpy(dtype=float) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert found["lost"].tolist() == exact["lost"].tolist()


def test_killed_at_any_point_it_continues_to_the_same_table(setting, whole) -> None:
    table, kept = whole
    rng = random.Random(0)
    for count in sorted(rng.sample(range(len(kept)), 4)):
        again: list[Entry] = []
        found = rows(sweep(setting, ledger=Ledger(kept[:count], keep=again.append)))
        pd.testing.assert_frame_equal(found, table, check_exact=True)
        assert [e.module for e in again] == [e.module for e in kept[count:]]


def test_a_harmless_narrow_format_bounds_the_wider_ones(setting) -> None:
    found = rows(sweep(setting, rule=Rule(tolerance=100.0)))
    narrow = found[found["bits"] == 2]
    merged = found[found["bits"] > 2].merge(narrow, on="module", suffixes=("", "_narrow"))
    wide = merged[merged["status"] == Status.BOUNDED.value]
    assert len(wide) > 10
    for name in ("n", "drop", "kl", "agreement", "drop_low", "kl_low"):
        assert wide[name].isna().all(), name  # never a made-up zero
    assert wide["reason"].str.contains("[24] bits are harmless already").all()
    by_two = wide[wide["reason"].str.contains("2 bits are")]
    assert len(by_two) > 10
    assert (by_two["kl_high"] == by_two["kl_high_narrow"]).all()


def test_a_bounded_width_counts_in_a_plan_as_much_as_what_bounds_it() -> None:
    modules = pd.DataFrame(
        {"module": ["a", "b"], "params": [10, 10], "macs": [1, 1], "weight_shape": ["2x5", "2x5"]}
    )
    cells = [("a", 2, "measured", 0.5), ("a", 4, "measured", 0.01), ("a", 8, "bounded", np.nan)]
    cells += [("b", 2, "measured", 0.5), ("b", 4, "measured", 0.2), ("b", 8, "measured", 0.1)]
    sensitivity = pd.DataFrame(
        [
            {
                "module": m,
                "bits": b,
                "format": f"int{b}",
                "part": "both",
                "status": s,
                "kl": kl,
                "kl_high": 0.02,
            }
            for m, b, s, kl in cells
        ]
    )
    problem = make_problem(modules, sensitivity, 20, pins={"a": 8})
    assert problem.divergence["a"] == {"int2": 0.5, "int4": 0.01, "int8": 0.01}
    assert problem.pins["a"] == "int8"


def test_unlabelled_images_are_judged_by_agreement(setting) -> None:
    model, catalog, quantizers, x, _, doubt = setting
    blank = torch.full((N,), -1)
    found = rows(
        measure_adaptive(
            model,
            catalog,
            quantizers,
            lambda numbers: (x[list(numbers)], blank[list(numbers)]),
            doubt,
            bits=(4,),
        )
    )
    assert found["drop"].isna().all()
    assert (found["agreement_low"] <= found["agreement"]).all()


def test_weights_alone_can_be_looked_at(setting) -> None:
    found = rows(sweep(setting, bits=(4,), parts=(Part.WEIGHTS,)))
    assert set(found["part"]) == {"weights"}
    assert set(found["status"]) == {"measured"}


def test_when_every_cell_is_decided_no_empty_look_is_shown(setting, monkeypatch) -> None:
    begun: list[int] = []

    class Told(NoProgress):
        def start(self, total: int, label: str) -> None:
            begun.append(total)

    monkeypatch.setattr("vitsense.sensitivity.adaptive.undecided", lambda *_: [])
    sweep(setting, progress=Told())
    assert begun
    assert 0 not in begun
