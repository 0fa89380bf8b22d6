# SPDX-License-Identifier: Apache-2.0
"""Counters of the node, and its report on /diagnostics."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from pcseg_core.online.sweep import NOT_FINITE

# Reasons for which a sweep is dropped, besides `pcseg_core.online.pipeline.NO_MOTION`.
REPLACED = "replaced by a newer sweep"
TOO_OLD = "too old"
MALFORMED = "malformed"
UNPLACED = "no LiDAR has a transform"
FAILED = "inference failed"
OUT_OF_MEMORY = "out of memory"
DISABLED = "disabled"
RESET = "reset"
UNSUBSCRIBED = "nobody subscribes"
# Counters of the synchronizer that stand for dropped sweeps.
SYNCHRONIZER_DROPS = {
    "sweep_out_of_order": "out of order",
    "sweep_duplicate": "stamp seen before",
    "sweep_overflow": "too many waited for images",
}
COUNTED = "(counted on /diagnostics from now on)"  # ends the log line of an event that begins

_INTENDED = (UNSUBSCRIBED, DISABLED, RESET)
_TOLERATED_DROPS = 0.1
_QUIET_S = 60.0  # an event that did not occur for this time is logged again
_WINDOW = 200
_LONGEST_REASON = 500
_MIB = 1 << 20


@dataclass(frozen=True)
class Summary:
    """The counters at one moment.

    Attributes:
        received, published: sweeps since the start.
        dropped: reason -> sweeps since the start.
        events: other event -> count since the start.
        reasons: event, or reason of a drop -> its newest explanation.
        recent_received, recent_published, recent_drops, recent_events: the same since the previous
            summary.
        elapsed_s: time since the previous summary.
        stages: stage -> (p50, p95) of its last 200 durations, in the unit that was recorded.
    """

    received: int = 0
    published: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    recent_received: int = 0
    recent_published: int = 0
    recent_drops: dict[str, int] = field(default_factory=dict)
    recent_events: dict[str, int] = field(default_factory=dict)
    elapsed_s: float = 1.0
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)


class SweepStatistics:
    """Counts sweeps and keeps the last durations of each stage; any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._received = 0
        self._published = 0
        self._dropped: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._stages: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_WINDOW))
        self._seen_s: dict[str, float] = {}
        self._reasons: dict[str, str] = {}
        self._since = clock()
        self._previous = Summary()

    def receive(self) -> None:
        """Count a received sweep."""
        with self._lock:
            self._received += 1

    def drop(self, reason: str, count: int = 1, why: object = "") -> None:
        """Count received sweeps that are not labeled, and keep the newest explanation."""
        with self._lock:
            self._dropped[reason] += count
            if why:
                self._reasons[reason] = str(why)[:_LONGEST_REASON]

    def note(self, event: str, count: int = 1) -> None:
        """Count an event that costs no received sweep."""
        with self._lock:
            self._events[event] += count

    def complain(self, node: Node, event: str, why: object) -> None:
        """Count an event that costs no sweep, and log its reason when it begins."""
        self.note(event)
        with self._lock:
            self._reasons[event] = str(why)[:_LONGEST_REASON]
        if self.begins(event):
            node.get_logger().warning(f"{event}: {why} {COUNTED}")

    def begins(self, event: str) -> bool:
        """An event that occurs now is to be logged: it did not occur in the last minute.

        The throttle of rclpy is one for each line of code: a frequent event would hide others.
        """
        with self._lock:
            now = self._clock()
            before, self._seen_s[event] = self._seen_s.get(event, -math.inf), now
        return now - before >= _QUIET_S

    def publish(self, stages: Mapping[str, float]) -> None:
        """Count a published sweep, with the durations of its stages."""
        with self._lock:
            self._published += 1
            for stage, duration in stages.items():
                self._stages[stage].append(duration)

    def summary(self) -> Summary:
        """The counters now; the next summary's recent counts start here."""
        with self._lock:
            now, before = self._clock(), self._previous
            result = Summary(
                received=self._received,
                published=self._published,
                dropped=dict(self._dropped),
                events=dict(self._events),
                reasons=dict(self._reasons),
                recent_received=self._received - before.received,
                recent_published=self._published - before.published,
                recent_drops=dict(self._dropped - Counter(before.dropped)),
                recent_events=dict(self._events - Counter(before.events)),
                elapsed_s=max(now - self._since, 1e-9),
                stages={name: _percentiles(values) for name, values in self._stages.items()},
            )
            self._since, self._previous = now, result
            return result


def judge(
    state: str, fault: str, summary: Summary, warnings: Sequence[str] = ()
) -> tuple[bytes, str]:
    """Level and message of the status.

    Args:
        state: lifecycle state.
        fault: why the node could not be configured, or "".
        summary: counters since the last report.
        warnings: what is wrong besides, while sweeps are labeled.
    """
    drops = {r: n for r, n in summary.recent_drops.items() if r not in _INTENDED}
    if fault:
        return DiagnosticStatus.ERROR, fault
    if state != "active":
        return DiagnosticStatus.OK, state
    for reason in (FAILED, OUT_OF_MEMORY):
        if reason in drops:
            return DiagnosticStatus.ERROR, f"{reason}: {drops[reason]} sweeps"
    if NOT_FINITE in summary.recent_events:
        return DiagnosticStatus.ERROR, f"{NOT_FINITE}: {summary.recent_events[NOT_FINITE]} sweeps"
    if DISABLED in summary.recent_drops:
        return DiagnosticStatus.OK, DISABLED
    if not summary.recent_received:
        return DiagnosticStatus.WARN, "no sweeps received"
    frequent = _TOLERATED_DROPS * summary.recent_received
    if sum(drops.values()) > frequent:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in drops.items())
        return DiagnosticStatus.WARN, f"sweeps dropped ({reasons})"
    events = [f"{event}: {n}" for event, n in summary.recent_events.items() if n > frequent]
    if events or warnings:
        return DiagnosticStatus.WARN, "; ".join([*events, *warnings])
    if UNSUBSCRIBED in summary.recent_drops:
        return DiagnosticStatus.OK, f"idle: {UNSUBSCRIBED}"
    return DiagnosticStatus.OK, "labeling"


def values_of(summary: Summary) -> dict[str, str]:
    """Counters, rates and latencies as the keys and values of a status."""
    values = {
        "sweeps received": str(summary.received),
        "sweeps published": str(summary.published),
        "received rate (Hz)": f"{summary.recent_received / summary.elapsed_s:.2f}",
        "published rate (Hz)": f"{summary.recent_published / summary.elapsed_s:.2f}",
    }
    for stage, (median, high) in summary.stages.items():
        values[f"{stage} p50 (ms)"] = f"{median:.2f}"
        values[f"{stage} p95 (ms)"] = f"{high:.2f}"
    for reason, count in sorted(summary.dropped.items()):
        values[f"dropped: {reason}"] = str(count)
    for event, count in sorted(summary.events.items()):
        values[f"counted: {event}"] = str(count)
    for event, reason in sorted(summary.reasons.items()):
        values[f"reason: {event}"] = reason
    return values


def process_values(device: str) -> dict[str, str]:
    """Threads and memory of this process, and of the GPU if `device` is one."""
    values = {"threads": str(threading.active_count())}
    resident = resident_mib()
    if resident is not None:
        values["memory (MiB)"] = f"{resident:.0f}"
    if device.startswith("cuda"):
        import torch  # the segmenter that runs on the device has imported it

        values["GPU memory (MiB)"] = f"{torch.cuda.memory_reserved() / _MIB:.0f}"
    return values


def resident_mib() -> float | None:
    """Resident memory of this process, MiB; None on systems without /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


def report(name: str, level: bytes, message: str, values: Mapping[str, str]) -> DiagnosticArray:
    """A DiagnosticArray with one status and no stamp."""
    status = DiagnosticStatus(
        name=name,
        level=level,
        message=message,
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )
    return DiagnosticArray(status=[status])


def _percentiles(values: deque[float]) -> tuple[float, float]:
    low, high = np.percentile(np.fromiter(values, dtype=np.float64), (50, 95))
    return float(low), float(high)
