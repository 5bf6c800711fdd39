"""Memory that a command frees stays with the process, where the next tensor finds it.

glibc hands every large block back to the system when it is freed, and the system hands it out anew
page by page, zeroed, at its first touch. On a processor a step of a training allocates and frees
hundreds of megabytes of tensors, so that this costs more than the arithmetic of rounding.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_LARGEST_BLOCK = 1 << 30
_MOST_KEPT = (1 << 31) - 1
_CHOSEN_BY_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, up to 2 GiB; gives whether that could be arranged.

    For programs, not for libraries: it holds for the whole process. It does nothing where the C
    library is not glibc, or where the environment says how memory is to be treated.
    """
    if any(name in os.environ for name in _CHOSEN_BY_USER):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS and musl, or Windows
        return False
    kept = mallopt(_TRIM_THRESHOLD, _MOST_KEPT) == 1
    return bool(kept and mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK) == 1)
