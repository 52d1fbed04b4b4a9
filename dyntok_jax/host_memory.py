"""How the C library hands out memory, where the processor computes.

XLA asks for the temporaries of every call anew and frees them after it. By default glibc takes what
is large from the system each time and gives it back at once, so that every page is zeroed and
mapped again in the next call: 15 to 22 % of a training step on a CPU.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import platform
from collections.abc import Mapping
from pathlib import Path

ACCELERATORS = ("accel[0-9]*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd", "dxg")
"""Device files of TPUs and GPUs in /dev."""

# Numbers of the settings in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory(devices: Path = Path("/dev")) -> bool:
    """Has freed memory stay with the process, for its next allocations.

    To be called before the first computation, and before threads that allocate: later ones get
    their arenas as well. The process is never smaller again than it once was, and all of its
    threads share one heap and its lock.

    Nothing is done where there is an accelerator, whose memory this does not touch, unless
    ``JAX_PLATFORMS`` is cpu; with another C library; or where the environment sets glibc's malloc
    itself (``MALLOC_…``, ``GLIBC_TUNABLES``).

    Args:
        devices: where device files are.

    Returns:
        Whether it was done.
    """
    if platform.libc_ver()[0] != "glibc" or _is_set(os.environ):
        return False
    found = itertools.chain.from_iterable(devices.glob(pattern) for pattern in ACCELERATORS)
    if os.environ.get("JAX_PLATFORMS") != "cpu" and next(found, None) is not None:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No allocation maps pages of its own, the heap never shrinks, and all threads share it: XLA's
    # own allocate the temporaries, and arenas of single threads map what is large.
    settings = (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)
    return all([mallopt(*setting) for setting in settings])


def _is_set(environment: Mapping[str, str]) -> bool:
    tunables = environment.get("GLIBC_TUNABLES", "")
    return "glibc.malloc." in tunables or any(name.startswith("MALLOC_") for name in environment)
