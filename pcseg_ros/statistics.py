# SPDX-License-Identifier: Apache-2.0
"""What a node did: rates, latencies, drops. Thread-safe, no ROS imports."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

_WINDOW = 200


@dataclass(frozen=True)
class Summary:
    """State of the counters at one moment.

    Attributes:
        received, published: sweeps since the start.
        dropped: reason -> sweeps since the start.
        events: what happened besides -> how often since the start.
        recent_received, recent_published, recent_drops, recent_events: the same since the previous
            summary.
        elapsed_s: time since the previous summary.
        stages: stage -> (p50, p95) over its last 200 sweeps, in the unit that was recorded.
    """

    received: int = 0
    published: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    recent_received: int = 0
    recent_published: int = 0
    recent_drops: dict[str, int] = field(default_factory=dict)
    recent_events: dict[str, int] = field(default_factory=dict)
    elapsed_s: float = 1.0
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)


class SweepStatistics:
    """Counts sweeps and keeps the last durations of each stage."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._received = 0
        self._published = 0
        self._dropped: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._stages: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_WINDOW))
        self._since = clock()
        self._previous = Summary()

    def receive(self) -> None:
        """A sweep came in."""
        with self._lock:
            self._received += 1

    def drop(self, reason: str) -> None:
        """A sweep that came in goes no further."""
        with self._lock:
            self._dropped[reason] += 1

    def note(self, event: str, count: int = 1) -> None:
        """Something happened that cost no sweep, or not only one."""
        with self._lock:
            self._events[event] += count

    def publish(self, stages: Mapping[str, float]) -> None:
        """A sweep went out; `stages` are its durations by stage."""
        with self._lock:
            self._published += 1
            for stage, duration in stages.items():
                self._stages[stage].append(duration)

    def summary(self) -> Summary:
        """The counters now; what is recent starts anew."""
        with self._lock:
            now, before = self._clock(), self._previous
            result = Summary(
                received=self._received,
                published=self._published,
                dropped=dict(self._dropped),
                events=dict(self._events),
                recent_received=self._received - before.received,
                recent_published=self._published - before.published,
                recent_drops=dict(self._dropped - Counter(before.dropped)),
                recent_events=dict(self._events - Counter(before.events)),
                elapsed_s=max(now - self._since, 1e-9),
                stages={name: _percentiles(values) for name, values in self._stages.items()},
            )
            self._since, self._previous = now, result
            return result


def _percentiles(values: deque[float]) -> tuple[float, float]:
    low, high = np.percentile(np.fromiter(values, dtype=np.float64), (50, 95))
    return float(low), float(high)
