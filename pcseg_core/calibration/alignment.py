# SPDX-License-Identifier: Apache-2.0
"""How well the depth edges of sweeps lie on the edges of the images of a camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from pcseg_core.calibration.depth_edges import DepthEdges, depth_edges
from pcseg_core.calibration.image_edges import band, contrast, gray
from pcseg_core.camera import CameraModel
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory, from_rotation, invert, transform

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

SIGMAS_DEG = (1.6, 0.6, 0.22)
"""Standard deviations of the image edges from coarse to fine, as angles."""
MAX_TIME_S = 0.16  # largest change of the time
_LEVELS = range(len(SIGMAS_DEG))
_FINEST_PX = 1.2  # the finest level is not finer than this
_PIXEL_DEG = 0.06  # images with smaller pixels are reduced
_MARGIN_DEG = 6.0  # edges this far outside the image may come into it
_NEAREST_M = 2.0  # in front of the camera
_MAX_EDGES = 3000  # per view
_THINNED = (4, 2, 1)  # every so many edges count at each level
_TIME_STEPS = 17  # poses over the range of times; matrices between them are linear


@dataclass(frozen=True)
class View:
    """One image with the depth edges around it.

    Attributes:
        edges: those within the image or near it.
        horizontal: (N,) bool: the edge changes the image along its rows.
        maps: (2, h, w) float32 per level, and `steps` the pixels per cell.
        poses: (T, 4, 4) T_cam_lidar from the sweep to the image, for times from -MAX_TIME_S to
            MAX_TIME_S that are added to the stamp of the image.
        frame: the image, without its pixels in memory.
    """

    edges: DepthEdges
    horizontal: npt.NDArray[np.bool_]
    maps: tuple[npt.NDArray[np.float32], ...]
    steps: tuple[int, ...]
    poses: Float64
    frame: CameraFrame

    def of_static(self) -> View:
        """The same image with static edges alone."""
        static = self.edges.static
        return replace(self, edges=self.edges.select(static), horizontal=self.horizontal[static])


def pixels(view: View, change: Float64) -> tuple[Float64, Float64]:
    """Pixels (N, 2) of a view's edges after a change, NaN where invalid, and depths (N,) [m]."""
    alignment = Alignment([view])
    moved, _ = alignment.moved(change)
    return view.frame.camera.project(moved)[0], moved[:, 2]


def sweep_edges(sample: Sample, other: Sample | None = None) -> DepthEdges:
    """Depth edges of a sample's sweep, deskewed if it has times and poses.

    Args:
        sample: the sample.
        other: one of the same scene some tenths of a second before or after. It tells, with poses
            and times of points, which edges are static.

    Raises:
        InputError: the poses do not cover the sweep.
    """
    edges = depth_edges(sample.cloud, sample.deskewed())
    if other is None or sample.cloud.time is None:
        return edges
    try:
        here, there = sample.T_world_lidar, other.T_world_lidar
        again = depth_edges(other.cloud, other.deskewed())
    except InputError:  # the poses do not cover the other one
        return edges
    if here is None or there is None:
        return edges
    return edges.seen_again(again, invert(there) @ here)


def view_of(sample: Sample, k: int, edges: DepthEdges) -> View:
    """The view of camera `k` of a sample.

    Raises:
        InputError: the image does not decode, or the poses do not cover it.
    """
    frame = sample.cameras[k]
    return frame_view(frame, edges, camera_poses(frame, sample.trajectory, sample.stamp_ns))


def frame_view(
    frame: CameraFrame,
    edges: DepthEdges,
    poses: Float64,
    pixel_deg: float = _PIXEL_DEG,
    most_edges: int = _MAX_EDGES,
) -> View:
    """The view of an image.

    Args:
        frame: the image.
        edges: of a sweep near it.
        poses: see `View`.
        pixel_deg: smaller pixels are reduced up to this [deg].
        most_edges: more are thinned.

    Raises:
        InputError: the image does not decode.
    """
    T_cam_lidar = poses[_TIME_STEPS // 2]
    near = _around(edges, T_cam_lidar, frame.camera)
    if len(near) > most_edges:
        chosen = np.random.default_rng(0).choice(len(near), most_edges, replace=False)
        near = near.select(np.sort(chosen))
    own_deg = _pixel_deg(frame.camera)
    reduce = max(1, int(pixel_deg / own_deg))
    strength = contrast(gray(frame.image, reduce), own_deg * reduce)
    finest = _FINEST_PX * reduce
    bands = [band(strength, max(sigma / own_deg, finest) / reduce) for sigma in SIGMAS_DEG]
    return View(
        near,
        _is_horizontal(near, T_cam_lidar, frame.camera),
        tuple(maps for maps, _ in bands),
        tuple(step * reduce for _, step in bands),
        poses,
        frame,
    )


def same_camera(one: CameraFrame, other: CameraFrame) -> bool:
    """Whether two images are of the same size and intrinsics."""
    a, b = one.camera, other.camera
    return (a.width, a.height) == (b.width, b.height) and np.array_equal(a.K, b.K)


def camera_poses(frame: CameraFrame, trajectory: Trajectory | None, sweep_ns: int) -> Float64:
    """(T, 4, 4) T_cam_lidar from a sweep to an image; see `View`.

    Raises:
        InputError: the trajectory does not cover the image and the times around it.
    """
    times = np.linspace(-MAX_TIME_S, MAX_TIME_S, _TIME_STEPS)
    if trajectory is None:
        return np.repeat(frame.T_cam_lidar[None], _TIME_STEPS, axis=0)
    stamps = frame.stamp_ns + np.round(times * 1e9).astype(np.int64)
    at_image = trajectory.at_many(stamps, max_extrapolation_s=0.35)
    result: Float64 = frame.T_cam_lidar @ invert(at_image) @ trajectory.at(sweep_ns)
    return result


class Alignment:
    """The views of one camera, and their score for a changed calibration.

    A change is (7,) float64: rotation vector [deg] and translation [m] in the camera frame,
    applied after T_cam_lidar, and time [s] added to the stamps of the images.

    Attributes:
        views: the views.
        static: so are all edges.
    """

    def __init__(self, views: Sequence[View]) -> None:
        """Views of one camera model; at least one."""
        self.views = list(views)
        self._camera = views[0].frame.camera
        edges = [view.edges for view in views]
        self.static = all(view.edges.static.all() for view in views)
        self._view = np.repeat(np.arange(len(views)), [len(found) for found in edges])
        self._xyz = np.concatenate([found.xyz for found in edges])
        self._weight = np.concatenate([found.weight for found in edges])
        self._plane = np.concatenate([np.where(view.horizontal, 0, 1) for view in views])
        self._poses = np.stack([view.poses for view in views])
        self._maps = [np.stack([view.maps[level] for view in views]) for level in _LEVELS]

    def __len__(self) -> int:
        return len(self.views)

    def score(self, change: Float64, level: int) -> float:
        """Mean of the image edges, in deviations, at the depth edges; level -1 is the finest."""
        return float(self.parts(change, level)[0].sum())

    def parts(self, change: Float64, level: int) -> tuple[Float64, Float64]:
        """Shares (V,) of the views in the score, and their derivatives (V, 7) by the change."""
        chosen = slice(None, None, _THINNED[level])
        view, weight = self._view[chosen], self._weight[chosen]
        moved, along = self.moved(change, chosen)
        uv, by_xyz = _project(self._camera, moved)
        step = self.views[0].steps[level]
        strength, by_uv = _sampled(self._maps[level], view, self._plane[chosen], uv, step)
        by_xyz = np.einsum("ni,nij->nj", by_uv, by_xyz)
        turned = np.cross(moved - change[3:6], by_xyz) @ _left_jacobian(np.radians(change[:3]))
        columns = (strength, *np.radians(turned).T, *by_xyz.T, np.sum(by_xyz * along, axis=1))
        total = max(float(weight.sum()), 1e-9)
        sums = [np.bincount(view, weight * c, len(self)) / total for c in columns]
        return sums[0], np.stack(sums[1:], axis=1)

    def moved(self, change: Float64, chosen: slice = slice(None)) -> tuple[Float64, Float64]:
        """Edges (N, 3) in the camera frame, and their velocity by the change of the time."""
        at = (np.clip(change[6] / MAX_TIME_S, -1, 1) + 1) / 2 * (_TIME_STEPS - 1)
        low = min(int(at), _TIME_STEPS - 2)
        before, after = (pose_error(change) @ self._poses[:, k] for k in (low, low + 1))
        rate = (after - before) * (_TIME_STEPS - 1) / (2 * MAX_TIME_S)
        pose = before + (after - before) * (at - low)
        view, xyz = self._view[chosen], self._xyz[chosen]
        moved, along = (
            np.einsum("nij,nj->ni", T[view, :3, :3], xyz) + T[view, :3, 3] for T in (pose, rate)
        )
        return moved, along


def pose_error(change: Float64) -> Float64:
    """(4, 4) that a change of `Alignment` applies after T_cam_lidar."""
    rotation = Rotation.from_rotvec(np.radians(change[:3])).as_matrix()
    return from_rotation(rotation, change[3:6])


def _left_jacobian(turn: Float64) -> Float64:
    """(3, 3) turn about fixed axes by the change of a rotation vector (Sola 2018, eq. 145)."""
    angle = float(np.linalg.norm(turn))
    cross = np.array(
        [[0, -turn[2], turn[1]], [turn[2], 0, -turn[0]], [-turn[1], turn[0], 0]], np.float64
    )
    if angle < 1e-6:
        return np.eye(3) + 0.5 * cross
    first, second = (1 - np.cos(angle)) / angle**2, (angle - np.sin(angle)) / angle**3
    result: Float64 = np.eye(3) + first * cross + second * cross @ cross
    return result


def _project(camera: CameraModel, xyz: Float64) -> tuple[Float64, Float64]:
    """Pixels (N, 2) of points in the camera frame, and their derivatives (N, 2, 3)."""
    uv, _ = camera.project(xyz)
    small = 1e-4 * np.maximum(np.abs(xyz[:, 2]), 1.0)
    derivatives = np.empty((len(xyz), 2, 3))
    for axis in range(3):
        beside = xyz.copy()
        beside[:, axis] += small
        derivatives[:, :, axis] = (camera.project(beside)[0] - uv) / small[:, None]
    return uv, np.nan_to_num(derivatives)


def _sampled(
    maps: Array, view: Array, plane: Array, uv: Float64, step: int
) -> tuple[Float64, Float64]:
    """Values (N,) of maps (V, 2, h, w) at pixels, and derivatives (N, 2); 0 outside."""
    height, width = maps.shape[2:]
    x, y = ((uv - (step - 1) / 2) / step).T
    index = np.flatnonzero((x >= 0) & (x < width - 1) & (y >= 0) & (y < height - 1))
    left, top = x[index].astype(np.int64), y[index].astype(np.int64)
    right, down = x[index] - left, y[index] - top
    flat = maps.reshape(-1)
    at = ((view[index] * 2 + plane[index]) * height + top) * width + left
    a, b, c, d = (flat[at + k] for k in (0, 1, width, width + 1))
    upper, lower = a + (b - a) * right, c + (d - c) * right
    values, slopes = np.zeros(len(uv)), np.zeros((len(uv), 2))
    values[index] = upper + (lower - upper) * down
    slopes[index, 0] = ((b - a) * (1 - down) + (d - c) * down) / step
    slopes[index, 1] = (lower - upper) / step
    return values, slopes


def _around(edges: DepthEdges, T_cam_lidar: Float64, camera: CameraModel) -> DepthEdges:
    """Edges that an image shows, or that lie within a margin around it."""
    xyz_cam = transform(T_cam_lidar, edges.xyz)
    uv, valid = camera.project(xyz_cam)
    margin = _MARGIN_DEG / _pixel_deg(camera)
    u, v = np.nan_to_num(uv, nan=-1e9).T
    near = valid & (xyz_cam[:, 2] > _NEAREST_M) & (u > -margin) & (u < camera.width + margin)
    return edges.select(near & (v > -margin) & (v < camera.height + margin))


def _is_horizontal(
    edges: DepthEdges, T_cam_lidar: Float64, camera: CameraModel
) -> npt.NDArray[np.bool_]:
    """(N,) bool: a step across the edge moves the pixel along the rows of the image."""
    far = np.linalg.norm(edges.xyz, axis=1, keepdims=True)
    beside = edges.xyz + 0.005 * far * edges.across
    here, there = (camera.project(transform(T_cam_lidar, p))[0] for p in (edges.xyz, beside))
    move = np.abs(np.nan_to_num(there - here))
    horizontal: npt.NDArray[np.bool_] = move[:, 0] > move[:, 1]
    return horizontal


def _pixel_deg(camera: CameraModel) -> float:
    """Angle of a pixel at the center of the image [deg]."""
    return float(np.degrees(1 / np.sqrt(camera.K[0, 0] * camera.K[1, 1])))
