# SPDX-License-Identifier: Apache-2.0
"""Sweeps of simulated drives with exact truth, classes of their pixels, and groups of points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.studies.projection_faults import DARKNESS
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.geometry import deskew, invert, transform
from pcseg_core.labels import IGNORE, LabelSpace, group_probabilities, grouping, regroup, truth_of
from pcseg_core.progress import tracked
from pcseg_core.projection import project_cloud
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.simulation.world import drive_time
from pcseg_core.vision.pixel_classes import PixelClasses

Array = npt.NDArray[Any]

FACTORS: dict[str, tuple[str, ...]] = {
    "distance": ("0-10 m", "10-20 m", "20-40 m", "40+ m"),
    "border": ("0-5 px", "5-20 px", "20-80 px", "80+ px"),
    "occlusion": ("seen", "hidden", "outside"),
    "motion": ("standing", "standing, in a turn", "moving"),
}
"""What the accuracy of a label may depend on, and the groups of points.

"border" is the distance of the exact pixel to the border of the image. "hidden" points are in an
image, but behind another surface; "outside" points are in no image.
"""

_DISTANCE_M, _BORDER_PX = (10.0, 20.0, 40.0), (5.0, 20.0, 80.0)
_SEEN, _HIDDEN, _OUTSIDE = range(3)
_STANDING, _IN_A_TURN, _MOVING = range(3)
_HIDDEN_M = 0.5  # a surface so far before a point hides it
_TURN_S, _TURN_DEG_S = 0.1, 5.0


@dataclass
class View:
    """A sweep with exact truth and calibration, and the classes of its pixels.

    Attributes:
        seed: of the drive.
        sample: with exact calibration and stamps.
        classes: (C, h, w) float32 class probabilities of each image.
        truth: (N,) classes of the points, IGNORE for none.
        groups: factor -> (N,) group of each point, IGNORE for none.
        dark: classes of the last image as a teacher sees it in the dark; None without a teacher.
    """

    seed: int
    sample: Sample
    classes: list[Array]
    truth: Array
    groups: dict[str, Array]
    dark: Array | None = None

    def seen(self, last_camera: str) -> list[Array]:
        """Classes of the images with a fault of the last camera, see `Condition.last_camera`."""
        if last_camera == "right" or not self.classes:
            return self.classes
        if last_camera == "missing":
            return self.classes[:-1]
        assert self.dark is not None
        return [*self.classes[:-1], self.dark]


def views_of(
    sources: Sequence[str], space: LabelSpace, teacher: PixelClasses | None = None
) -> list[View]:
    """Render drives.

    Args:
        sources: "simulated:OPTIONS", with cameras and without faults.
        space: classes of labels and truth.
        teacher: gives the classes of pixels; None takes the exact ones.

    Raises:
        InputError: an unknown option or a value out of range.
    """
    found = []
    for source in sources:
        drive = SimulatedDrive.from_text(source.removeprefix("simulated:"))
        for index in tracked(range(len(drive)), f"rendering {drive.name}"):
            found.append(_view(drive, drive[index], space, teacher))
    return found


def _view(
    drive: SimulatedDrive, sample: Sample, space: LabelSpace, teacher: PixelClasses | None
) -> View:
    classes = [pixel_classes(frame, drive.label_space, space, teacher) for frame in sample.cameras]
    groups = {**_by_place(drive, sample), "motion": _by_motion(drive, sample)}
    dark = None
    if teacher is not None and sample.cameras:
        image = (sample.cameras[-1].image * DARKNESS).astype(np.uint8)
        dark = _grouped(teacher.probabilities(image), teacher.label_space, space)
    return View(drive.options.seed, sample, classes, truth_of(sample, space), groups, dark)


def pixel_classes(
    frame: CameraFrame, own: LabelSpace, space: LabelSpace, teacher: PixelClasses | None
) -> Array:
    """(C, h, w) float32 class probabilities of an image: by a teacher, or exact ones, 0 or 1."""
    if teacher is not None:
        return _grouped(teacher.probabilities(frame.image), teacher.label_space, space)
    assert frame.labels is not None
    exact = regroup(frame.labels, grouping(own, space))
    one_hot: Array = (exact == np.arange(len(space))[:, None, None]).astype(np.float32)
    return one_hot


def _grouped(probabilities: Array, own: LabelSpace, space: LabelSpace) -> Array:
    return group_probabilities(probabilities, grouping(own, space), len(space))


def deskewed(sample: Sample) -> Array:
    """(N, 3) float32 points at the stamp of the sweep [m]; as measured without a trajectory."""
    cloud = sample.cloud
    if sample.trajectory is None or cloud.time is None:
        return cloud.xyz
    return deskew(cloud.xyz, cloud.time, sample.trajectory, cloud.stamp_ns)


def _by_place(drive: SimulatedDrive, sample: Sample) -> dict[str, Array]:
    """Groups by distance, by distance to the image border, and by occlusion."""
    xyz = deskewed(sample)
    border, seen = np.full(len(xyz), -1.0), np.zeros(len(xyz), bool)
    for k, frame in enumerate(sample.cameras):
        found = project_cloud(xyz, sample.T_cam_lidar(k), frame.camera)
        inside = np.flatnonzero(found.in_image)
        gaps = found.uv[inside] + 0.5
        gaps = np.minimum(gaps, (frame.camera.width, frame.camera.height) - gaps).min(axis=1)
        border[inside] = np.maximum(border[inside], gaps)
        seen[inside] |= ~_hidden(drive, sample, k, xyz[inside])
    outside = border < 0
    return {
        "distance": np.digitize(np.linalg.norm(xyz, axis=1), _DISTANCE_M),
        "border": np.where(outside, IGNORE, np.digitize(border, _BORDER_PX)),
        "occlusion": np.where(outside, _OUTSIDE, np.where(seen, _SEEN, _HIDDEN)),
    }


def _hidden(drive: SimulatedDrive, sample: Sample, camera: int, xyz: Array) -> Array:
    """(M,) bool: rays from a camera meet another surface before the points (M, 3)."""
    frame, trajectory = sample.cameras[camera], sample.trajectory
    assert trajectory is not None
    center = (trajectory.at(frame.stamp_ns) @ invert(frame.T_cam_lidar))[:3, 3]
    rays = transform(trajectory.at(sample.stamp_ns), xyz.astype(np.float64)) - center
    hits = drive.world.probe().cast(center, rays, drive_time(frame.stamp_ns))
    hidden: Array = hits.range < np.linalg.norm(rays, axis=1) - _HIDDEN_M
    return hidden


def _by_motion(drive: SimulatedDrive, sample: Sample) -> Array:
    """Groups by motion: things that move, and what stands while the vehicle turns or not."""
    ids = [mover.parts["instance"] for mover in drive.world.scene.movers]
    instances, trajectory = sample.instances, sample.trajectory
    assert instances is not None and trajectory is not None
    moving = np.isin(instances, np.concatenate(ids) if ids else [])
    turn = trajectory.relative(sample.stamp_ns + round(_TURN_S * 1e9), sample.stamp_ns)
    rate_deg_s = abs(np.degrees(np.arctan2(turn[1, 0], turn[0, 0]))) / _TURN_S
    standing = _IN_A_TURN if rate_deg_s > _TURN_DEG_S else _STANDING
    groups: Array = np.where(moving, _MOVING, standing)
    return groups
