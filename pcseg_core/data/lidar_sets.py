# SPDX-License-Identifier: Apache-2.0
"""Which sweeps of several LiDARs belong together, by their stamps. No LiDAR sets the pace."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError

Item = TypeVar("Item")

MAX_LIDAR_OFFSET_S = 0.06
"""Maximum time between sweeps that are united, by default [s]."""
OTHER_CLOCK_S = 0.25
"""Sweeps whose delay from stamp to arrival differs by more are stamped by another clock [s]."""
JUMP_NS = 1_000_000_000
"""Stamps that go back by more are a restart, such as a bag that is played again."""

_SILENT_S = 0.5  # a LiDAR without a sweep for this time, or three of its periods, is not waited for
_SILENT_PERIODS = 3.0
_RECENT_S = 1.0  # of the arrivals whose delays are compared
_EARLY = 0.8  # share of the period after which the next sweep may come
_MOST_OPEN = 4

LATE = "too late"
REPEATED = "stamp that repeats or goes backwards"
OTHER_CLOCK = "another clock"


@dataclass(frozen=True)
class LidarSet(Generic[Item]):
    """Sweeps that belong together.

    Attributes:
        stamp_ns: of the first of the LiDARs, in their order, that is in the set; after that of
            the set before.
        items: LiDAR -> its sweep, in the order of the LiDARs.
        stamps_ns: LiDAR -> stamp of its sweep.
        missing: LiDARs that are not in the set.
        arrived_s: arrival of the first sweep of the set.
    """

    stamp_ns: int
    items: dict[str, Item]
    stamps_ns: dict[str, int]
    missing: tuple[str, ...]
    arrived_s: float


@dataclass
class LidarState:
    """What is known of one LiDAR.

    Attributes:
        received: number of its sweeps.
        missed: sets that left without it.
        unused: reason -> sweeps that came into no set.
        stamp_ns: newest stamp.
        arrived_s: its arrival; of a LiDAR without a sweep that of the first sweep of any.
        period_s: time between its stamps; None before the second sweep.
        offset_s: by how much its stamps are ahead of those of the first LiDAR that is not silent,
            by the arrivals.
    """

    received: int = 0
    missed: int = 0
    unused: dict[str, int] = field(default_factory=dict)
    stamp_ns: int = 0
    arrived_s: float = float("-inf")
    period_s: float | None = None
    offset_s: float = 0.0
    _delays: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=64))
    _pace_s: float | None = None  # between arrivals

    def note(self, stamp_ns: int, now_s: float) -> bool:
        """A sweep has arrived. False if its stamp repeats or goes a little backwards."""
        step_s = 1e-9 * (stamp_ns - self.stamp_ns)
        if self.received and stamp_ns < self.stamp_ns - JUMP_NS:
            self._delays.clear()  # restarted: its clock is another one now
        elif self.received and step_s <= 0:
            return False
        if self.received and 0 < step_s < 2.0:
            self.period_s = _shorter(self.period_s, step_s)
            self._pace_s = _shorter(self._pace_s, now_s - self.arrived_s)
        self.received += 1
        self.stamp_ns, self.arrived_s = stamp_ns, now_s
        self._delays.append((now_s, now_s - 1e-9 * stamp_ns))
        while self._delays[0][0] < now_s - _RECENT_S:
            self._delays.popleft()
        return True

    @property
    def delay_s(self) -> float:
        """Shortest recent delay from a stamp to its arrival, which no busy moment lengthens [s]."""
        return min((delay for _, delay in self._delays), default=0.0)

    def silent(self, now_s: float) -> bool:
        """No sweep has come for long."""
        return now_s - self.arrived_s > max(_SILENT_S, _SILENT_PERIODS * (self._pace_s or 0.0))

    def may_reach(self, stamp_ns: int, now_s: float) -> bool:
        """Its next sweep may have a stamp up to this one."""
        if self.silent(now_s):
            return False
        ahead_s = 1e-9 * (stamp_ns - self.stamp_ns)
        return not self.received or ahead_s >= _EARLY * (self.period_s or 0.0)


def _shorter(known_s: float | None, step_s: float) -> float:
    """A period that shrinks at once and grows slowly: gaps are no periods."""
    return step_s if known_s is None else min(step_s, known_s * 17 / 16 + 1e-3)


@dataclass
class _Open(Generic[Item]):
    items: dict[str, Item]
    stamps_ns: dict[str, int]
    arrived_s: float

    def fits(self, stamp_ns: int, tolerance_ns: int) -> bool:
        low, high = min(self.stamps_ns.values()), max(self.stamps_ns.values())
        return max(high, stamp_ns) - min(low, stamp_ns) <= tolerance_ns


class LidarSets(Generic[Item]):
    """Joins sweeps whose stamps are near to each other, up to a deadline.

    A set waits for a LiDAR as long as a sweep of it can still come that fits, and at most until
    the deadline after the arrival of its first sweep. Silent LiDARs are not waited for, and belong
    again with their next sweep. A sweep that comes shortly after its set is one by itself, a later
    one is dropped. Each sweep is in one set at most; sets leave in the order of their stamps. A
    LiDAR whose stamps come from another clock than those of the first one is left out.

    The current time is passed in, from any clock. Not thread-safe.

    Attributes:
        states: LiDAR -> what is known of it.
    """

    def __init__(self, lidars: Sequence[str], tolerance_s: float, deadline_s: float) -> None:
        """Start empty.

        Args:
            lidars: names, without repetition; the first is the one that others are compared with.
            tolerance_s: maximum time between the stamps of a set [s].
            deadline_s: maximum wait of a set after its first sweep arrived [s].

        Raises:
            InputError: a repeated name, or none.
        """
        if not lidars or len(set(lidars)) != len(lidars):
            raise InputError(f"LiDARs {', '.join(lidars)}: expected different names")
        self.states = {name: LidarState() for name in lidars}
        self._tolerance_ns = round(tolerance_s * 1e9)
        self._deadline_s = deadline_s
        self.reset()

    def reset(self) -> None:
        """Drop all sweeps; keeps what is known of the LiDARs."""
        self._open: list[_Open[Item]] = []
        self._given_ns: int | None = None

    def add(self, lidar: str, stamp_ns: int, item: Item, now_s: float) -> str:
        """Add a sweep. Returns why it comes into no set, or ""."""
        state = self.states[lidar]
        if not any(other.received for other in self.states.values()):
            for other in self.states.values():
                other.arrived_s = now_s  # those that have not come yet are waited for at first
        if not state.note(stamp_ns, now_s):
            return self._leave_out(state, REPEATED)
        reference = self._reference(now_s)
        state.offset_s = reference.delay_s - state.delay_s
        if abs(state.offset_s) > OTHER_CLOCK_S:
            return self._leave_out(state, OTHER_CLOCK)
        if state is reference and self._given_ns and stamp_ns < self._given_ns - JUMP_NS:
            self.reset()
        if (place := self._place(lidar, stamp_ns)) is not None:
            place.items[lidar], place.stamps_ns[lidar] = item, stamp_ns
        elif self._given_ns is not None and stamp_ns <= self._given_ns - self._tolerance_ns:
            return self._leave_out(state, LATE)
        else:
            self._open.append(_Open({lidar: item}, {lidar: stamp_ns}, now_s))
        self._open.sort(key=lambda one: self._stamp(one.stamps_ns))
        return ""

    def _place(self, lidar: str, stamp_ns: int) -> _Open[Item] | None:
        """The set whose stamps are nearest, among those that a sweep fits into."""
        fitting = [
            one
            for one in self._open
            if lidar not in one.items and one.fits(stamp_ns, self._tolerance_ns)
        ]
        return min(
            fitting, key=lambda one: abs(stamp_ns - self._stamp(one.stamps_ns)), default=None
        )

    def poll(self, now_s: float) -> list[LidarSet[Item]]:
        """Sets that need not wait any longer, oldest first.

        Call it after every sweep and at `next_deadline_s`.
        """
        ready = [k for k, one in enumerate(self._open) if self._settled(one, now_s)]
        count = max((k + 1 for k in ready), default=0)  # a newer set that is ready releases others
        count = max(count, len(self._open) - _MOST_OPEN)
        given, self._open = self._open[:count], self._open[count:]
        return [self._give(one) for one in given]

    @property
    def next_deadline_s(self) -> float | None:
        """Latest time at which `poll` returns the next set; None if none waits."""
        return min((one.arrived_s + self._deadline_s for one in self._open), default=None)

    def _reference(self, now_s: float) -> LidarState:
        """The first LiDAR that is not silent; one of them has just delivered a sweep."""
        known = (state for state in self.states.values() if state.received)
        return next(state for state in known if not state.silent(now_s))

    def _settled(self, one: _Open[Item], now_s: float) -> bool:
        if now_s >= one.arrived_s + self._deadline_s:
            return True
        latest = min(one.stamps_ns.values()) + self._tolerance_ns
        others = (state for name, state in self.states.items() if name not in one.items)
        return not any(self._awaited(state, latest, now_s) for state in others)

    def _awaited(self, state: LidarState, latest_ns: int, now_s: float) -> bool:
        return abs(state.offset_s) <= OTHER_CLOCK_S and state.may_reach(latest_ns, now_s)

    def _stamp(self, stamps_ns: Mapping[str, int]) -> int:
        return next(stamps_ns[name] for name in self.states if name in stamps_ns)

    def _give(self, one: _Open[Item]) -> LidarSet[Item]:
        present = [name for name in self.states if name in one.items]
        missing = tuple(name for name in self.states if name not in one.items)
        for name in missing:
            self.states[name].missed += 1
        stamp = self._stamp(one.stamps_ns)
        if self._given_ns is not None:
            stamp = max(stamp, self._given_ns + 1)
        self._given_ns = stamp
        items = {name: one.items[name] for name in present}
        stamps = {name: one.stamps_ns[name] for name in present}
        return LidarSet(stamp, items, stamps, missing, one.arrived_s)

    def _leave_out(self, state: LidarState, reason: str) -> str:
        state.unused[reason] = state.unused.get(reason, 0) + 1
        return reason


def join_stamps(
    stamps_ns: Mapping[str, npt.NDArray[Any]], tolerance_s: float
) -> list[LidarSet[int]]:
    """Sets of the positions in increasing stamps (M,) of each LiDAR, as if each came at its stamp.

    Raises:
        InputError: see `LidarSets`.
    """
    sets: LidarSets[int] = LidarSets(list(stamps_ns), tolerance_s, tolerance_s)
    names = list(stamps_ns)
    owner = np.repeat(np.arange(len(names)), [len(stamps_ns[name]) for name in names])
    position = np.concatenate([np.arange(len(stamps_ns[name])) for name in names])
    merged = np.concatenate([np.asarray(stamps_ns[name], np.int64) for name in names])
    found, start = [], int(merged.min(initial=0))
    for k in np.lexsort((owner, merged)).tolist():
        stamp, now_s = int(merged[k]), 1e-9 * (int(merged[k]) - start)
        found += sets.poll(now_s - 1e-6)
        sets.add(names[owner[k]], stamp, int(position[k]), now_s)
        found += sets.poll(now_s - 1e-6)
    return found + sets.poll(float("inf"))
