# SPDX-License-Identifier: Apache-2.0
"""The node's report on /diagnostics (diagnostic_msgs)."""

from __future__ import annotations

from collections.abc import Mapping

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from pcseg_ros.statistics import Summary

# Reasons for which a sweep goes no further.
REPLACED = "replaced by a newer sweep"
TOO_OLD = "too old"
MALFORMED = "malformed"
FAILED = "inference failed"
OUT_OF_MEMORY = "out of memory"
DISABLED = "disabled"
RESET = "reset"
NO_MOTION = "motion not known"
NO_EVIDENCE = "camera evidence late"
# Counters of the synchronizer that stand for dropped sweeps.
SYNCHRONIZER_DROPS = {
    "sweep_out_of_order": "out of order",
    "sweep_duplicate": "stamp seen before",
    "sweep_overflow": "too many waited for images",
}
UNSUBSCRIBED = "nobody subscribes"

_INTENDED = (UNSUBSCRIBED, DISABLED, RESET)
_TOLERATED_DROPS = 0.1


def judge(state: str, fault: str, summary: Summary) -> tuple[bytes, str]:
    """Level and message of the status.

    Args:
        state: lifecycle state.
        fault: why the node could not be configured, or "".
        summary: counters since the last report.
    """
    drops = {r: n for r, n in summary.recent_drops.items() if r not in _INTENDED}
    if fault:
        return DiagnosticStatus.ERROR, fault
    if state != "active":
        return DiagnosticStatus.OK, state
    for reason in (FAILED, OUT_OF_MEMORY):
        if reason in drops:
            return DiagnosticStatus.ERROR, f"{reason}: {drops[reason]} sweeps"
    if DISABLED in summary.recent_drops:
        return DiagnosticStatus.OK, DISABLED
    if not summary.recent_received:
        return DiagnosticStatus.WARN, "no sweeps received"
    if sum(drops.values()) > _TOLERATED_DROPS * summary.recent_received:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in drops.items())
        return DiagnosticStatus.WARN, f"sweeps dropped ({reasons})"
    frequent = _TOLERATED_DROPS * summary.recent_received
    events = [f"{event}: {n}" for event, n in summary.recent_events.items() if n > frequent]
    if events:
        return DiagnosticStatus.WARN, "; ".join(events)
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
    return values


def report(name: str, level: bytes, message: str, values: Mapping[str, str]) -> DiagnosticArray:
    """A DiagnosticArray with one status; the caller stamps it."""
    status = DiagnosticStatus(
        name=name,
        level=level,
        message=message,
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )
    return DiagnosticArray(status=[status])
