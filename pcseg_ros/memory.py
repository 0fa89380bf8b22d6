# SPDX-License-Identifier: Apache-2.0
"""Memory of a process that works on sweep after sweep for days. No ROS imports."""

from __future__ import annotations

import ctypes
import functools

# Parameters of mallopt(3) with their numbers in glibc's malloc.h, in the order in which they are
# set: one heap, the largest threshold that it takes, and no trimming.
_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1

_BLOCK = 8 << 20  # of a reserve
_MOST_BLOCKS = 16


def keep_freed_memory() -> None:
    """Let glibc keep what a sweep frees for the next one, in one heap for all threads.

    It gives large blocks back to the system at once, and a page fault for every 4 kB of the next
    sweep costs as much as all conversions together. In a heap of its own for each thread, freed
    blocks add up for hours. How many heaps there may be is settled when a second thread first asks
    for memory, so this comes before numpy, whose import starts threads. Does nothing with another
    C library.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@functools.cache  # once in a process
def reserve(megabytes: int = 64) -> None:
    """Let the heap grow now by what it would grow in the next quarter of an hour.

    Buffers of many sizes come and go in another order with each sweep, and the heap grows until
    the gaps between them fit all. With a reserve that was written once and freed, it does so within
    what the process has: memory is flat, and page faults do not meet sweeps. For use after
    `keep_freed_memory`, when some sweeps have shown how much they need, and beside them, for it
    takes as long as a sweep; does nothing with another C library.
    """
    libc = _glibc()
    if libc is None:
        return
    sbrk = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_ssize_t)(("sbrk", libc))
    malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(("malloc", libc))
    free = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(("free", libc))
    end = (sbrk(0) or 0) + (megabytes << 20)
    held: list[int | None] = []
    while (sbrk(0) or 0) < end and len(held) < _MOST_BLOCKS:  # the first may go into gaps
        block = malloc(_BLOCK)
        held.append(block)
        if not block or block > (sbrk(0) or 0):
            break  # none, or from outside the heap, where it would not stay
        ctypes.memset(block, 1, _BLOCK)  # a page is given when it is written
    for block in held:
        free(block)


def _glibc() -> ctypes.CDLL | None:
    """This process's C library, if it is glibc."""
    try:
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "gnu_get_libc_version") else None
    except OSError:
        return None
