"""How evenly two processes share a run, and whether they write the tables of one.

    python benchmarks/shard.py zoo/glyph_swin --images 128

Runs the same analysis with one process and with several, in turns, and prints wall time, processor
time of every process, and whether all tables and the plan are equal byte for byte. On a machine
with other work the wall time says little; how evenly the processor time is shared says what
processors of their own would give: at best, the time of one divided by that of the busiest.
Processor time counts from the start of the analysis, without the import of torch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TABLES = ("sensitivity", "groups", "joint", "estimates", "causes", "predictors", "pareto")

_CHILD = """
import json, os, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from vitsense.analyze import run_analysis
from vitsense.settings import AnalyzeSettings, ModelRequest, SweepMode
model, images, mode, out = sys.argv[1:5]
settings = AnalyzeSettings(
    model=ModelRequest(name=model), images=int(images), mode=SweepMode(mode), device="cpu"
)
wall, cpu = time.perf_counter(), time.process_time()
run_analysis(settings, out=Path(out) / "run")
took = [time.perf_counter() - wall, time.process_time() - cpu]
Path(out, f"took-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(took))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="zoo/glyph_resnet")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--mode", choices=["adaptive", "exact", "fast"], default="adaptive")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    found: dict[int, list[list[list[float]]]] = {1: [], options.processes: []}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "child.py"
        script.write_text(_CHILD)
        for turn in range(options.turns):
            for count, runs in found.items():
                out = Path(folder) / f"{count}-{turn}"
                out.mkdir()
                runs.append(took(script, options, count, out))
        first = Path(folder) / "1-0" / "run"
        same = all(
            equal(first, Path(folder) / f"{count}-{turn}" / "run")
            for count in found
            for turn in range(options.turns)
        )
    print(
        f"# {platform.machine()}, {os.cpu_count()} processors, torch {_version()}, "
        f"{options.model}, {options.images} images, mode {options.mode}, {options.turns} turns\n"
        "| processes | wall s | processor s of each | busiest against one |\n|--:|--:|---|--:|"
    )
    alone = statistics.median(turn[0][1] for turn in found[1])
    for count, turns in found.items():
        each = [statistics.median(turn[rank][1] for turn in turns) for rank in range(count)]
        wall = statistics.median(max(t[0] for t in turn) for turn in turns)
        texts = ", ".join(f"{seconds:.1f}" for seconds in each)
        print(f"| {count} | {wall:.1f} | {texts} | {max(each) / alone:.2f} |")
    print(f"\nTables and plan equal byte for byte: {'yes' if same else 'NO'}")


def took(script: Path, options: argparse.Namespace, count: int, out: Path) -> list[list[float]]:
    """Wall and processor seconds of each process of one run."""
    words = [str(script), options.model, str(options.images), options.mode, str(out)]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(launch if count > 1 else []), *words]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    time.sleep(1)
    return [json.loads((out / f"took-{rank}.json").read_text()) for rank in range(count)]


def equal(one: Path, other: Path) -> bool:
    """Whether two runs wrote the same."""
    names = [*(f"{name}.csv" for name in TABLES), "plan.json"]
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def _version() -> str:
    from vitsense.provenance import versions

    return versions()["torch"]


if __name__ == "__main__":
    main()
