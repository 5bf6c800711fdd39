"""Ctrl-C in the middle of a training: the step is ended and kept, and only then it stops."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from vitsense.signals import handling

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether somebody asked to stop; a second asking is not waited for."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.asked = False
        self._say = say

    def ask(self, _number: int, _frame: FrameType | None) -> None:
        """Take the signal.

        Raises:
            KeyboardInterrupt: it is the second one.
        """
        if self.asked:
            self._say("Stopping at once: steps since the last checkpoint are lost.")
            raise KeyboardInterrupt
        self.asked = True
        self._say("Stopping after this step, which is kept. Ctrl-C again stops at once.")


@contextmanager
def stop_between_steps(say: Callable[[str], None]) -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a question that the loop answers after a step."""
    stop = Stop(say)
    with handling(_SIGNALS, stop.ask):
        yield stop
