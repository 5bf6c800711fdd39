"""How far a long task is: rich bars on a terminal, plain timed lines elsewhere, or nothing."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from enum import Enum
from typing import IO, Any, Protocol


class Progress(Protocol):
    """Told by long tasks how far they are."""

    def start(self, total: int, label: str) -> None:
        """A task of ``total`` steps begins."""

    def advance(self, steps: int, label: str = "") -> None:
        """``steps`` more are done; ``label`` says what was done last."""

    def note(self, text: str) -> None:
        """Something the person should read now."""

    def close(self) -> None:
        """The task ends, finished or not."""


class NoProgress:
    """Says nothing."""

    def start(self, total: int, label: str) -> None:
        """Ignore."""

    def advance(self, steps: int, label: str = "") -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""

    def close(self) -> None:
        """Ignore."""


NO_PROGRESS = NoProgress()
"""For library use."""


class Paced:
    """Steps of one process's part of a task, told as if all processes went at its pace."""

    def __init__(self, progress: Progress, whole: int, own: int) -> None:
        self._progress = progress
        self._left = whole
        self._pace = whole / own if own else 0.0
        self._owed = 0.0

    def advance(self, steps: int, label: str = "") -> None:
        """``steps`` more of the part are done."""
        self._owed += steps * self._pace
        told = min(int(self._owed + 1e-9), self._left)
        self._owed -= told
        self._left -= told
        if told:
            self._progress.advance(told, label)

    def finish(self) -> None:
        """The whole task is done."""
        if self._left:
            self._progress.advance(self._left)
            self._left = 0


class PlainProgress:
    """Timed lines on a stream, at most one every ten seconds or five percent."""

    def __init__(
        self, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._total, self._done, self._label = 0, 0, ""
        self._began = self._said = 0.0
        self._said_at = 0

    def start(self, total: int, label: str) -> None:
        """A task begins."""
        self._total, self._done, self._said_at, self._label = total, 0, 0, label
        self._began = self._said = self._clock()
        self._write(f"{label}: {total} step{'s' * (total != 1)}")

    def advance(self, steps: int, label: str = "") -> None:
        """Say how far, now and then."""
        self._done += steps
        now = self._clock()
        share = (self._done - self._said_at) / max(self._total, 1)
        finished = self._done >= self._total
        if not finished and now - self._said < 10 and (share < 0.05 or now - self._said < 2):
            return
        elapsed = now - self._began
        left = elapsed / max(self._done, 1) * max(self._total - self._done, 0)
        self._said, self._said_at = now, self._done
        self._write(
            f"{self._label} {self._done}/{self._total} "
            f"{100 * self._done / max(self._total, 1):.0f}% "
            f"elapsed {clock_text(elapsed)} eta {clock_text(left)} {label}".rstrip()
        )

    def note(self, text: str) -> None:
        """Write the text as a line."""
        self._write(text)

    def close(self) -> None:
        """Nothing to release."""

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class RichProgress:
    """A bar with the time left, for people who watch."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars: Any = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[last]}", markup=False),
            console=Console(stderr=True),
        )
        self._task: Any = None
        self._running = False

    def start(self, total: int, label: str) -> None:
        """A new bar."""
        if not self._running:
            self._bars.start()
            self._running = True
        self._task = self._bars.add_task(label, total=total, last="")

    def advance(self, steps: int, label: str = "") -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.update(self._task, advance=steps, last=label)

    def note(self, text: str) -> None:
        """Write the text above the bars."""
        self._bars.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the bars as they are and give the terminal back."""
        if self._running:
            self._bars.stop()
            self._running = False


class ProgressStyle(Enum):
    """The ways to show progress."""

    AUTO = "auto"
    RICH = "rich"
    PLAIN = "plain"
    NONE = "none"


def make_progress(style: ProgressStyle) -> Progress:
    """The progress display for a style; AUTO looks at standard error."""
    if style is ProgressStyle.AUTO:
        watched = (
            sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and "CI" not in os.environ
        )
        style = ProgressStyle.RICH if watched else ProgressStyle.PLAIN
    if style is ProgressStyle.RICH:
        return RichProgress()
    return PlainProgress() if style is ProgressStyle.PLAIN else NO_PROGRESS


def clock_text(seconds: float) -> str:
    """``42s``, ``3m10s`` or ``2h05m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"
