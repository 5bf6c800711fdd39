"""Pictures of reports for eyes: every case in three widths and both themes, and the PDF's pages.

    PYTHONPATH=tests python tests/browser/look.py OUT [CASE ...]

No test: what is looked at here (overlaps, cuts, empty space, words nobody understands) no assertion
finds. OUT/CASE-WIDTH-THEME-NN.png are pieces of the full page, OUT/CASE-PAPER-NN.png pages of the
PDF (needs pdftoppm). Folders of runs may stand in place of cases.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from report_chapters import EXPORT
from report_fixture import make_run
from training_record import several_trainings

from vitsense.report import write_comparison, write_report
from vitsense.runfolder import RunFolder, atomic_write, json_text
from vitsense.schemas import EXPORT_SCHEMA

WIDTHS = (390, 820, 1440)
THEMES = ("light", "dark")
PIECE = 2200  # pixels of height that can be read at once
CHROMIUM = os.environ.get("VITSENSE_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
FEW = ["Only 10 images."]

LONG = ("a_vision_transformer_with_a_very_long_name.and_a_tag_of_its_own", "resnet")
FOUR = ("vit_one", "resnet_two", "vit_three", "resnet_four")


def trained(folder: Path) -> RunFolder:
    """A run with finished trainings, of which one diverged."""
    run = make_run(folder, 20, ["vit"])
    several_trainings(run)
    return run


def exported(folder: Path) -> RunFolder:
    """A run with a file that was compared and timed, and one that was not run."""
    run = make_run(folder, 20, ["vit"])
    compared = EXPORT | {"model": "vit"}
    packed = {"model": "vit", "format": "safetensors", "file": "export/vit.st", "bytes": 900_000}
    record = {"schema": EXPORT_SCHEMA, "exports": [compared, packed]}
    atomic_write(run.path / "export.json", json_text(record))
    return run


def ended(folder: Path) -> RunFolder:
    """A run whose time budget ended before remedies and the search."""
    run = make_run(folder, 20, ["vit"], status="interrupted")
    record = {key: value for key, value in run.read_run().items() if key != "schema"}
    record["settings"] |= {"refine": 3, "budget": "avg-bits=4", "budget_time": 60.0}
    run.write_run(record)
    return run


CASES: dict[str, Callable[[Path], RunFolder]] = {
    "20": lambda path: make_run(path, 20, hostile=True, unmeasured=True, warnings=FEW),
    "60-long": lambda path: make_run(path, 60, LONG),
    "300": lambda path: make_run(path, 300, ["vit"]),
    "1000": lambda path: make_run(path, 1000, ["vit"]),
    "four": lambda path: make_run(path, 20, FOUR),
    "training": trained,
    "export": exported,
    "ended": ended,
}


def reports(name: str, folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """Name, page and PDF of a case; ``runs`` is the comparison of two."""
    if name == "runs":
        runs = [make_run(folder / k, 30, ["vit"]) for k in ("first", "second")]
        table = runs[1].table("sensitivity")
        table.loc[table["module"].str.contains("fc"), ["kl", "kl_low", "kl_high"]] *= 2.5
        runs[1].write_table("sensitivity", table)
        write_comparison(runs[0], runs[1], folder / "out")
        yield "runs", folder / "out" / "comparison.html", folder / "out" / "comparison.pdf"
        return
    run = CASES[name](folder / "run") if name in CASES else RunFolder.open(Path(name))
    for paper in ("a4", "us-letter"):
        write_report(run, paper=paper)
        yield f"{Path(name).name}-{paper}", run.path / "report.html", run.path / "report.pdf"


def shoot(browser: Any, name: str, page_file: Path, out: Path) -> None:
    """The whole page, unfolded, cut into pieces."""
    for width in WIDTHS:
        for theme in THEMES:
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=theme
            )
            page = context.new_page()
            page.goto(page_file.resolve().as_uri())
            page.evaluate("document.querySelectorAll('main details').forEach(d => {d.open = true})")
            height = page.evaluate("document.documentElement.scrollHeight")
            page.evaluate("document.querySelector('.top').style.position = 'static'")
            for number, top in enumerate(range(0, min(height, 12 * PIECE), PIECE)):
                piece = {"x": 0, "y": top, "width": width, "height": min(PIECE, height - top)}
                target = out / f"{name}-{width}-{theme}-{number:02d}.png"
                page.screenshot(path=target, full_page=True, clip=piece)
            context.close()


def main(out: Path, names: list[str]) -> None:
    """Write the pictures of the cases."""
    from playwright.sync_api import sync_playwright

    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        for place, case in enumerate(names):
            for name, page, pdf in reports(case, Path(folder) / str(place)):
                if not name.endswith("us-letter"):
                    shoot(browser, name, page, out)
                subprocess.run(["pdftoppm", "-r", "70", "-png", pdf, out / name], check=True)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or [*CASES, "runs"])
