# SPDX-License-Identifier: Apache-2.0
"""Faults of calibration and time, and known points whose pixels tell what they do to a projection.

Known points are at rest in the world, at exact places before each camera. They are measured like
those of a sweep, each at its own time, and projected as any sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.studies.study import Row
from pcseg_core.camera import CameraModel
from pcseg_core.cloud import PointCloud
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.geometry import invert, transform
from pcseg_core.projection import project_sample
from pcseg_core.simulation.faults import Faults

Array = npt.NDArray[Any]

EXACT, STILL = "exact", "ego motion ignored"
MISSING, DARK = "a camera missing", "a camera dark"
KINDS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "rotation": ("camera_rotation_deg", "deg", (0.25, 0.5, 1.0, 2.0)),
    "position": ("camera_translation_m", "m", (0.05, 0.1, 0.2)),
    "time": ("stamp_offset_s", "s", (0.02, 0.05, 0.1)),
}
"""Kind of fault -> field of `Faults`, its unit, and sizes."""

DISTANCES_M = (5.0, 10.0, 20.0, 40.0, 80.0)
ANGLES_DEG = (0.0, 10.0, 20.0, 30.0, 40.0)
DARKNESS = 0.03
"""Brightness of the images of a dark camera."""
_AROUND = 8  # directions around the optical axis
_MOMENTS = 5  # times within a sweep
_SWEEP_S = 0.1


@dataclass(frozen=True)
class Condition:
    """What is wrong with the calibration, the stamps, the use of the poses or the last camera.

    Attributes:
        faults: errors of the reported calibration and stamps.
        moving: whether the motion of the vehicle is taken into account.
        last_camera: "missing" gives no images, "dark" images of `DARKNESS` of their brightness.
    """

    faults: Faults = field(default_factory=Faults)
    moving: bool = True
    last_camera: Literal["right", "missing", "dark"] = "right"

    def reported(self, sample: Sample, seed: int) -> Sample:
        """A sample with exact calibration as a recording with the faults reports it.

        Args:
            sample: with exact calibration and stamps.
            seed: of the directions of the errors.
        """
        cameras = [self._reported(frame, seed, k) for k, frame in enumerate(sample.cameras)]
        trajectory = sample.trajectory if self.moving else None
        return replace(sample, cameras=cameras, trajectory=trajectory)

    def _reported(self, frame: CameraFrame, seed: int, camera: int) -> CameraFrame:
        moved = frame.placed(self.faults.T_cam_lidar(frame.T_cam_lidar, seed, camera))
        moved.stamp_ns += self.faults.stamp_error_ns(seed, camera, 0)
        return moved


def conditions() -> dict[str, Condition]:
    """No fault, every kind of fault with every size, the motion ignored, and faults of a camera."""
    found = {EXACT: Condition()}
    for kind, (name, _, sizes) in KINDS.items():
        for size in sizes:
            found[title(kind, size)] = Condition(Faults.model_validate({name: size}))
    cameras = {MISSING: Condition(last_camera="missing"), DARK: Condition(last_camera="dark")}
    return {**found, STILL: Condition(moving=False), **cameras}


def title(kind: str, size: float) -> str:
    """Name of a condition, such as "rotation 0.5 deg"."""
    return f"{kind} {size:g} {KINDS[kind][1]}"


@dataclass(frozen=True)
class KnownPoints:
    """Points before a camera.

    Attributes:
        xyz_cam: (K, 3) places in the exact frame of the camera [m].
        uv: (K, 2) their exact pixels.
        distance: (K,) index into `DISTANCES_M`.
        angle: (K,) index into `ANGLES_DEG`.
    """

    xyz_cam: Array
    uv: Array
    distance: Array
    angle: Array

    @classmethod
    def of(cls, camera: CameraModel) -> KnownPoints:
        """All distances and angles from the optical axis that lie in the image."""
        shape = np.meshgrid(range(len(DISTANCES_M)), range(len(ANGLES_DEG)), range(_AROUND))
        distance, angle, around = (part.ravel() for part in shape)
        off = np.radians(np.array(ANGLES_DEG))[angle]
        turn = 2 * np.pi * around / _AROUND
        across = np.sin(off)[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        rays = np.column_stack([across, np.cos(off)])
        xyz = rays * np.array(DISTANCES_M)[distance][:, None]
        uv, valid = camera.project(xyz)
        inside = valid & camera.contains(uv)
        return cls(xyz[inside], uv[inside], distance[inside], angle[inside])


def measured(sample: Sample, camera: int, points: KnownPoints) -> PointCloud:
    """Points as the LiDAR of a sample measures them: at times spread over the sweep.

    Args:
        sample: with exact calibration and a trajectory.
        camera: number of the camera that the points are known for.
        points: before this camera, at the time of its image.
    """
    frame, trajectory = sample.cameras[camera], sample.trajectory
    assert trajectory is not None
    T_world_cam = trajectory.at(frame.stamp_ns) @ invert(frame.T_cam_lidar)
    world = transform(T_world_cam, points.xyz_cam)
    moment = np.arange(len(world)) % _MOMENTS / (_MOMENTS - 1) * _SWEEP_S
    stamps = sample.stamp_ns + np.round(moment * 1e9).astype(np.int64)
    xyz = transform(invert(trajectory.at_many(stamps)), world)
    return PointCloud(xyz.astype(np.float32), time=moment, stamp_ns=sample.stamp_ns)


def projected(samples: Sequence[Sample], condition: Condition, seed: int) -> Row:
    """Errors of known points by distance and angle.

    Args:
        samples: with exact calibration, cameras and a trajectory.
        condition: faults.
        seed: of their directions.

    Returns:
        "all", and by the distance in meters and the angle in degrees: "px", the distance between
        the exact and the projected pixel (median), "px_95" (95th percentile), and "m", the
        distance between the known point and what the projected pixel shows at its distance.
        None where no point is projected.
    """
    shots = [(sample, k) for sample in samples for k in range(len(sample.cameras))]
    parts = [_errors(sample, k, condition, seed) for sample, k in shots]
    distance, angle, px, m = (np.concatenate(column) for column in zip(*parts))
    far = {f"{value:g}": distance == k for k, value in enumerate(DISTANCES_M)}
    off = {f"{value:g}": angle == k for k, value in enumerate(ANGLES_DEG)}
    return {
        "all": _figures(px, m, np.ones(len(px), bool)),
        "distance": {name: _figures(px, m, chosen) for name, chosen in far.items()},
        "angle": {name: _figures(px, m, chosen) for name, chosen in off.items()},
    }


def _errors(
    sample: Sample, camera: int, condition: Condition, seed: int
) -> tuple[Array, Array, Array, Array]:
    """Distance and angle (indices), and error [px] and [m], of the points that are projected."""
    model = sample.cameras[camera].camera
    points = KnownPoints.of(model)
    cloud = measured(sample, camera, points)
    found = project_sample(condition.reported(replace(sample, cloud=cloud), seed), camera)
    uv = found.uv.astype(np.float64)
    known = np.flatnonzero(np.isfinite(uv).all(axis=1))
    px = np.linalg.norm(uv[known] - points.uv[known], axis=1)
    rays = model.unproject(uv[known])
    reach = np.linalg.norm(points.xyz_cam[known], axis=1, keepdims=True)
    shown = rays / np.linalg.norm(rays, axis=1, keepdims=True) * reach
    m = np.linalg.norm(shown - points.xyz_cam[known], axis=1)
    return points.distance[known], points.angle[known], px, m


def _figures(px: Array, m: Array, chosen: Array) -> Row:
    if not chosen.any():
        return {"px": None, "px_95": None, "m": None}
    return {
        "px": float(np.median(px[chosen])),
        "px_95": float(np.quantile(px[chosen], 0.95)),
        "m": float(np.median(m[chosen])),
    }
