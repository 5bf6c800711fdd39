"""Killed again and again in the middle of a write, a run continues to the same tables."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pandas as pd
import pytest

from vitsense.analyze import run_analysis
from vitsense.runfolder import RunFolder
from vitsense.settings import AnalyzeSettings, ModelRequest

SETTINGS = AnalyzeSettings(
    model=ModelRequest(name="small_models:glyph_net"),
    images=24,
    calibration=4,
    bits=(8, 4, 2),
    batch=12,
    by=(),
    refine=1,
)
KILLS = 20


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs but what Python itself unwinds."""


def test_twenty_kills_inside_the_append_change_no_table(tmp_path: Path, monkeypatch) -> None:
    whole = run_analysis(SETTINGS, out=tmp_path / "whole")
    rng = random.Random(0)
    append, write_run = RunFolder.append_state, RunFolder.write_run
    out, torn, dead = tmp_path / "killed", [0], [False]

    def killing(after: int):
        left = [after]

        def append_or_die(self: RunFolder, record: dict) -> None:
            left[0] -= 1
            if left[0] > 0:
                append(self, record)
                return
            line = (json.dumps(record, separators=(",", ":")) + "\n").encode()
            cut = rng.randrange(len(line))  # also nothing at all, and all but the line's end
            with (self.path / "state.jsonl").open("ab") as stream:
                stream.write(line[:cut])
            torn[0] += cut > 0
            dead[0] = True
            raise Killed

        return append_or_die

    def alive_only(self: RunFolder, run: dict) -> None:
        if not dead[0]:  # a killed process does not write how it ended
            write_run(self, run)

    monkeypatch.setattr(RunFolder, "write_run", alive_only)
    for _ in range(KILLS):
        monkeypatch.setattr(RunFolder, "append_state", killing(rng.randrange(1, 5)))
        dead[0] = False
        with pytest.raises(Killed):
            run_analysis(SETTINGS, out=out)
    assert torn[0] > KILLS // 2
    monkeypatch.undo()
    found = run_analysis(SETTINGS, out=out)
    for name in ("modules", "statistics", "sensitivity", "joint", "pareto", "pareto_bits"):
        pd.testing.assert_frame_equal(whole.table(name), found.table(name), check_exact=True)
    assert whole.plan_path().read_bytes() == found.plan_path().read_bytes()
