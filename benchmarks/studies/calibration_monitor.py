# SPDX-License-Identifier: Apache-2.0
"""The calibration monitor of the node on simulated drives: false warnings, and when a turn is told.

python -m benchmarks.studies.calibration_monitor --json monitor.json
python -m benchmarks.studies.calibration_monitor "simulated:seed=21,sweeps=60,stride=20,cameras=1"

The camera is turned by 1 degree about each of its axes, both ways, at several moments of a drive.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pcseg_core.calibration.alignment import View, pose_error, sweep_edges
from pcseg_core.calibration.monitor import CalibrationMonitor, Reading, monitor_view
from pcseg_core.data import open_recording, readable
from pcseg_core.data.sample import Sample
from pcseg_core.files import write_atomic
from pcseg_ros.config import MonitorParameters

Float64 = npt.NDArray[np.float64]

SIMULATED = tuple(
    f"simulated:seed={seed},sweeps=150,stride=20,cameras=1,columns=1024,turns=0.6,beams=32,"
    "width=480,height=288"
    for seed in range(23, 29)
)
TURNS = tuple(sign * axis for axis in np.eye(3) for sign in (1.0, -1.0))
MOMENTS = (0.3, 0.6)  # of the drive
WAITED = 20  # images after a turn


@dataclass(frozen=True)
class Seen:
    """What a monitor gets of one sweep."""

    view: View
    pose: Float64 | None
    stamp_ns: int


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="*", default=list(SIMULATED))
    parser.add_argument("--turn", type=float, default=1.0, help="degrees")
    parser.add_argument("--json", type=Path, help="figures; drives that it has are not repeated")
    options = parser.parse_args()
    rows = _measured(options.json)
    known = {row["source"] for row in rows}
    for source in (source for source in options.sources if source not in known):
        recording = open_recording(source)
        samples = (sample for _, sample in readable(recording, range(len(recording))))
        rows.append({"source": source, **measure(samples, options.turn)})
        print(json.dumps(rows[-1]), flush=True)
        if options.json:
            write_atomic(options.json, json.dumps(rows, indent=1) + "\n")


def _measured(path: Path | None) -> list[dict[str, object]]:
    """Rows of an earlier run, which is resumed."""
    rows: list[dict[str, object]] = []
    if path is not None and path.is_file():
        rows = json.loads(path.read_text())
    return rows


def measure(samples: Iterable[Sample], turn_deg: float) -> dict[str, object]:
    """Figures of one drive; the first camera alone."""
    seen, prepare_ms = [], []
    for sample in samples:
        if sample.cameras:
            frame = sample.cameras[0].placed(sample.T_cam_lidar(0)).decoded()
            begin_s = time.process_time()
            view = monitor_view(frame, sweep_edges(sample))
            prepare_ms.append(1e3 * (time.process_time() - begin_s))
            seen.append(Seen(view, sample.T_world_lidar, sample.stamp_ns))
    moments = [round(share * len(seen)) for share in MOMENTS]
    monitor, readings, compare_ms, delays = _monitor(), [], [], []
    for number, each in enumerate(seen):
        if number in moments:
            around = seen[number - 1 : number + WAITED]
            delays += [_delay_s(copy.deepcopy(monitor), around, turn_deg * turn) for turn in TURNS]
        begin_s = time.process_time()
        readings.append(monitor.add(each.view, each.pose))
        compare_ms.append(1e3 * (time.process_time() - begin_s))
    return {
        **_of_clean(seen, readings),
        "delays_s": delays,
        "prepare_ms": float(np.median(prepare_ms)),
        "compare_ms": float(np.median(compare_ms)),
    }


def _monitor() -> CalibrationMonitor:
    given = MonitorParameters()
    return CalibrationMonitor(given.images, given.max_rotation_deg)


def _delay_s(monitor: CalibrationMonitor, around: Sequence[Seen], turn: Float64) -> float | None:
    """Time from the last image before a turn [deg] to the warning; None if there is none."""
    change = np.concatenate([turn, np.zeros(4)])
    before, *after = around
    for each in after:
        turned = pose_error(change) @ each.view.poses
        if monitor.add(replace(each.view, poses=turned), each.pose).warns:
            return (each.stamp_ns - before.stamp_ns) * 1e-9
    return None


def _of_clean(seen: Sequence[Seen], readings: Sequence[Reading]) -> dict[str, object]:
    """What a monitor said of a drive without a turn."""
    turned = [reading.turned_deg for reading in readings if reading.turned_deg is not None]
    scores = [reading.score for reading in readings if reading.score is not None]
    return {
        "minutes": (seen[-1].stamp_ns - seen[0].stamp_ns) / 60e9,
        "verdicts": Counter(reading.verdict for reading in readings),
        "reasons": Counter(reading.reason for reading in readings[8:] if reading.reason),
        "warnings": sum(a.warns and not b.warns for b, a in itertools.pairwise(readings)),
        "turned_deg": {
            "median": float(np.median(turned)) if turned else None,
            "largest": max(turned, default=None),
        },
        "limit_deg": readings[-1].limit_deg,
        "scores": [min(scores), max(scores)] if scores else None,
    }


if __name__ == "__main__":
    main()
