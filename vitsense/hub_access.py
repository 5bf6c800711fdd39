"""Fetch pretrained weights, or say in one sentence why that was not possible."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vitsense.errors import InputMissingError


@contextmanager
def reachable_or_explained(name: str) -> Iterator[None]:
    """Turn every way of not reaching a hub into one sentence, without minutes of retries."""
    try:
        with offline_if_unreachable():
            yield
    except Exception as error:
        if "no pretrained weights" in str(error).lower():
            raise InputMissingError(
                f"There are no pretrained weights of {name}: give weights from a file with "
                "--checkpoint, choose another model, or try the mechanics with vitsense analyze "
                "--weights random."
            ) from error
        if not _is_unreachable(error):
            raise
        raise InputMissingError(
            f"The pretrained weights of {name} could not be fetched from their hub "
            f"({type(error).__name__}). You can: (1) give weights from a file with --checkpoint; "
            "(2) connect to the network, or set HF_HOME to a cache that has them; (3) try the "
            "mechanics with vitsense analyze --weights random."
        ) from error


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Let the hub's client look only into its cache when one short request gets no answer.

    ``HF_HUB_ETAG_TIMEOUT``, the hub's own variable, waits longer for it; ``HF_HUB_OFFLINE`` asks
    nobody.
    """
    import logging
    import socket

    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    loggers = [logging.getLogger(n) for n in ("timm", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    own = "HF_HUB_ETAG_TIMEOUT" in os.environ
    answered = before or _answers(
        constants.ENDPOINT, constants.HF_HUB_ETAG_TIMEOUT if own else _PATIENCE
    )
    constants.HF_HUB_OFFLINE = before or not answered
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    patience = socket.getdefaulttimeout()
    # torchvision's downloader would wait for ever, and meets every address of a name in turn
    socket.setdefaulttimeout(10 if answered else 3)
    try:
        yield
    finally:
        socket.setdefaulttimeout(patience)
        constants.HF_HUB_OFFLINE = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_PATIENCE = 5.0
"""Seconds in which a hub that can be reached answers."""


def _answers(address: str, seconds: float) -> bool:
    """Whether anything comes back within so many seconds, in all.

    A thread waits, because a time limit of a request is for each of a name's addresses (a dozen),
    and none holds while the name is looked up.
    """
    import urllib.error
    import urllib.request

    came: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD")  # noqa: S310  https
        try:
            with urllib.request.urlopen(request, timeout=seconds):  # noqa: S310
                came.append(True)
        except urllib.error.HTTPError:
            came.append(True)  # an answer, whatever it says
        except OSError:
            pass

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return bool(came)


_HUB_PACKAGES = (
    "huggingface_hub",
    "requests",
    "httpx",
    "httpcore",
    "urllib",
    "httpx2",
    "httpcore2",
)


def _is_unreachable(error: BaseException | None) -> bool:
    while error is not None:
        root = type(error).__module__.partition(".")[0]
        is_io = isinstance(error, (OSError, EOFError)) and not isinstance(error, PermissionError)
        if root in _HUB_PACKAGES or is_io:
            return True
        error = error.__cause__ or error.__context__
    return False
