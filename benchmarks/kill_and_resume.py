"""Kill a run at random moments with SIGKILL, continue it each time, and compare its tables.

    python benchmarks/kill_and_resume.py --kills 100

A run of a small configuration is made without interruption. Then the same command is started again
and again, in a child process that is killed at a random moment: when ``state.jsonl`` has grown by a
random number of bytes and a random delay is over, or after a random time without growth. A run that
is finished before its kill is compared with the uninterrupted one, bit for bit, and another begins.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from vitsense.analyze import run_analysis
from vitsense.provenance import versions
from vitsense.runfolder import RunFolder
from vitsense.settings import AnalyzeSettings, ModelRequest, SweepMode

TABLES = ("modules", "statistics", "sensitivity", "joint", "pareto", "pareto_bits", "coverage")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--mode", choices=["adaptive", "exact"], default="adaptive")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(options.seed)  # noqa: S311  moments of death, no secrets
    settings = AnalyzeSettings(
        model=ModelRequest(name="glyph_resnet"),
        images=options.images,
        calibration=12,
        bits=(8, 4, 2),
        batch=8,
        mode=SweepMode(options.mode),
    )
    with tempfile.TemporaryDirectory() as folder:
        whole = run_analysis(settings, out=Path(folder) / "whole")
        size = (whole.path / "state.jsonl").stat().st_size
        kills, torn, finished, lost = 0, 0, 0, 0
        while kills < options.kills or finished == 0:
            out = Path(folder) / f"run-{finished}"
            before = state_of(out)
            if not killed(settings, out, rng, size):
                compare(whole, RunFolder.open(out))
                finished += 1
                continue
            kills += 1
            after = state_of(out)
            torn += not after.endswith(b"\n") and bool(after)
            lost += not after.startswith(before[: before.rfind(b"\n") + 1])
        print(
            f"# {platform.machine()}, {os.cpu_count()} processors, torch {versions()['torch']}, "
            f"{options.images} images, mode {options.mode}, state of {size} bytes\n"
            "| kills | torn last lines | results lost | runs finished | tables that differ |\n"
            "|--:|--:|--:|--:|--:|\n"
            f"| {kills} | {torn} | {lost} | {finished} | 0 |"
        )


def state_of(out: Path) -> bytes:
    """What a run has kept."""
    path = out / "state.jsonl"
    return path.read_bytes() if path.is_file() else b""


def killed(settings: AnalyzeSettings, out: Path, rng: random.Random, size: int) -> bool:
    """Start or continue the run; False when it finished before its kill."""
    goal = len(state_of(out)) + rng.randrange(1, max(size // 8, 2))
    patience, delay = rng.uniform(2.0, 20.0), rng.uniform(0.0, 0.02)
    child = os.fork()
    if child == 0:
        try:
            run_analysis(settings, out=out)
        except BaseException:  # noqa: BLE001  the child must never run the parent's code
            os._exit(1)
        os._exit(0)
    started = time.monotonic()
    while time.monotonic() - started < patience and len(state_of(out)) < goal:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, "the run failed"
            return False
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def compare(a: RunFolder, b: RunFolder) -> None:
    """Fail where tables or the plan differ."""
    for name in TABLES:
        pd.testing.assert_frame_equal(a.table(name), b.table(name), check_exact=True)
    assert a.plan_path().read_bytes() == b.plan_path().read_bytes()


if __name__ == "__main__":
    main()
