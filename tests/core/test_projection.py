# SPDX-License-Identifier: Apache-2.0
"""Projection of sweeps: exact occlusion cases, weights, motion between stamps, real pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import PointCloud
from pcseg_core.data import open_recording
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory, from_euler, from_rotation
from pcseg_core.native import library
from pcseg_core.native.library import optional_library
from pcseg_core.projection import _Grid, project_cloud, project_sample

CAMERA = CameraModel.pinhole(200, 200, 159.5, 119.5, 320, 240)
# LiDAR axes (x forward, y left, z up) into optical axes (x right, y down, z forward).
T_CAM_LIDAR = from_rotation([[0, -1, 0], [0, 0, -1], [1, 0, 0]])


def wall(distance: float, half_width: float, step: float = 0.02) -> np.ndarray:
    """Points (N, 3) of a square facing the camera, LiDAR frame."""
    y, z = np.meshgrid(*[np.arange(-half_width, half_width + step / 2, step)] * 2)
    return np.stack([np.full(y.size, distance), y.ravel(), z.ravel()], axis=1)


def test_pixels_and_depth_by_hand() -> None:
    xyz = np.array([[2.0, 0, 0], [4, 1, -0.5], [-2, 0, 0], [4, 100, 0], [np.nan, 0, 0]])
    result = project_cloud(xyz, T_CAM_LIDAR, CAMERA)
    np.testing.assert_allclose(result.uv[:2], [[159.5, 119.5], [109.5, 144.5]], atol=1e-4)
    np.testing.assert_allclose(result.depth[:4], [2, 4, -2, 4])
    assert np.isnan(result.depth[4])
    np.testing.assert_array_equal(result.in_image, [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(result.visible, [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(result.weight > 0, [1, 1, 0, 0, 0])
    rows, columns = result.pixels()
    np.testing.assert_array_equal([rows[1], columns[1]], [144, 110])  # ties round to even


def test_wall_hides_exactly_what_is_behind_it() -> None:
    """A 2 m square at 5 m in front of a wall at 10 m: the shadow is the square at twice the size.

    Pixels within the splat of the shadow's rim may go either way.
    """
    near, far = wall(5, 1), wall(10, 4, 0.04)
    result = project_cloud(np.vstack([near, far]), T_CAM_LIDAR, CAMERA, splat_radius_px=2)
    visible_near, visible_far = np.split(result.visible, [len(near)])
    assert visible_near.all()
    reach = np.abs(far[:, 1:]).max(axis=1)
    rim = 3 / 200 * 10  # 3 pixels at 10 m
    assert not visible_far[reach < 2 - rim].any()
    in_image = result.in_image[len(near) :]
    np.testing.assert_array_equal(visible_far[(reach > 2 + rim)], in_image[(reach > 2 + rim)])


@pytest.mark.parametrize(
    ("near", "behind", "hidden"),
    [
        (5.0, 0.25, False),  # below 0.3 m
        (5.0, 0.35, True),
        (20.0, 0.55, False),  # below 3 % of 20 m
        (20.0, 0.65, True),
    ],
)
def test_tolerance_is_30_cm_or_3_percent(near: float, behind: float, hidden: bool) -> None:
    xyz = np.array([[near, 0, 0], [near + behind, 0, 0]])
    visible = project_cloud(xyz, T_CAM_LIDAR, CAMERA).visible
    np.testing.assert_array_equal(visible, [True, not hidden])


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 5])
def test_splat_radius_is_in_pixels(radius: int) -> None:
    """One near point; far points 0 to 9 pixels beside it, in all four directions."""
    shift = np.arange(10) / 200 * 10
    zero = np.zeros(10)
    sides = [(shift, zero), (-shift, zero), (zero, shift), (zero, -shift)]
    far = np.vstack([np.stack([np.full(10, 10.0), y, z], axis=1) for y, z in sides])
    near = np.array([[5.0, 0, 0]])
    camera = CameraModel.pinhole(200, 200, 160, 120, 320, 240)
    result = project_cloud(np.vstack([near, far]), T_CAM_LIDAR, camera, splat_radius_px=radius)
    hidden = ~result.visible[1:].reshape(4, 10)
    if radius <= 3:  # one cell a pixel: exact
        np.testing.assert_array_equal(hidden, np.tile(np.arange(10) <= radius, (4, 1)))
    else:  # coarser cells: exact to a cell
        assert hidden[:, : radius - 1].all()
        assert not hidden[:, radius + 2 :].any()


def test_points_too_near_hide_nothing() -> None:
    """The robot's own mast, 20 cm before the lens, is left out."""
    xyz = np.array([[0.2, 0, 0], [5, 0, 0]])
    result = project_cloud(xyz, T_CAM_LIDAR, CAMERA, min_depth=0.3)
    np.testing.assert_array_equal(result.in_image, [0, 1])
    np.testing.assert_array_equal(result.visible, [0, 1])


def test_weight_falls_toward_the_border() -> None:
    u = np.array([0, 3.5, 7.5, 20, 160, 319])
    xyz = np.stack([np.full(6, 10.0), (159.5 - u) / 200 * 10, np.zeros(6)], axis=1)
    result = project_cloud(xyz, T_CAM_LIDAR, CAMERA, border_px=8)
    np.testing.assert_allclose(result.weight, [0.5 / 8, 0.5, 1, 1, 1, 0.5 / 8], atol=1e-4)


def test_weight_is_low_at_depth_edges_on_both_sides() -> None:
    """A post at 5 m before a wall at 10 m; rows of points 2 pixels apart."""
    u = np.arange(60, 260, 2.0)
    depth = np.where((u >= 140) & (u <= 180), 5.0, 10.0)
    xyz = np.stack([depth, (159.5 - u) / 200 * depth, np.zeros(len(u))], axis=1)
    options = {"splat_radius_px": 0, "edge_px": 4, "edge_weight": 0.25}
    weight = project_cloud(xyz, T_CAM_LIDAR, CAMERA, **options).weight
    for edge in (139, 181):
        distance = np.abs(u - edge)
        assert (weight[distance <= 2] == 0.25).all()
        assert (weight[(distance > 6) & (np.abs(u - (320 - edge)) > 6)] == 1).all()
    assert (project_cloud(xyz, T_CAM_LIDAR, CAMERA, splat_radius_px=0, edge_px=0).weight == 1).all()


def test_road_neither_hides_itself_nor_is_an_edge() -> None:
    """Ground 1.5 m below the camera, out to 60 m: one surface, however fast its depth grows."""
    x, y = np.meshgrid(np.geomspace(5, 60, 25), np.linspace(-4, 4, 161))
    xyz = np.stack([x.ravel(), y.ravel(), np.full(x.size, -1.5)], axis=1)
    result = project_cloud(xyz, T_CAM_LIDAR, CAMERA, border_px=0)
    near = result.in_image & (xyz[:, 0] < 45)  # beyond, neighboring lines share a pixel
    assert result.visible[near].all()
    assert (result.weight[near] > 0.9).mean() > 0.95


@pytest.mark.parametrize("xyz", [np.zeros((0, 3)), np.full((4, 3), np.nan), -np.ones((4, 3))])
def test_clouds_without_a_point_in_the_image(xyz: np.ndarray) -> None:
    result = project_cloud(xyz.astype(np.float32), T_CAM_LIDAR, CAMERA)
    assert len(result) == len(xyz)
    assert not result.in_image.any()
    assert not result.visible.any()
    assert not result.weight.any()


def test_pixels_of_points_in_the_image_are_indices() -> None:
    """Float32 rounding at the very edge must not give an index outside."""
    camera = CameraModel(64, 48, np.array([[50.0, 0, 31.5], [0, 50, 23.5], [0, 0, 1]]))
    rng = np.random.default_rng(0)
    uv = np.vstack([rng.uniform(-0.6, 64, (20000, 2)), [[63.4999999, 0], [-0.5, 47.4999999]]])
    rays = camera.unproject(uv, rng.uniform(1, 50, len(uv)))
    result = project_cloud(rays.astype(np.float32), np.eye(4), camera, min_depth=0)
    rows, columns = result.pixels(result.in_image)
    assert rows.min() >= 0
    assert rows.max() <= 47
    assert columns.min() >= 0
    assert columns.max() <= 63


def test_sample_uses_the_motion_between_sweep_and_image() -> None:
    """Driving 10 m/s, an image 0.1 s after the sweep sees a fixed point 1 m nearer."""
    stamps = np.array([0, 10**9])
    trajectory = Trajectory(stamps, np.stack([np.eye(4), from_euler(0, 0, 0, (10, 0, 0))]))
    cloud = PointCloud(np.array([[10.0, 2, 0]]), stamp_ns=300_000_000)
    image = np.zeros((240, 320, 3), np.uint8)
    frame = CameraFrame("front", 400_000_000, CAMERA, T_CAM_LIDAR, image)
    moving = project_sample(Sample(cloud, [frame], trajectory), 0)
    np.testing.assert_allclose(moving.depth, [9], atol=1e-5)
    np.testing.assert_allclose(moving.uv, [[159.5 - 200 * 2 / 9, 119.5]], atol=1e-3)
    still = project_sample(Sample(cloud, [frame]), 0)
    np.testing.assert_allclose(still.depth, [10], atol=1e-6)


def test_sample_moves_every_point_from_its_own_time() -> None:
    """A wall at rest, swept for 0.1 s while driving 10 m/s: flat again in the image's frame."""
    trajectory = Trajectory([0, 10**9], np.stack([np.eye(4), from_euler(0, 0, 0, (10, 0, 0))]))
    time = np.linspace(-0.05, 0.05, 101)
    y = np.linspace(-3, 3, 101)
    seen = np.stack([10 - 10 * (0.5 + time), y, np.zeros(101)], axis=1)
    cloud = PointCloud(seen, time=time, stamp_ns=500_000_000)
    frame = CameraFrame(
        "front", 600_000_000, CAMERA, T_CAM_LIDAR, np.zeros((240, 320, 3), np.uint8)
    )
    moving = project_sample(Sample(cloud, [frame], trajectory), 0)
    np.testing.assert_allclose(moving.depth, 4, atol=1e-4)


def test_occlusion_agrees_with_rendered_depth() -> None:
    """A simulated street: points at the depth that the camera renders are visible, others not."""
    sample = open_recording("simulated:seed=3")[0]
    frame = sample.cameras[0]
    result = project_sample(sample, 0)
    assert frame.depth is not None
    truth = np.nan_to_num(frame.depth, nan=np.inf)
    rows, columns = result.pixels(result.in_image)
    depth = result.depth[result.in_image]
    around = [
        truth[np.clip(rows + dr, 0, len(truth) - 1), np.clip(columns + dc, 0, truth.shape[1] - 1)]
        for dr in (-1, 0, 1)
        for dc in (-1, 0, 1)
    ]
    tolerance = np.maximum(0.3, 0.03 * depth)
    seen = np.min([np.abs(a - depth) for a in around], axis=0) < tolerance
    covered = ~seen & (np.max(around, axis=0) < depth - tolerance)
    visible = result.visible[result.in_image]
    assert covered.sum() > 100
    assert visible[seen].mean() > 0.97
    assert visible[covered].mean() < 0.15


def test_real_sweep_lands_where_the_calibration_says(shared_data: Path) -> None:
    """KITTI drive 0013: the calibration puts a fifth of the sweep in the image, on its lower part.

    With a wrong order of transforms, or a sign, hardly any point falls there.
    """
    folder = shared_data / "kitti_raw" / "2011_09_26"
    sweep = folder / "2011_09_26_drive_0013_sync/velodyne_points/data/0000000000.bin"
    cameras = _read_calibration(folder / "calib_cam_to_cam.txt")
    lidar = _read_calibration(folder / "calib_velo_to_cam.txt")
    xyz = np.fromfile(sweep, np.float32).reshape(-1, 4)[:, :3]
    T = from_rotation(cameras["R_rect_00"].reshape(3, 3)) @ from_rotation(
        lidar["R"].reshape(3, 3), lidar["T"]
    )
    camera = CameraModel.from_projection(cameras["P_rect_02"].reshape(3, 4), 1242, 375)
    result = project_cloud(xyz, T, camera)
    assert 0.13 < result.in_image.mean() < 0.17
    assert 0.9 < result.visible.sum() / result.in_image.sum() < 0.99
    rows, _ = result.pixels()
    assert rows.min() > 100  # the LiDAR looks 2 degrees up at most
    assert np.median(rows) > 200


def _read_calibration(path: Path) -> dict[str, np.ndarray]:
    entries = {}
    for line in path.read_text().splitlines():
        key, _, values = line.partition(":")
        try:
            entries[key] = np.array([float(value) for value in values.split()])
        except ValueError:
            continue  # dates
    return entries


@pytest.mark.parametrize("splat_radius_px", [0, 1, 2, 7])
@pytest.mark.parametrize("edge_px", [0, 1, 4, 9])
def test_the_native_library_changes_no_bit(
    splat_radius_px: int, edge_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More points than are computed at once, many of them in the same pixels and on borders."""
    if optional_library() is None:
        pytest.skip("the native library was not built")
    rng = np.random.default_rng(0)
    xyz = rng.uniform([-5, -9, -6], [12, 9, 6], (30_000, 3)).astype(np.float32)
    xyz[::100] = np.nan
    xyz[1::100] = (7, 7 * 160 / 200, 7 * 120 / 200)  # the corner of the image
    options = {"splat_radius_px": splat_radius_px, "edge_px": edge_px}
    found = project_cloud(xyz, T_CAM_LIDAR, CAMERA, **options)
    monkeypatch.setattr(library, "load", lambda: "not built")
    plain = project_cloud(xyz, T_CAM_LIDAR, CAMERA, **options)
    assert 0 < found.visible.sum() < found.in_image.sum()
    for name in ("uv", "depth", "in_image", "visible", "weight"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name), name)


@pytest.mark.parametrize("pixel", [(-1, 3), (3, -1), (400, 3), (3, 300), (1e30, 0), (np.nan, 0)])
def test_the_native_library_draws_inside_the_image_only(pixel: tuple[float, float]) -> None:
    if optional_library() is None:
        pytest.skip("the native library was not built")
    uv = np.array([[0, 0], pixel], np.float32)
    with pytest.raises(InputError):
        _Grid((240, 320), 200.0).highest(uv, np.ones(2, np.float32), 1, 2)
