# SPDX-License-Identifier: Apache-2.0
"""Geometry and time against exact truth: projection, occlusion, deskewing, ego motion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from pcseg_core.geometry import deskew, transform
from pcseg_core.projection import project_cloud, project_sample
from pcseg_core.simulation.materials import Class
from pcseg_core.simulation.recording import SimulatedDrive

Seconds = Callable[[int], float]
TURN = 3  # sample of `turning` in the middle of its turn


def edges(depth: np.ndarray, radius: int = 3) -> np.ndarray:
    """(H, W) bool: pixels near a silhouette, where depth jumps."""
    filled = np.where(np.isfinite(depth), depth, 1e3)
    size = 2 * radius + 1
    near, far = ndimage.minimum_filter(filled, size), ndimage.maximum_filter(filled, size)
    return far - near > np.maximum(0.6, 0.12 * near)


def seen_by_rays(
    drive: SimulatedDrive, T_world_cam: np.ndarray, xyz_world: np.ndarray, time_s: float
) -> np.ndarray:
    """(N,) bool: a ray from the camera to each point is not stopped before."""
    eye = T_world_cam[:3, 3]
    toward = xyz_world - eye
    distance = np.linalg.norm(toward, axis=1)
    hits = drive.world.probe().cast(eye, toward, time_s)
    return hits.range > distance - np.maximum(0.15, 0.02 * distance)


@pytest.mark.parametrize("seed", [0, 3])
def test_occlusion_agrees_with_rays_from_the_camera(seed: int, seconds: Seconds):
    drive = SimulatedDrive(seed, sweeps=3, stride=40, columns=1024, cameras=2, range_noise_m=0.0)
    agree, visible, truly = [], [], []
    for index in (0, 2):
        frame = drive[index].cameras[index % 2]
        camera = [spec.name for spec in drive.world.cameras].index(frame.name)
        # a sweep that takes no time, at the image's stamp: only the occlusion test is judged
        xyz = drive.world.sweep(frame.stamp_ns, 0, frozen=True).cloud.xyz
        found = project_cloud(xyz, frame.T_cam_lidar, frame.camera)
        inside = np.flatnonzero(found.in_image)
        pose = drive.world.camera_pose(camera, frame.stamp_ns)
        points = transform(pose @ frame.T_cam_lidar, xyz[inside].astype(np.float64))
        truth = seen_by_rays(drive, pose, points, seconds(frame.stamp_ns))
        row, column = np.rint(found.uv[inside]).astype(int).T[::-1]
        away = ~edges(frame.depth)[row, column]
        assert away.mean() > 0.5
        agree.append((found.visible[inside] == truth)[away])
        visible.append(found.visible[inside])
        truly.append(truth)
    assert np.concatenate(agree).mean() >= 0.99
    # silhouettes included, where pixels of both surfaces mix
    seen, truth = np.concatenate(visible), np.concatenate(truly)
    hidden = ~truth
    assert hidden.mean() > 0.003  # there is something to tell apart
    assert (seen == truth).mean() > 0.96
    assert (~seen[hidden]).mean() > 0.75 and seen[truth].mean() > 0.97


def test_depth_image_agrees_with_points(drive: SimulatedDrive):
    frame = drive[1].cameras[0]
    sweep = drive.world.sweep(frame.stamp_ns, 0, frozen=True)
    found = project_cloud(sweep.cloud.xyz, frame.T_cam_lidar, frame.camera)
    row, column = found.pixels(found.visible)
    away = ~edges(frame.depth)[row, column]
    labels = sweep.label[found.visible]
    assert (frame.labels[row, column] == labels)[away].mean() > 0.97
    # surfaces seen face-on: depth hardly changes within the pixel that the point falls into
    solid = away & np.isin(labels, [Class.BUILDING, Class.CAR])
    error = np.abs(frame.depth[row, column] - found.depth[found.visible])[solid]
    assert solid.sum() > 300
    assert np.median(error) < 0.02


def test_deskewed_static_points_lie_on_their_surfaces(turning: SimulatedDrive, seconds: Seconds):
    sample = turning[TURN]
    trajectory, stamp = sample.trajectory, sample.stamp_ns
    still = sample.instances < 0
    cloud = sample.cloud.select(still)
    raw_error = _range_errors(turning, cloud.xyz, stamp, seconds)
    moved = deskew(cloud.xyz.astype(np.float64), cloud.time, trajectory, stamp)
    error = _range_errors(turning, moved, stamp, seconds)
    # points beside a silhouette may be passed by, or hidden, seen from where the sensor was
    assert np.mean(error < 0.002) > 0.93
    assert np.median(error) < 2e-4
    assert np.mean(raw_error < 0.002) < 0.2  # without deskewing it would be far off


def _range_errors(
    drive: SimulatedDrive, xyz: np.ndarray, stamp_ns: int, seconds: Seconds
) -> np.ndarray:
    """Distance of points from where a ray toward them, from the sensor at one stamp, ends [m]."""
    pose = drive.world.trajectory.at(stamp_ns)
    toward = xyz.astype(np.float64) @ pose[:3, :3].T
    hits = drive.world.probe().cast(pose[:3, 3], toward, seconds(stamp_ns))
    return np.abs(hits.range - np.linalg.norm(xyz, axis=1))


def test_a_sweep_without_duration_needs_no_deskewing(turning: SimulatedDrive, seconds: Seconds):
    stamp = turning.stamp_ns(TURN * 10)
    sweep = turning.world.sweep(stamp, 0, frozen=True)
    assert not sweep.cloud.time.any()
    assert _range_errors(turning, sweep.cloud.xyz, stamp, seconds).max() < 2e-3


def test_motion_between_sweep_and_image_is_applied(turning: SimulatedDrive):
    sample = turning[TURN]
    frame = sample.cameras[0]
    assert frame.stamp_ns - sample.stamp_ns == 30_000_000
    # all sensors see the same world: a static point in LiDAR and camera frames
    T_world_cam = turning.world.camera_pose(0, frame.stamp_ns)
    exact = np.linalg.inv(T_world_cam) @ sample.trajectory.at(sample.stamp_ns)
    assert sample.T_cam_lidar(0) == pytest.approx(exact, abs=1e-9)
    right = _label_agreement(sample, project_sample(sample, 0))
    sample.trajectory = None  # as if the rig had stood still
    wrong = _label_agreement(sample, project_sample(sample, 0))
    assert right > 0.97
    assert wrong < right - 0.01


def _label_agreement(sample, found) -> float:
    frame = sample.cameras[0]
    keep = found.visible & (sample.instances < 0)
    row, column = found.pixels(keep)
    away = ~edges(frame.depth, 1)[row, column]
    return float((frame.labels[row, column] == sample.labels[keep])[away].mean())


def test_what_moves_is_told(drive: SimulatedDrive) -> None:
    sample = drive[0]
    assert sample.moving is not None and sample.instances is not None
    movers = [mover for mover in drive.world.scene.movers if mover.speed_mps(0.0) > 0.1]
    ids = [part for mover in movers for part in mover.parts["instance"].tolist()]
    own = np.isin(sample.instances, ids)
    assert own.any() and (sample.moving[own] == 2).all()
    assert np.array_equal(sample.moving == 0, sample.labels < 0)
    assert (sample.moving[~own & (sample.labels >= 0)] == 1).all()


def test_moving_things_are_measured_where_they_are(drive: SimulatedDrive, seconds: Seconds):
    """Each point on a moving vehicle lies on it at that point's own time."""
    moving = {
        int(mover.parts["instance"][0]): mover
        for mover in drive.world.scene.movers
        if np.linalg.norm(mover.at(0.0)["velocity"][0]) > 3
    }
    sample = drive[2]
    errors = []
    for instance in np.intersect1d(sample.instances, list(moving))[:6]:
        own = np.flatnonzero(sample.instances == instance)
        for k in own[:: len(own) // 3 + 1]:
            at = sample.stamp_ns + round(sample.cloud.time[k] * 1e9)
            pose = sample.trajectory.at(at)
            toward = pose[:3, :3] @ sample.cloud.xyz[k].astype(np.float64)
            hit = drive.world.probe().cast(pose[:3, 3], toward[None], seconds(at))
            if hit.instance[0] == instance:  # else a ray beside the edge
                errors.append(abs(hit.range[0] - np.linalg.norm(sample.cloud.xyz[k])))
            else:
                errors.append(np.inf)
    assert len(errors) >= 8
    # the vehicle's own turn within half a sweep is left out, hence not millimeters
    assert np.mean(np.array(errors) < 0.02) > 0.8
