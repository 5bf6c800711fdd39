"""DESIGN 6.5: every site is in the table, measured or with the reason; nothing is 0 in silence."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import BUILDERS, images
from torch import Tensor, nn

from vitsense.discover import find_sites
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.sweep import measure_exact
from vitsense.settings import Part, QuantSettings
from vitsense.statistics.collect import collect_statistics

NUMBERS = ("drop", "agreement", "kl", "kl_low", "kl_high", "sqnr_db")


def rows_of(model: nn.Module, x: Tensor, bits: tuple[int, ...] = (8, 2)) -> list[dict]:
    catalog = find_sites(model, x[:1])
    quantizers = Quantizers(
        catalog, collect_statistics(model, catalog, [x]), QuantSettings(), "cpu"
    )
    labels = torch.zeros(len(x), dtype=torch.long)
    measured = measure_exact(
        model, catalog, quantizers, [(x, labels)], bits=bits, parts=tuple(Part)
    )
    return [m.row("exact") for m in measured]


@pytest.mark.parametrize("family", BUILDERS)
def test_every_module_width_and_part_has_a_row(family: str) -> None:
    model, x = BUILDERS[family](), images(3)
    catalog = find_sites(model, x[:1])
    rows = rows_of(model, x)
    keys = [(row["module"], row["part"], row["bits"]) for row in rows]
    assert len(set(keys)) == len(keys) == len(catalog) * 3 * 2
    weightless = {m.name for m in catalog if m.weight_site is None}
    for row in rows:
        bare = row["part"] == "weights" and row["module"] in weightless
        assert row["status"] == ("unmeasured" if bare else "measured")
        if bare:
            assert row["reason"] == "it has no weight"
            assert all(row[name] is None for name in NUMBERS)
        else:
            assert row["reason"] == ""
            assert not any(math.isnan(row[name]) for name in NUMBERS)


class Logarithm(nn.Module):
    """The logarithm of a small feature: two bits round it to 0, and the logits are infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 3, bias=False), nn.Linear(3, 5)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(3))

    def forward(self, x: Tensor) -> Tensor:
        features = x.abs().mean((2, 3)) * torch.tensor([1.0, 0.9, 1e-3])
        return self.head(self.first(features).log())


def test_a_cell_whose_logits_are_not_finite_says_so_and_has_no_numbers() -> None:
    torch.manual_seed(0)
    rows = {(r["module"], r["part"], r["bits"]): r for r in rows_of(Logarithm().eval(), images(3))}
    broken = rows["first", "activations", 2]
    assert broken["status"] == "unmeasured"
    assert "not finite" in broken["reason"]
    assert all(broken[name] is None for name in NUMBERS)
    assert rows["first", "weights", 2]["status"] == "measured"
