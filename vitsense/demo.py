"""The offline tour: two shipped models, generated images, the whole chain."""

from __future__ import annotations

from pathlib import Path

from vitsense.analyze import run_analysis
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.report import write_report
from vitsense.runfolder import DEFAULT_ROOT, RunFolder
from vitsense.settings import AnalyzeSettings, ModelRequest

DEMO_IMAGES = 720
"""Evaluation images: twenty of each character."""


def demo_command(out: Path | None = None) -> list[str]:
    """The analyze command that the demo runs."""
    command = ["vitsense", "analyze", "--model", "zoo/glyph_swin", "--compare", "zoo/glyph_resnet"]
    command += ["--images", str(DEMO_IMAGES)]
    return command if out is None else [*command, "--out", str(out)]


def run_demo(
    *, out: Path | None = None, root: Path = DEFAULT_ROOT, progress: Progress = NO_PROGRESS
) -> tuple[RunFolder, list[Path]]:
    """Analyze the shipped Swin against the shipped ResNet and write the report.

    Returns:
        The run and the files of its report.
    """
    settings = AnalyzeSettings(
        model=ModelRequest(name="zoo/glyph_swin"),
        compares=(ModelRequest(name="zoo/glyph_resnet"),),
        images=DEMO_IMAGES,
    )
    run = run_analysis(settings, out=out, root=root, progress=progress, command=demo_command(out))
    progress.note("Writing the report.")
    return run, write_report(run)
