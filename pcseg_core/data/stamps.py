# SPDX-License-Identifier: Apache-2.0
"""Select messages by their stamps (int64 nanoseconds)."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


def longest_increasing(stamps: npt.NDArray[Any]) -> Int64:
    """Indices (K,) of a longest strictly increasing subsequence of `stamps` (M,).

    It drops the fewest messages with repeated or decreasing stamps, whether a stamp jumped ahead or
    the clock was set back. O(M log M), by patience sorting.
    """
    tails: list[int] = []  # smallest last stamp of an increasing run of each length
    ends: list[int] = []  # index of that stamp
    before = np.full(len(stamps), -1, dtype=np.int64)
    for index, stamp in enumerate(stamps.tolist()):
        length = bisect_left(tails, stamp)
        before[index] = ends[length - 1] if length else -1
        if length == len(tails):
            tails.append(stamp)
            ends.append(index)
        else:
            tails[length] = stamp
            ends[length] = index
    chain = []
    index = ends[-1] if ends else -1
    while index >= 0:
        chain.append(index)
        index = int(before[index])
    return np.array(chain[::-1], dtype=np.int64)


def nearest(stamps: npt.NDArray[Any], stamp: int) -> int:
    """Index of the entry nearest to `stamp` in increasing `stamps` (M >= 1,)."""
    right = int(np.searchsorted(stamps, stamp))
    if right == 0:
        return 0
    if right == len(stamps) or stamp - stamps[right - 1] <= stamps[right] - stamp:
        return right - 1
    return right
