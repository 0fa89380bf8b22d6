# SPDX-License-Identifier: Apache-2.0
"""Errors that `pcseg calibrate` finds: drives with a known error of rotation, translation or time.

python -m benchmarks.studies.calibration --cache cache --json calibration.json
python -m benchmarks.studies.calibration kitti-raw:DRIVE ... --json kitti.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pcseg_core.calibration.alignment import View, camera_poses, pose_error
from pcseg_core.calibration.calibrate import SWEEPS, collect_views, with_neighbors
from pcseg_core.calibration.verdict import CameraVerdict, judge
from pcseg_core.data import evenly_spaced, open_recording
from pcseg_core.data.sample import Sample
from pcseg_core.files import write_atomic

Float64 = npt.NDArray[np.float64]

SIMULATED = tuple(
    f"simulated:seed={seed},sweeps=24,stride=4,cameras=1,columns=1024,turns=1,beams={beams}"
    for seed, beams in ((31, 64), (32, 32), (33, 64))
)
# Rotation [deg], translation [m], time [s].
ERRORS = (
    *((deg, 0.0, 0.0) for deg in (0.5, 1.0, 3.0)),
    *((0.0, m, 0.0) for m in (0.02, 0.05, 0.1, 0.15)),
    *((0.0, 0.0, s) for s in (0.02, 0.05, 0.1)),
    (1.0, 0.05, 0.05),
    (3.0, 0.15, 0.1),
)
HEADINGS = ("error", "drives", "off", "rotation left deg", "translation left m", "time left ms")


def main() -> None:
    """Measure, print tables and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="*", default=list(SIMULATED))
    parser.add_argument("--cache", type=Path, help="folder of prepared sweeps and images")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--clean", action="store_true", help="only without an error")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for source in options.sources:
        for row in measure(source, options.cache, () if options.clean else ERRORS):
            rows.append(row)
            print(json.dumps(row), flush=True)
            if options.json:
                write_atomic(options.json, json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def measure(
    source: str, cache: Path | None, errors: Sequence[tuple[float, float, float]]
) -> Iterator[dict[str, object]]:
    """Figures of one drive, without and with each error; the first camera alone."""
    pairs = _pairs(source, cache)
    name, views = next(iter(collect_views(pairs).items()))
    by_stamp = {sample.cameras[0].stamp_ns: sample for sample, _ in pairs if sample.cameras}
    yield _row(source, (0.0, 0.0, 0.0), np.zeros(7), judge(name, views))
    for number, error in enumerate(errors):
        change = _drawn(error, np.random.default_rng([number, len(source), SWEEPS]))
        moved = [_disturbed(view, by_stamp[view.frame.stamp_ns], change) for view in views]
        yield _row(source, error, change, judge(name, moved, whole=False))


def table(rows: Sequence[dict[str, object]]) -> str:
    """Medians over the drives, as Markdown."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    for error in dict.fromkeys(str(row["error"]) for row in rows):
        same = [row for row in rows if str(row["error"]) == error]
        left = np.median(np.array([row["left"] for row in same], dtype=np.float64), axis=0)
        off = sum(row["verdict"] == "off" for row in same)
        figures = f"{left[0]:.2f} | {left[1]:.3f} | {1000 * left[2]:.0f}"
        lines.append(f"| {error} | {len(same)} | {off} | {figures} |")
    return "\n".join(lines)


def _pairs(source: str, cache: Path | None) -> list[tuple[Sample, Sample | None]]:
    """Samples with the images of one camera in memory, and neighbors; or from the cache."""
    file = None
    if cache is not None:
        file = cache / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.pickle"
        if file.is_file():
            loaded: list[tuple[Sample, Sample | None]] = pickle.loads(file.read_bytes())
            return loaded
    recording = open_recording(source)
    pairs = [
        (_kept(sample), None if other is None else _kept(replace(other, cameras=[])))
        for sample, other in with_neighbors(recording, evenly_spaced(len(recording), SWEEPS))
    ]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(pairs))
    return pairs


def _kept(sample: Sample) -> Sample:
    """What the study needs of a sample."""
    return replace(sample, cameras=[frame.decoded() for frame in sample.cameras[:1]], labels=None)


def _drawn(error: tuple[float, float, float], rng: np.random.Generator) -> Float64:
    """(7,) change with random directions of these lengths."""
    turn, shift = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
    sign = rng.choice((-1.0, 1.0))
    return np.concatenate([error[0] * turn, error[1] * shift, [sign * error[2]]])


def _disturbed(view: View, sample: Sample, change: Float64) -> View:
    """The view as a recording with this error in its calibration and stamps gives it."""
    frame = view.frame.placed(pose_error(change) @ view.frame.T_cam_lidar)
    frame.stamp_ns += round(change[6] * 1e9)
    poses = camera_poses(frame, sample.trajectory, sample.stamp_ns)
    return replace(view, poses=poses, frame=frame)


def _row(
    source: str, error: tuple[float, float, float], change: Float64, verdict: CameraVerdict
) -> dict[str, object]:
    left = pose_error(verdict.change) @ pose_error(change)
    angle = np.degrees(np.arccos(np.clip((np.trace(left[:3, :3]) - 1) / 2, -1, 1)))
    errors = {name: verdict.error(name) for name in ("rotation", "translation", "time")}
    return {
        "source": source,
        "error": f"{error[0]:g} deg, {100 * error[1]:g} cm, {1000 * error[2]:g} ms",
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "parts": {k: None if e is None else e.verdict for k, e in errors.items()},
        "intervals": {k: None if e is None else e.interval for k, e in errors.items()},
        "sizes": {k: None if e is None else e.size for k, e in errors.items()},
        "left": [
            float(angle),
            float(np.linalg.norm(left[:3, 3])),
            abs(float(verdict.change[6] + change[6])),
        ],
    }


if __name__ == "__main__":
    main()
