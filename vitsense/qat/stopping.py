"""Ctrl-C in the middle of a training: the step is ended and kept, and only then it stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

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
            raise KeyboardInterrupt
        self.asked = True
        self._say("Stopping after this step, which is kept. Ctrl-C again stops at once.")


@contextmanager
def stop_between_steps(say: Callable[[str], None]) -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a question that the loop answers after a step.

    Only the main thread may set handlers; elsewhere signals stay what they are.
    """
    stop = Stop(say)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
