# SPDX-License-Identifier: Apache-2.0
"""Check the calibration of all cameras of a recording."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from pcseg_core.calibration.alignment import View, same_camera, sweep_edges, view_of
from pcseg_core.calibration.estimate import GROUPS
from pcseg_core.calibration.verdict import LEAST_VIEWS, UNITS, CameraVerdict, judge
from pcseg_core.config import Section
from pcseg_core.data import Recording, evenly_spaced, readable
from pcseg_core.data.bag_findings import Finding
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory

SWEEPS = 24
QUICK_SWEEPS = 8
_STANDING_M = 1.0  # a shorter path shows one place only
# Between two sweeps that tell what moves.
_APART_S = 0.5
_LEAST_APART_S, _MOST_APART_S = 0.2, 1.0
_STANDS = "the vehicle stands still"


class CalibrationReport(Section):
    """Report of `pcseg calibrate`."""

    recording: str
    sweeps: int
    poses: str
    cameras: tuple[CameraVerdict, ...]

    def lines(self) -> list[str]:
        """What was compared, and why something cannot be told, in sentences."""
        found = [f"{self.recording}: {self.sweeps} sweeps compared, poses: {self.poses}"]
        for camera in self.cameras:
            if camera.reason:
                found.append(f"{camera.camera}: cannot tell: {camera.reason}")
                continue
            for group in GROUPS:
                error = camera.error(group)
                if error is not None and error.reason:
                    found.append(f"{camera.camera}, {group}: cannot tell: {error.reason}")
        return found

    def findings(self) -> list[Finding]:
        """The verdicts of a quick check, for `pcseg bag info`."""
        return [_finding(camera) for camera in self.cameras]


def _finding(camera: CameraVerdict) -> Finding:
    what = f"calibration of {camera.camera}, quick check: {camera.verdict}"
    if camera.verdict == "off":
        errors = [(group, camera.error(group)) for group in GROUPS]
        parts = [
            f"{group} by {error.size:.2g} ± {error.interval:.1g} {UNITS[group]}"
            for group, error in errors
            if error is not None and error.verdict == "off"
        ]
        do = "run `pcseg calibrate` on the recording, with --out for a corrected calibration"
        return Finding(level="warning", what=f"{what}: {', '.join(parts)}", do=do)
    if camera.verdict == "cannot tell":
        return Finding(level="note", what=f"{what}: {camera.reason}")
    return Finding(level="note", what=what)


@dataclass(frozen=True)
class Checked:
    """A report, and the views of each camera that it is made of."""

    report: CalibrationReport
    views: dict[str, list[View]]

    def frames(self) -> list[CameraFrame]:
        """One image of each camera that has one, with the corrected extrinsic."""
        frames = []
        for verdict in self.report.cameras:
            frame = self.views[verdict.camera][0].frame
            frames.append(frame.placed(verdict.corrected(frame.T_cam_lidar)))
        return frames

    def time_offsets(self) -> dict[str, float]:
        """Seconds to add to the stamps of the images of each camera that needs it."""
        found = {verdict.camera: float(verdict.change[6]) for verdict in self.report.cameras}
        return {name: offset for name, offset in found.items() if offset}


def check_calibration(recording: Recording, sweeps: int = SWEEPS, whole: bool = True) -> Checked:
    """Compare depth edges of sweeps with edges of images, and search the errors of calibration.

    Args:
        recording: a drive with cameras.
        sweeps: number of sweeps to compare, evenly over the drive.
        whole: see `judge`.

    Raises:
        InputError: no camera has an image that can be compared.
    """
    chosen = list(with_neighbors(recording, evenly_spaced(len(recording), sweeps)))
    views = collect_views(chosen)
    if not views:
        raise InputError(
            f"{recording.name}: no camera has an image near a sweep, with a calibration; "
            "record images and their calibration, see `pcseg bag info`"
        )
    still = _standing([sample for sample, _ in chosen])
    cameras = tuple(_judge(name, found, whole, still) for name, found in views.items())
    report = CalibrationReport(
        recording=recording.name, sweeps=len(chosen), poses=recording.pose_source, cameras=cameras
    )
    return Checked(report, views)


def with_neighbors(
    recording: Recording, indices: Iterable[int]
) -> Iterator[tuple[Sample, Sample | None]]:
    """Readable samples, each with one of its scene about half a second later or earlier."""
    step = 0
    for index, sample in readable(recording, indices):
        step = step or _step(recording, index, sample)
        yield sample, _neighbor(recording, index, sample, step)


def _step(recording: Recording, index: int, sample: Sample) -> int:
    """Samples between neighbors."""
    following = _at(recording, index, index + 1)
    if following is None or following.stamp_ns <= sample.stamp_ns:
        return 1
    return max(1, round(_APART_S * 1e9 / (following.stamp_ns - sample.stamp_ns)))


def _neighbor(recording: Recording, index: int, sample: Sample, step: int) -> Sample | None:
    for other in (index + step, index - step):
        found = _at(recording, index, other)
        if found is None:
            continue
        apart_s = abs(found.stamp_ns - sample.stamp_ns) * 1e-9
        if _LEAST_APART_S <= apart_s <= _MOST_APART_S:
            return found
    return None


def _at(recording: Recording, index: int, other: int) -> Sample | None:
    """Sample `other`, if it can be read and is of the scene of sample `index`."""
    if other in range(len(recording)) and recording.scenes[other] == recording.scenes[index]:
        with suppress(InputError):
            return recording[other]
    return None


def collect_views(pairs: Iterable[tuple[Sample, Sample | None]]) -> dict[str, list[View]]:
    """Views of each camera; images that cannot be used, or are of another model, are left out.

    Args:
        pairs: samples with their neighbors, see `with_neighbors`.
    """
    views: defaultdict[str, list[View]] = defaultdict(list)
    for sample, other in pairs:
        try:
            edges = sweep_edges(sample, other)
        except InputError:
            continue
        for k, frame in enumerate(sample.cameras):
            known = views.get(frame.name)
            if known and not same_camera(known[0].frame, frame):
                continue
            try:
                view = view_of(sample, k, edges)
            except InputError:
                continue
            views[frame.name].append(view)
    return dict(views)


def _judge(name: str, views: Sequence[View], whole: bool, still: str) -> CameraVerdict:
    if (
        still == _STANDS and len(views) >= LEAST_VIEWS
    ):  # what one place seems to be off by is the same in all of its images
        edges = sum(len(view.edges) for view in views)
        return CameraVerdict(
            camera=name, verdict="cannot tell", reason=_STANDS, images=len(views), edges=edges
        )
    verdict = judge(name, views, whole)
    if still and verdict.time is not None and verdict.time.verdict == "cannot tell":
        time = verdict.time.model_copy(update={"reason": still})
        return verdict.model_copy(update={"time": time})
    return verdict


def _standing(samples: Sequence[Sample]) -> str:
    """Why the motion of the drive cannot tell everything; empty if it moves."""
    trajectories: list[tuple[Trajectory, int]] = [
        (sample.trajectory, sample.stamp_ns) for sample in samples if sample.trajectory is not None
    ]
    if not trajectories:
        return "the recording has no poses"
    places = np.array([trajectory.at(stamp)[:3, 3] for trajectory, stamp in trajectories])
    moved = float(np.linalg.norm(places - places[0], axis=1).max())
    return "" if moved > _STANDING_M else _STANDS
