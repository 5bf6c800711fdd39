"""How large a report is and how long it takes, for made-up runs of 20 to 1,000 modules.

    OMP_NUM_THREADS=1 python benchmarks/report_render.py [--gates] [MODULESxMODELS | RUN ...]

Each size is rendered in a process of its own, from the run folder to the finished HTML and PDF, as
``vitsense report`` does. Time is the CPU time of that process, its imports included. Folders of
real runs, and sizes such as 600x1, may be named instead. The made-up runs are those of the tests:
five widths, whole plans, groups and distributions of every tensor. With ``--gates`` it ends with 1
where a report is larger or takes longer than promised.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

from vitsense.provenance import versions

SIZES = ("20x1", "60x1", "30x2", "60x4", "300x1", "600x1", "1000x1")
"""Modules of each model, and models."""

TESTS = Path(__file__).parents[1] / "tests"


GATES = ((60, 300, 2000, 5.0), (600, 1500, 2000, 5.0), (1000, 2500, 2000, 10.0))
"""Up to so many modules: kB of HTML, kB of PDF, seconds of CPU."""

TRIES, SLACK = 3, 1.5
"""A busy machine makes every second longer: the best of so many tries counts, so much longer."""


def main(wanted: list[str]) -> None:
    """Print one row for every size or run."""
    gated = "--gates" in wanted
    wanted = [each for each in wanted if each != "--gates"]
    missed = []
    print(f"{platform.machine()}, " + ", ".join(f"{k} {v}" for k, v in versions().items()), "\n")
    print("| run | modules | models | HTML (kB) | PDF (kB) | pages | CPU (s) |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for each in wanted or SIZES:
            size = re.fullmatch(r"(\d+)x(\d+)", each)
            if size is None:
                seen = row(Path(each).name, path := Path(each))
            else:
                path = Path(folder) / each
                made(path, int(size[1]), int(size[2]))
                seen = row("made up", path)
            if gated:
                missed += [f"{each}: {miss}" for miss in misses(seen, path)]
    if missed:
        sys.exit("Limits passed: " + "; ".join(missed))


def misses(seen: dict[str, Any], run: Path) -> list[str]:
    """Which limits a report passes."""
    for most, html, pdf, seconds in GATES:
        if seen["modules"] <= most:
            found = [
                f"{name} of {seen[name] / 1e3:.0f} kB (limit {limit})"
                for name, limit in (("html", html), ("pdf", pdf))
                if seen[name] > 1e3 * limit
            ]
            best = seen["cpu"]
            for _ in range(TRIES - 1):
                best = best if best <= SLACK * seconds else min(best, rendered(run)["cpu"])
            return found + ([f"{best:.1f} s (limit {seconds:g})"] if best > SLACK * seconds else [])
    return []


def made(path: Path, modules: int, models: int) -> None:
    """Make a run without spending the measured process's time on it."""
    sys.path.insert(0, str(TESTS))
    from report_fixture import make_run

    make_run(path, modules, [f"model_{i}" for i in range(models)])


def rendered(run: Path) -> dict[str, Any]:
    """Sizes and time of a run's report, rendered in a new process."""
    done = subprocess.run(
        [sys.executable, __file__, "--render", str(run)],
        capture_output=True,
        text=True,
        check=True,
    )
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def row(name: str, run: Path) -> dict[str, Any]:
    """Render a run's report and print its row."""
    seen = rendered(run)
    print(
        f"| {name} | {seen['modules']} | {seen['models']} | {seen['html'] / 1e3:.0f} | "
        f"{seen['pdf'] / 1e3:.0f} | {seen['pages']} | {seen['cpu']:.1f} |",
        flush=True,
    )
    return seen


def render(run: Path) -> None:
    """Print sizes and the CPU time of this process so far."""
    from vitsense.report.compose import compose
    from vitsense.report.figures import pictures
    from vitsense.report.html import render_html
    from vitsense.report.pdf import render_pdf
    from vitsense.runfolder import RunFolder

    document = compose(RunFolder.open(run))
    drawn = pictures(document)
    html, pdf = render_html(document, drawn), render_pdf(document, drawn)
    seen = {
        "modules": sum(len(model.rows) for model in document.models),
        "models": len(document.models),
        "html": len(html.encode()),
        "pdf": len(pdf),
        "cpu": time.process_time(),
    }
    from pypdf import PdfReader

    seen["pages"] = len(PdfReader(BytesIO(pdf)).pages)
    print(json.dumps(seen))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--render"]:
        render(Path(sys.argv[2]))
    else:
        main(sys.argv[1:])
