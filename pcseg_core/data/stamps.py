# SPDX-License-Identifier: Apache-2.0
"""Select messages by their stamps (int64 nanoseconds)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


def longest_increasing(stamps: npt.NDArray[Any]) -> Int64:
    """Indices (K,) of a longest strictly increasing subsequence of `stamps` (M,).

    It drops the fewest messages with repeated or decreasing stamps, whether a stamp jumped ahead or
    the clock was set back; of several such choices it keeps the stamps near to each other.
    O(M log M), by patience sorting.
    """
    values = stamps.tolist()
    tails: list[int] = []  # smallest last stamp of an increasing run of each length
    ends: list[list[int]] = []  # indices that end such runs; their stamps do not increase
    for index, stamp in enumerate(values):
        length = bisect_left(tails, stamp)
        if length == len(tails):
            tails.append(stamp)
            ends.append([index])
        else:
            tails[length] = stamp
            ends[length].append(index)
    chain: list[int] = []
    for run in reversed(ends):
        # The first stamp below the next one is the nearest.
        first = bisect_right(run, -values[chain[-1]], key=lambda i: -values[i]) if chain else -1
        chain.append(run[first])
    return np.array(chain[::-1], dtype=np.int64)


def nearest(stamps: npt.NDArray[Any], stamp: int) -> int:
    """Index of the entry nearest to `stamp` in increasing `stamps` (M >= 1,)."""
    right = int(np.searchsorted(stamps, stamp))
    if right == 0:
        return 0
    if right == len(stamps) or stamp - stamps[right - 1] <= stamps[right] - stamp:
        return right - 1
    return right
