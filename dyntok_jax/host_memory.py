"""How the C library hands out memory, where the processor computes.

XLA asks for the temporaries of every call anew and frees them after it. By default glibc takes what
is large from the system each time and gives it back at once, so that every page is zeroed and
mapped again in the next call: a fifth to a quarter of a training step on a CPU.
"""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path

ACCELERATORS = ("accel*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd")
"""Device files of TPUs and GPUs in /dev."""

# Numbers of the settings in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory(devices: Path = Path("/dev")) -> bool:
    """Has freed memory stay with the process, for its next allocations.

    To be called before the first computation: threads that exist keep arenas of their own. Where
    there is an accelerator, whose memory this does not touch, or another C library, it does
    nothing.

    Args:
        devices: where device files are.

    Returns:
        Whether it did.
    """
    found = itertools.chain.from_iterable(devices.glob(pattern) for pattern in ACCELERATORS)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or next(found, None) is not None:
        return False
    # No allocation maps pages of its own, the heap never shrinks, and all threads share it: XLA's
    # own allocate the temporaries, and arenas of single threads map what is large.
    settings = (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)
    return all(mallopt(*setting) for setting in settings)
