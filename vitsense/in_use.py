"""One process at a time writes into a folder or file: the door to filelock. No torch.

The lock is the operating system's (``flock``, on Windows ``LockFile``) and belongs to the process:
it ends with it, also by ``kill -9``, and a file that is left behind stops nobody. Beside the lock
lies who holds it, for the message to the one who comes second. Readers (``vitsense report``) take
no lock.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from vitsense.errors import InUseError
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.runfolder import RunFolder

_LOCK = ".lock"


@contextmanager
def sole_writer(place: Path, progress: Progress = NO_PROGRESS) -> Iterator[None]:
    """Be the only process that writes into the folder ``place``, for the length of the context.

    The folder is made, and removed again if nothing was written into it: a refused start leaves
    none behind. Of processes that work together, one calls it.

    Args:
        place: The folder.
        progress: Told where the file system has no locks; then work goes on without one.

    Raises:
        InUseError: another process writes there.
        UserInputError: the folder cannot be made or written.
    """
    with _folder(place), _locked(place / _LOCK, place, progress):
        yield


def refuse_in_use(place: Path) -> None:
    """Refuse a folder that another process writes into now, before a program loads what it needs.

    Nothing is locked afterwards: that is `sole_writer`'s.

    Raises:
        InUseError: another process writes there.
    """
    if (place / _LOCK).exists():
        with _locked(place / _LOCK, place, NO_PROGRESS):
            pass


@contextmanager
def sole_writer_of(file: Path, progress: Progress = NO_PROGRESS) -> Iterator[None]:
    """The same for one file, whose folder others may use.

    Raises:
        InUseError: another process writes it.
        UserInputError: its folder cannot be made or written.
    """
    lock = file.parent / f".{file.name}{_LOCK}"
    with _folder(file.parent), _locked(lock, file, progress):
        yield


@contextmanager
def _folder(place: Path) -> Iterator[None]:
    """The folder; one that was made for nothing is removed again."""
    missing = [one for one in (place, *place.parents) if not one.exists()]
    RunFolder.at(place)
    try:
        yield
    finally:
        for made in missing:  # innermost first; a folder with something in it stays
            with suppress(OSError):
                made.rmdir()


@contextmanager
def _locked(path: Path, what: Path, progress: Progress) -> Iterator[None]:
    holder = path.with_name(f"{path.name}.json")
    lock = FileLock(path, timeout=0)
    try:
        _acquire(lock, path)
    except Timeout as error:
        raise InUseError(_refusal(what, holder)) from error
    except (OSError, NotImplementedError) as error:
        # some network file systems have no locks; a lock is a courtesy, the work is not
        reason = getattr(error, "strerror", None) or str(error)
        progress.note(
            f"The file system of {what} has no locks ({reason}): see to it yourself that one "
            "command at a time writes there."
        )
    try:
        with suppress(OSError):
            holder.write_text(json.dumps(_me()), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        with suppress(OSError):  # Windows keeps open files; there filelock removes it
            path.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, path: Path) -> None:
    """Take the lock at once or not at all.

    Its last holder may have removed the file between our opening and locking it.
    """
    lock.acquire()
    while not path.exists():
        lock.release()
        lock.acquire()


def _me() -> dict[str, str | int]:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"process": os.getpid(), "machine": socket.gethostname(), "since": now}


def _refusal(what: Path, holder: Path) -> str:
    try:
        found = json.loads(holder.read_text(encoding="utf-8"))
        elsewhere = "" if found["machine"] == socket.gethostname() else f" on {found['machine']}"
        who = f"process {found['process']}{elsewhere} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return (
        f"{what} is in use by {who}: one command at a time writes there. Wait for it, or end it "
        "(what it has done is kept, and the same command continues), or write elsewhere with --out."
    )
