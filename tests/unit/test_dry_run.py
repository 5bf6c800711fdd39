"""A dry run says what a run would take, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_models import images, tiny_resnet

from vitsense import cli
from vitsense.discover import find_sites
from vitsense.dry_run import remaining_share

_COMMAND = ["analyze", "--model", "zoo/glyph_resnet", "--images", "1000", "--calibration", "8"]


def test_a_dry_run_counts_and_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*_COMMAND, "--bits", "8,4", "--mode", "exact", "--dry-run", "--probe", "--json"]
    assert cli.run(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    (model,) = found["models"]
    assert model["cells"] == 44  # 22 modules at two widths
    assert 5 < model["passes"] < 44  # replay saves part of every pass
    assert model["seconds"] > 0
    assert model["memory_bytes"] > 0
    assert model["alternatives"]["--mode adaptive"] < model["passes"] / 2
    assert list(tmp_path.iterdir()) == []


def test_the_share_that_replay_computes_is_the_mean_rest_of_the_model() -> None:
    catalog = find_sites(tiny_resnet(), images(1))
    macs = [m.macs for m in catalog]
    expected = [sum(macs[i:]) / sum(macs) for i in range(len(macs))]
    assert remaining_share(catalog) == pytest.approx(sum(expected) / len(expected))
