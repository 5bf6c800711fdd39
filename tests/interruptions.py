"""Ctrl-C while a run is measuring."""

from __future__ import annotations

import pytest

from vitsense.runfolder import RunFolder


def interrupt_after(monkeypatch: pytest.MonkeyPatch, records: int) -> None:
    """Let a run keep so many results; the next one raises Ctrl-C in place of being kept."""
    append, count = RunFolder.append_state, 0

    def interrupting(self: RunFolder, record: dict) -> None:
        nonlocal count
        count += 1
        if count > records:
            raise KeyboardInterrupt
        append(self, record)

    monkeypatch.setattr(RunFolder, "append_state", interrupting)
