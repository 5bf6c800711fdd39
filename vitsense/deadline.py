"""A moment by which work should end, and whether it came before the work was done. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


class TimeIsUpError(Exception):
    """The deadline came; what was measured so far is kept."""


@dataclass(slots=True)
class Deadline:
    """A moment on the monotonic clock; None never comes."""

    at: float | None = None
    came: bool = False
    """Whether something was left out because of it."""
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(
        cls,
        seconds: float | None,
        clock: Callable[[], float] = time.monotonic,
        *,
        since: float | None = None,
    ) -> Deadline:
        """The deadline so many seconds from now, or from the moment ``since`` of the clock."""
        begin = clock() if since is None else since
        return cls(None if seconds is None else begin + seconds, clock=clock)

    def part(self, share: float) -> Deadline:
        """A deadline at a share of the time that is left."""
        if self.at is None:
            return Deadline(clock=self.clock)
        now = self.clock()
        return Deadline(now + share * max(self.at - now, 0.0), clock=self.clock)

    @property
    def passed(self) -> bool:
        """Whether the moment is over."""
        return self.at is not None and self.clock() >= self.at

    def check(self) -> None:
        """Go on, or stop here.

        Raises:
            TimeIsUpError: the moment is over.
        """
        if self.passed:
            self.came = True
            raise TimeIsUpError
