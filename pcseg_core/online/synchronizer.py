# SPDX-License-Identifier: Apache-2.0
"""Match images to sweeps by their stamps. The sweep sets the pace."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pcseg_core.errors import InputError

Sweep = TypeVar("Sweep")
Item = TypeVar("Item")

MAX_IMAGES = 16
"""Buffered images per camera: half a second at 30 Hz."""


@dataclass(frozen=True)
class Match(Generic[Sweep, Item]):
    """A sweep with the matching image of each camera.

    Attributes:
        stamp_ns: of the sweep.
        sweep: as it was added.
        images: camera -> image nearest to the sweep, for cameras with one within the tolerance.
        stamps_ns: camera -> stamp of that image.
        missing: cameras without an image, in their order.
        waited_s: time since the arrival of the sweep [s].
    """

    stamp_ns: int
    sweep: Sweep
    images: dict[str, Item]
    stamps_ns: dict[str, int]
    missing: tuple[str, ...]
    waited_s: float


class Synchronizer(Generic[Sweep, Item]):
    """Matches every sweep with the nearest image of each camera, up to a deadline.

    A sweep waits for a camera as long as a nearer image can still arrive: until the camera has
    delivered an image at or after the sweep's stamp, or one so shortly before it that the next is
    farther away. Silent cameras are not waited for. Sweeps leave in the order of their stamps. The
    cost per sweep is linear in the number of cameras.

    Stamps are header stamps. The current time is passed in, from any clock. Not thread-safe.

    Attributes:
        cameras: their names.
        counters: irregular messages by reason: `sweep_out_of_order` and `sweep_duplicate` (dropped:
            not newer than a sweep that has left), `sweep_overflow` (dropped: too many waited),
            `sweep_jump` and `image_jump` (stamps jumped back: the buffers were cleared),
            `image_out_of_order` (kept), `image_duplicate` (dropped), `image_late` (its sweep had
            left), `deadline` (sweeps that left at their deadline).
        missing: camera -> number of sweeps that left without it.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        tolerance_s: float = 0.05,
        deadline_s: float = 0.05,
        *,
        silent_s: float = 1.0,
        jump_s: float = 1.0,
        max_sweeps: int = 4,
    ) -> None:
        """Start empty.

        Args:
            cameras: names, without repetition; may be empty.
            tolerance_s: maximum time between sweep and image [s].
            deadline_s: maximum wait of a sweep after it was added [s].
            silent_s: a camera whose newest image is older than the sweep by more than this is
                silent [s].
            jump_s: a larger backward step of the stamps is a restart (a looped bag), a smaller one
                a message out of order [s].
            max_sweeps: maximum number of waiting sweeps; the oldest is dropped.

        Raises:
            InputError: a repeated camera, or a number out of range.
        """
        if len(set(cameras)) != len(cameras):
            raise InputError(f"cameras {', '.join(cameras)}: each name may appear once")
        numbers = {"tolerance_s": tolerance_s, "deadline_s": deadline_s, "silent_s": silent_s}
        for name, value in {**numbers, "jump_s": jump_s}.items():
            if not 0 <= value < float("inf"):
                raise InputError(f"{name} is {value}: expected a number of seconds, 0 or more")
        if max_sweeps < 1:
            raise InputError(f"max_sweeps is {max_sweeps}: expected 1 or more")
        self.cameras = tuple(cameras)
        self.counters: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self._tolerance_ns = round(tolerance_s * 1e9)
        self._silent_ns = round(silent_s * 1e9)
        self._jump_ns = round(jump_s * 1e9)
        self._deadline_s = deadline_s
        self._max_sweeps = max_sweeps
        self.reset()

    def reset(self) -> None:
        """Drop all messages; keeps the counters."""
        self._images: dict[str, _Images[Item]] = {name: _Images() for name in self.cameras}
        self._waiting: list[_Waiting[Sweep]] = []  # sorted by stamp
        self._given_ns: int | None = None

    def add_image(self, camera: str, stamp_ns: int, item: Item) -> None:
        """Add an image.

        Raises:
            InputError: no camera of this name.
        """
        images = self._images.get(camera)
        if images is None:
            raise InputError(f"camera '{camera}': known are {', '.join(self.cameras) or 'none'}")
        if images.stamps and stamp_ns < images.stamps[-1] - self._jump_ns:
            self.counters["image_jump"] += 1
            images.clear()
        if self._given_ns is not None and 0 <= self._given_ns - stamp_ns <= self._jump_ns:
            self.counters["image_late"] += 1
            if stamp_ns < self._given_ns - self._tolerance_ns:
                return  # too old for later sweeps
        if images.stamps and stamp_ns < images.stamps[-1]:
            self.counters["image_out_of_order"] += 1
        if not images.insert(stamp_ns, item):
            self.counters["image_duplicate"] += 1

    def add_sweep(self, stamp_ns: int, item: Sweep, now_s: float) -> None:
        """Add a sweep; `poll` returns it."""
        newest = self._waiting[-1].stamp_ns if self._waiting else self._given_ns
        if newest is not None and stamp_ns < newest - self._jump_ns:
            self._jump_back(stamp_ns)
        elif self._given_ns is not None and stamp_ns <= self._given_ns:
            same = stamp_ns == self._given_ns
            self.counters["sweep_duplicate" if same else "sweep_out_of_order"] += 1
            return
        place = len(self._waiting)
        while place and self._waiting[place - 1].stamp_ns > stamp_ns:
            place -= 1
        if place and self._waiting[place - 1].stamp_ns == stamp_ns:
            self.counters["sweep_duplicate"] += 1
            return
        self._waiting.insert(place, _Waiting(stamp_ns, item, now_s))
        if len(self._waiting) > self._max_sweeps:
            self._waiting.pop(0)
            self.counters["sweep_overflow"] += 1

    def poll(self, now_s: float) -> list[Match[Sweep, Item]]:
        """Sweeps that need not wait any longer, oldest first.

        Call it after every message and at `next_deadline_s`.
        """
        matches = []
        while self._waiting:
            head = self._waiting[0]
            if not all(self._settled(name, head.stamp_ns) for name in self.cameras):
                if not any(self._expired(sweep, now_s) for sweep in self._waiting):
                    break  # a newer sweep that is ready releases the older ones
                self.counters["deadline"] += 1
            self._waiting.pop(0)
            matches.append(self._match(head, now_s))
        return matches

    def _expired(self, sweep: _Waiting[Sweep], now_s: float) -> bool:
        """Limit the wait when the clock was set back."""
        arrived, deadline = sweep.arrived_s, self._deadline_s
        return not arrived - deadline < now_s < arrived + deadline

    @property
    def next_deadline_s(self) -> float | None:
        """Latest time at which `poll` returns the next sweep; None if none waits."""
        arrivals = (sweep.arrived_s for sweep in self._waiting)
        return min((arrived + self._deadline_s for arrived in arrivals), default=None)

    def _settled(self, camera: str, stamp_ns: int) -> bool:
        """Whether no nearer image of a camera can arrive."""
        images = self._images[camera]
        if not images.stamps:
            return True
        newest = images.stamps[-1]
        behind = stamp_ns - newest
        if behind <= 0 or behind > self._silent_ns:
            return True
        return images.period_ns is not None and images.period_ns - behind >= behind

    def _match(self, head: _Waiting[Sweep], now_s: float) -> Match[Sweep, Item]:
        found, stamps, missing = {}, {}, []
        for name, images in self._images.items():
            nearest = images.nearest(head.stamp_ns)
            if nearest is None or abs(nearest[0] - head.stamp_ns) > self._tolerance_ns:
                missing.append(name)
            else:
                stamps[name], found[name] = nearest
            images.drop_before(head.stamp_ns - self._tolerance_ns)
        self.missing.update(missing)
        self._given_ns = head.stamp_ns
        waited = max(0.0, now_s - head.arrived_s)
        return Match(head.stamp_ns, head.item, found, stamps, tuple(missing), waited)

    def _jump_back(self, stamp_ns: int) -> None:
        """Restart; keeps images whose stamps have jumped back already."""
        self.counters["sweep_jump"] += 1
        self._waiting.clear()
        self._given_ns = None
        for images in self._images.values():
            images.drop_after(stamp_ns + self._jump_ns)


@dataclass
class _Waiting(Generic[Sweep]):
    """A waiting sweep."""

    stamp_ns: int
    item: Sweep
    arrived_s: float


@dataclass
class _Images(Generic[Item]):
    """The newest images of a camera, sorted by stamp."""

    stamps: list[int] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    period_ns: int | None = None  # shortest recent time between images

    def insert(self, stamp_ns: int, item: Item) -> bool:
        """Add an image; False if its stamp is a duplicate."""
        place = bisect_left(self.stamps, stamp_ns)
        if place < len(self.stamps) and self.stamps[place] == stamp_ns:
            return False
        if place == len(self.stamps) and self.stamps:
            self._learn_period(stamp_ns - self.stamps[-1])
        self.stamps.insert(place, stamp_ns)
        self.items.insert(place, item)
        if len(self.stamps) > MAX_IMAGES:
            del self.stamps[0], self.items[0]
        return True

    def _learn_period(self, step_ns: int) -> None:
        """Shrink at once, grow slowly: too short a period only costs waiting time."""
        known = self.period_ns
        self.period_ns = step_ns if known is None else min(step_ns, known + known // 16 + 1_000_000)

    def nearest(self, stamp_ns: int) -> tuple[int, Item] | None:
        """Stamp and image nearest to a stamp; the earlier of two equally near ones."""
        if not self.stamps:
            return None
        place = bisect_left(self.stamps, stamp_ns)
        around = [k for k in (place - 1, place) if 0 <= k < len(self.stamps)]
        best = min(around, key=lambda k: abs(self.stamps[k] - stamp_ns))
        return self.stamps[best], self.items[best]

    def drop_before(self, stamp_ns: int) -> None:
        """Drop older images; keeps the newest, whose stamp tells whether the camera is silent."""
        count = min(bisect_left(self.stamps, stamp_ns), max(len(self.stamps) - 1, 0))
        del self.stamps[:count], self.items[:count]

    def drop_after(self, stamp_ns: int) -> None:
        count = bisect_left(self.stamps, stamp_ns + 1)
        del self.stamps[count:], self.items[count:]

    def clear(self) -> None:
        self.stamps.clear()
        self.items.clear()
        self.period_ns = None
