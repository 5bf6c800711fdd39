"""What a run left out because it ended early, and the command that completes it."""

from __future__ import annotations

import shlex

from vitsense.provenance import without_option
from vitsense.report.section import Words
from vitsense.report.source import Source


def ended_early(source: Source) -> str:
    """Why the run is not complete, ``the time budget of 1200 s ended``; empty if it is."""
    if source.record.get("status") == "complete":
        return ""
    seconds = source.record["settings"].get("budget_time")
    return f"the time budget of {seconds:g} s ended" if seconds else "the run was interrupted"


def completing_command(source: Source) -> str:
    """The run's last command without a time budget, so that it continues in the same folder."""
    commands = source.record.get("commands") or [["vitsense", "analyze"]]
    words = without_option(commands[-1], "--budget-time")
    if not any(word == "--out" or word.startswith("--out=") for word in words):
        words += ["--out", source.shown_path]
    return shlex.join(words)


def completing(source: Source, what: str) -> Words:
    """The sentence about something that a run has not, because it ended early.

    Args:
        source: A run that is not complete.
        what: What is missing, ``Remedies were not tried``.
    """
    return Words(
        text=f"{what}: {ended_early(source)} before. What was measured is kept; the command in "
        f"Method and reproduction, {COMPLETE}, continues."
    )


COMPLETE = "To complete this run"
"""Name of the command among the facts of the method."""
