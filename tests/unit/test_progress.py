"""Progress: bars for people who watch, few plain lines for logs, silence on request."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from vitsense.progress import (
    NO_PROGRESS,
    NoProgress,
    PlainProgress,
    ProgressStyle,
    RichProgress,
    clock_text,
    make_progress,
)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _plain() -> tuple[PlainProgress, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return PlainProgress(stream, clock), stream, clock


def test_plain_lines_come_at_most_every_ten_seconds_when_steps_are_small() -> None:
    progress, stream, clock = _plain()
    progress.start(10_000, "vit sensitivity")
    for _ in range(400):
        clock.now += 0.125  # exact in binary
        progress.advance(1)
    assert len(stream.getvalue().splitlines()) == 1 + 5  # the start, and 50 s of work


def test_plain_lines_come_every_five_percent_when_steps_are_slow() -> None:
    progress, stream, clock = _plain()
    progress.start(100, "vit")
    for _ in range(100):
        clock.now += 3
        progress.advance(5 if clock.now < 400 else 0)
    lines = [line for line in stream.getvalue().splitlines() if "%" in line]
    assert [line.split()[2] for line in lines[:20]] == [f"{5 * i}%" for i in range(1, 21)]


def test_a_fast_task_is_two_lines() -> None:
    """A thousand steps in one second must not be twenty lines."""
    progress, stream, clock = _plain()
    progress.start(1000, "vit statistics")
    for _ in range(1000):
        clock.now += 0.001
        progress.advance(1)
    assert stream.getvalue().splitlines() == [
        "vit statistics: 1000 steps",
        "vit statistics 1000/1000 100% elapsed 1s eta 0s",
    ]


def test_a_plain_line_says_how_far_and_how_long() -> None:
    progress, stream, clock = _plain()
    progress.start(60, "analyze")
    clock.now += 190
    progress.advance(37, "layers.2.blocks.3.mlp.fc2")
    assert stream.getvalue().splitlines()[-1] == (
        "analyze 37/60 62% elapsed 3m10s eta 1m58s layers.2.blocks.3.mlp.fc2"
    )


def test_a_second_task_begins_at_zero() -> None:
    progress, stream, clock = _plain()
    for label in ("one", "two"):
        progress.start(2, label)
        clock.now += 11
        progress.advance(1)
    assert stream.getvalue().splitlines()[-1] == "two 1/2 50% elapsed 11s eta 11s"


@pytest.mark.parametrize("total", [0, 1])
def test_an_empty_task_does_not_divide_by_zero(total: int) -> None:
    progress, stream, _ = _plain()
    progress.start(total, "nothing")
    progress.advance(total)
    assert "eta 0s" in stream.getvalue()


def test_a_note_is_written_at_once_and_as_it_is() -> None:
    progress, stream, _ = _plain()
    progress.note("swin_t is timm's [bold]swin_tiny[/bold]")
    assert stream.getvalue() == "swin_t is timm's [bold]swin_tiny[/bold]\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (190, "3m10s"), (3600, "1h00m"), (7500, "2h05m")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress = make_progress(ProgressStyle.NONE)
    assert progress is NO_PROGRESS
    progress.start(2, "x")
    progress.advance(1, "y")
    progress.note("z")
    progress.close()
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "kind"),
    [
        (Terminal(), {"TERM": "xterm"}, RichProgress),
        (Terminal(), {"TERM": "dumb"}, PlainProgress),
        (Terminal(), {"TERM": "xterm", "CI": "true"}, PlainProgress),
        (io.StringIO(), {"TERM": "xterm"}, PlainProgress),
    ],
)
def test_bars_are_only_for_a_terminal_that_someone_watches(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, environment: dict[str, str], kind: type
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    for name in ("TERM", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert type(make_progress(ProgressStyle.AUTO)) is kind


def test_every_style_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    kinds = {style: type(make_progress(style)) for style in ProgressStyle}
    assert kinds[ProgressStyle.RICH] is RichProgress
    assert kinds[ProgressStyle.PLAIN] is PlainProgress
    assert kinds[ProgressStyle.NONE] is NoProgress


_BARS = """
from vitsense.progress import RichProgress
bars = RichProgress()
bars.note("before")
bars.start(4, "vit [bold]x[/bold]")
bars.advance(2, "blocks.0 [red]y[/red]")
bars.note("a [link] in brackets")
bars.start(2, "second")
bars.advance(2)
bars.close()
bars.close()
print("result")
"""


def _bars(**environment: str) -> tuple[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "CI"}}
    done = subprocess.run(
        [sys.executable, "-c", _BARS],
        capture_output=True,
        text=True,
        check=True,
        env=kept | {"TERM": "xterm-256color", "COLUMNS": "160"} | environment,
    )
    return done.stdout, done.stderr


def test_bars_go_to_standard_error_and_names_in_brackets_stay() -> None:
    """Labels are module names of a person's own model: never markup."""
    out, err = _bars()
    assert out == "result\n"
    assert "vit [bold]x[/bold]" in err
    assert "blocks.0 [red]y[/red]" in err
    assert "a [link] in brackets" in err


def test_no_color_is_honoured_even_when_a_terminal_is_forced() -> None:
    colours = {
        flag: any(
            f"\x1b[{n}" in _bars(FORCE_COLOR="1", **extra)[1] for n in ("31", "32", "35", "38")
        )
        for flag, extra in (("plain", {}), ("no", {"NO_COLOR": "1"}))
    }
    assert colours == {"plain": True, "no": False}
