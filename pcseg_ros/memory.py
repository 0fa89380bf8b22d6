# SPDX-License-Identifier: Apache-2.0
"""Memory of a process that works on sweep after sweep for days. No ROS imports."""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3) with their numbers in glibc's malloc.h, in the order in which they are
# set: one heap, the largest threshold that it takes, and no trimming.
_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1


def keep_freed_memory() -> None:
    """Let glibc keep what a sweep frees for the next one, in one heap for all threads.

    It gives large blocks back to the system at once, and a page fault for every 4 kB of the next
    sweep costs as much as all conversions together. In a heap of its own for each thread, freed
    blocks add up for hours. How many heaps there may be is settled when a second thread first asks
    for memory, so this comes before numpy, whose import starts threads. Does nothing with another
    C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
