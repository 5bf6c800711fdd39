"""Processes that measure one run together, started by torchrun: the door to torch.distributed.

Every process runs the same program. Work lies in a row, each process takes a run of it
(`Team.run_of`), and what was found goes to all of them (`Team.gather`), so that all decide alike.
What travels are sums over images, a few megabytes of JSON, never a tensor of a model: gloo carries
them on processors and GPUs alike, and nothing of a GPU's memory or time is taken for it.

A process may be far behind the others for hours, so no wait has a time limit. What is watched is
whether the others live: each of them beats every few seconds in torchrun's key-value store.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsense.errors import AlreadySaidError, ProcessLostError, UserInputError

if TYPE_CHECKING:
    from torch import Tensor

LOST_AFTER = 120.0
"""Seconds without a sign of life after which a process counts as lost; `LOST_AFTER_VARIABLE`."""

LOST_AFTER_VARIABLE = "VITSENSE_LOST_AFTER"
"""Environment variable with other seconds."""

_BEAT = 2.0  # seconds between signs of life
_JOINING = timedelta(minutes=10)  # for all processes to start, and for one exchange of results


@dataclass(frozen=True, slots=True)
class Place:
    """Which one of the processes that torchrun started this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among those of the same machine."""
    local_size: int = 1

    @classmethod
    def of_environment(cls) -> Place:
        """From the variables that torchrun sets; without them, the only process."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        found = [os.environ.get(name, "") for name in names]
        if not all(text.isdecimal() for text in found) or int(found[1]) < 2:
            return cls()
        return cls(*map(int, found))

    @property
    def launcher(self) -> list[str]:
        """The words of a command line before the name of vitsense's command."""
        if self.size == 1:
            return ["vitsense"]
        machines = self.size // max(self.local_size, 1)
        several = [f"--nnodes={machines}"] if machines > 1 else []
        return ["torchrun", *several, f"--nproc-per-node={self.local_size}", "-m", "vitsense"]


class Team:
    """The processes of a run; this class is a team of one, which needs nobody."""

    def __init__(self, place: Place | None = None) -> None:
        self.place = Place() if place is None else place

    @property
    def first(self) -> bool:
        """Whether this process writes the tables and speaks to the person."""
        return self.place.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """A plain value of every process, in their order; all must call it alike."""
        return [value]

    def agree(self, value: Any) -> Any:
        """The first process's value, on all; the others' are not looked at."""
        return self.gather(value if self.first else None)[0]

    def any(self, value: bool) -> bool:
        """Whether it is true on one of them."""
        return any(self.gather(value))

    def run_of(self, costs: Sequence[float]) -> range:
        """Which of the units of work in a row are this process's.

        The runs of all processes cover the row, and each costs about the same: a unit goes to the
        process in whose share of the whole cost it begins. The first that costs anything is the
        first process's.
        """
        whole, size = sum(costs), self.place.size
        if size == 1 or whole <= 0:
            return range(len(costs)) if self.first else range(0)
        begins = accumulate(costs, initial=0.0)
        owners = [min(int(size * begin / whole), size - 1) for begin in list(begins)[:-1]]
        mine = [unit for unit, owner in enumerate(owners) if owner == self.place.rank]
        return range(mine[0], mine[-1] + 1) if mine else range(0)


ALONE = Team()
"""One process, for library use."""


class Verdict:
    """A question about the model that the first process answers for all."""

    def __init__(self, team: Team) -> None:
        self._team = team
        self._answer: bool | None = None

    def __call__(self, find: Callable[[], bool]) -> bool:
        """The answer; ``find`` is asked once, on the first process."""
        if self._answer is None:
            self._answer = bool(self._team.agree(find() if self._team.first else None))
        return self._answer

    def close(self) -> None:
        """Called by all at the end: a process without work of its own takes part as well."""
        self(lambda: True)


@contextmanager
def joined() -> Iterator[Team]:
    """The team of the processes that torchrun started; without torchrun, a team of one.

    When this process ends by an error, the others learn of it. One of them says why: an error that
    another has reported already becomes `AlreadySaidError`.

    Raises:
        ProcessLostError: another process ended, or gives no sign of life.
        AlreadySaidError: another process ended and has said why.
        UserInputError: torch.distributed is in use already, or `LOST_AFTER_VARIABLE` is no number.
    """
    place = Place.of_environment()
    if place.size == 1:
        yield ALONE
        return
    team = _Gloo(place)
    try:
        yield team
    except BaseException as error:
        _go_on_undisturbed()
        reason = team.reason(error)
        if reason is error:
            raise
        raise reason from error
    finally:
        team.leave()


def _go_on_undisturbed() -> None:
    """What this process has to say must not be cut short by torchrun, which ends all of them."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Gloo(Team):
    """Processes connected by gloo; whether they live is in the store that torchrun keeps."""

    def __init__(self, place: Place) -> None:
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        super().__init__(place)
        if dist.is_initialized():
            raise UserInputError(
                "torch.distributed is in use in this program already. Give team=vitsense.ALONE to "
                "measure in this process alone, or end the process group first."
            )
        self._lost_after = _lost_after()
        store, _, _ = next(rendezvous("env://", timeout=_JOINING))
        self._store = PrefixStore("vitsense", store)
        self._store.set(f"who/{place.rank}", json.dumps([socket.gethostname(), os.getpid()]))
        dist.init_process_group(
            "gloo",
            store=PrefixStore("gloo", store),
            rank=place.rank,
            world_size=place.size,
            timeout=_JOINING,
        )
        self._meetings = 0
        self._beats: dict[int, tuple[str, float]] = {}
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def gather(self, value: Any) -> list[Any]:
        import torch

        self._wait_for_all()
        data = json.dumps(value).encode()
        sizes = [int(n) for n in self._all_gather(torch.tensor([len(data)]))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = self._all_gather(padded)
        return [
            json.loads(part[:n].numpy().tobytes()) for part, n in zip(parts, sizes, strict=True)
        ]

    def _all_gather(self, own: Tensor) -> list[Tensor]:
        import torch
        import torch.distributed as dist

        found = [torch.empty_like(own) for _ in range(self.place.size)]
        try:
            dist.all_gather(found, own)
        except RuntimeError as error:  # a connection broke, so a process did
            raise self._lost(self._dead()) from error
        return found

    def _wait_for_all(self) -> None:
        """Come to the next exchange of results, and wait for the others as long as they live.

        Raises:
            ProcessLostError: one does not.
            AlreadySaidError: one has ended and said why.
        """
        key, pause, looked = f"meeting/{self._meetings}", 0.001, time.monotonic()
        self._meetings += 1
        try:
            here = self._store.add(key, 1)
            while here < self.place.size:
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
                here = self._store.add(key, 0)
                if time.monotonic() - looked > _BEAT:
                    looked = time.monotonic()
                    self._look_after_others()
        except RuntimeError as error:
            raise ProcessLostError(
                "The connection to torchrun, or to its first machine, is lost. " + _KEPT
            ) from error

    def _look_after_others(self) -> None:
        if self._store.check(["ended"]):
            raise AlreadySaidError
        now = time.monotonic()
        for rank in range(self.place.size):
            key = f"beat/{rank}"
            beat = self._store.get(key).decode() if self._store.check([key]) else ""
            seen, since = self._beats.get(rank, ("", now))
            self._beats[rank] = (beat, since if beat == seen else now)
        silent = [r for r, (_, since) in self._beats.items() if now - since > self._lost_after]
        if silent:
            raise self._lost(silent, f" gave no sign of life for {self._lost_after:g} s.")

    def _beat(self) -> None:
        """The thread that shows that this process lives."""
        count = 0
        with suppress(RuntimeError):  # the store is gone; the next exchange says so
            while not self._over.is_set():
                count += 1
                self._store.set(f"beat/{self.place.rank}", str(count))
                self._over.wait(_BEAT)

    def _dead(self) -> list[int]:
        """Processes of this machine that are no more."""
        found = []
        for rank in range(self.place.size):
            if self._store.check([f"who/{rank}"]):
                host, number = json.loads(self._store.get(f"who/{rank}"))
                if host == socket.gethostname() and not _alive(number):
                    found.append(rank)
        return found

    def _lost(self, ranks: Sequence[int], how: str = "") -> ProcessLostError:
        number = ", ".join(str(rank) for rank in ranks)
        who = f"Rank {number} of {self.place.size}" if ranks else "Another process"
        how = how or " ended without a word: killed, or out of memory."
        return ProcessLostError(who + how + " " + _KEPT)

    def reason(self, error: BaseException) -> BaseException:
        """What this process should end with, so that one of all says why, and only one."""
        if isinstance(error, AlreadySaidError):
            return error
        try:
            if isinstance(error, KeyboardInterrupt) and not self._store.check(["ended"]):
                dead = self._dead()  # torchrun ends the others when one has died
                error = self._lost(dead) if dead else error
            mine = f"rank {self.place.rank}: {type(error).__name__}"
            first: bytes = self._store.compare_set("ended", "", mine)
        except RuntimeError:  # the store is gone: nobody can be asked who speaks
            return error
        return error if first.decode() == mine else AlreadySaidError()

    def leave(self) -> None:
        """End the connection."""
        import torch.distributed as dist

        self._over.set()
        self._beating.join()
        dist.destroy_process_group()


_KEPT = (
    "Nothing that was measured is lost; the same command continues, with any number of processes."
)


def _lost_after() -> float:
    text = os.environ.get(LOST_AFTER_VARIABLE, "")
    try:
        return max(float(text), 3 * _BEAT) if text else LOST_AFTER
    except ValueError as error:
        raise UserInputError(
            f"{LOST_AFTER_VARIABLE} is {text!r}: write seconds, for example 120."
        ) from error


def _alive(number: int) -> bool:
    """Whether a process of this machine runs; one that ended and was not collected does not."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # no such folder on this system
        return True
    return state not in {"Z", "X"}
