# SPDX-License-Identifier: Apache-2.0
"""Camera models against OpenCV, hand-computed pixels, and their own inverse."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pcseg_core.camera import CameraModel
from pcseg_core.distortion import create_distortion
from pcseg_core.errors import InputError
from pcseg_core.geometry import from_euler

K = np.array([[700.0, 0, 320], [0, 710, 240], [0, 0, 1]])

# Real calibrations: a webcam (plumb_bob), an Azure Kinect (rational), thin prism terms added to
# it, and a 190 degree fisheye.
WEBCAM = (-0.28, 0.09, 0.0006, -0.0003, -0.012)
KINECT = (0.52, -2.67, 0.0007, -0.0002, 1.55, 0.40, -2.49, 1.47)
PRISM = (*KINECT, 0.001, -0.0005, 0.0008, 0.0002)
FISHEYE = (0.03, -0.02, 0.006, -0.0014)
LENSES = {
    "none": ("none", ()),
    "plumb_bob 4": ("plumb_bob", WEBCAM[:4]),
    "plumb_bob 5": ("plumb_bob", WEBCAM),
    "rational_polynomial": ("rational_polynomial", KINECT),
    "thin prism": ("rational_polynomial", PRISM),
    "equidistant": ("equidistant", FISHEYE),
}


def camera(lens: str = "none", width: int = 640, height: int = 480) -> CameraModel:
    model, D = LENSES[lens]
    return CameraModel(width, height, K, D, model)


def scattered(count: int = 4000, spread: float = 0.6) -> np.ndarray:
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 80, (count, 1))
    return np.hstack([rng.normal(0, spread, (count, 2)), np.ones((count, 1))]) * depth


def test_pinhole_pixels_by_hand() -> None:
    model = CameraModel.pinhole(100, 200, 50, 60, 101, 121)
    uv, valid = model.project([[0, 0, 2], [1, -1, 4], [0, 0, -1], [0, 0, 0], [np.nan, 0, 1]])
    np.testing.assert_array_equal(valid, [1, 1, 0, 0, 0])
    np.testing.assert_allclose(uv[:2], [[50, 60], [75, 10]])
    assert np.isnan(uv[2:]).all()


def test_image_reaches_half_a_pixel_beyond_the_outer_centers() -> None:
    model = CameraModel.pinhole(100, 100, 2, 2, 4, 3)
    uv = [[-0.5, 0], [-0.51, 0], [3.49, 2.49], [3.5, 0], [0, 2.5], [np.nan, 0]]
    np.testing.assert_array_equal(model.contains(uv), [1, 0, 1, 0, 0, 0])


@pytest.mark.parametrize("lens", [name for name in LENSES if name != "equidistant"])
def test_projection_equals_opencv(lens: str) -> None:
    cv2 = pytest.importorskip("cv2", reason="compares with OpenCV, which is not installed")
    points = scattered()
    uv, valid = camera(lens).project(points)
    D = np.array(LENSES[lens][1] or (0.0,) * 5)
    expected = cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, D)[0][:, 0]
    assert valid.mean() > 0.5
    np.testing.assert_allclose(uv[valid], expected[valid], atol=1e-6)


def test_fisheye_equals_opencv() -> None:
    cv2 = pytest.importorskip("cv2", reason="compares with OpenCV, which is not installed")
    points = scattered(spread=3.0)
    uv, valid = camera("equidistant").project(points)
    zero = np.zeros(3)
    expected = cv2.fisheye.projectPoints(points[None], zero, zero, K, np.array(FISHEYE))[0][0]
    assert valid.all()
    np.testing.assert_allclose(uv, expected, atol=1e-6)


@pytest.mark.parametrize("lens", LENSES)
def test_unproject_undoes_project(lens: str) -> None:
    points = scattered(spread=0.5)
    model = camera(lens)
    uv, valid = model.project(points)
    assert valid.mean() > 0.7
    back = model.unproject(uv[valid], points[valid, 2])
    np.testing.assert_allclose(back, points[valid], atol=1e-6)
    rays = model.unproject(uv[valid])
    directions = points[valid] / np.linalg.norm(points[valid], axis=1, keepdims=True)
    np.testing.assert_allclose(rays, directions, atol=1e-9)


@pytest.mark.parametrize("lens", LENSES)
def test_every_pixel_projects_back_to_itself(lens: str) -> None:
    model = camera(lens)
    v, u = np.mgrid[0:480:7, 0:640:7]
    uv = np.stack([u.ravel(), v.ravel()], axis=1).astype(float)
    rays = model.unproject(uv)
    assert not np.isnan(rays).any()
    again, valid = model.project(3.0 * rays)
    assert valid.all()
    np.testing.assert_allclose(again, uv, atol=1e-6)


coefficient = st.floats(-1, 1)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(coefficient, min_size=12, max_size=12),
    st.sampled_from(["plumb_bob", "rational_polynomial", "equidistant"]),
)
@example(  # Newton's method from the inverse of the radial part alone finds no way
    [1 / 64, 1 / 16, 0.75, -0.75, 0.71875, -0.5546875, -0.265625, 0.71875, 0, -0.5, 0, 0],
    "rational_polynomial",
)
def test_any_coefficients_round_trip_where_valid(D: list[float], model: str) -> None:
    """Also for lenses that nobody built: what counts as valid has one inverse, to 1e-6."""
    scale = {"plumb_bob": [0.5, 0.3, 0.01, 0.01, 0.2], "equidistant": [0.1, 0.05, 0.02, 0.01]}
    rational = [0.5, 0.3, 0.01, 0.01, 0.2, 0.5, 0.3, 0.2, 0.005, 0.005, 0.005, 0.005]
    weights = scale.get(model, rational)
    lens = CameraModel(640, 480, K, tuple(np.multiply(D[: len(weights)], weights)), model)
    points = scattered(500, spread=2.0)
    uv, valid = lens.project(points)
    back = lens.unproject(uv[valid], points[valid, 2])
    np.testing.assert_allclose(back, points[valid], rtol=1e-6, atol=1e-6)


def test_wide_points_never_fold_back_into_the_image() -> None:
    """With k1 < 0 the radius shrinks beyond 1/sqrt(-3 k1): OpenCV puts such points in the image."""
    model = CameraModel(640, 480, K, (-0.3, 0, 0, 0), "plumb_bob")
    fold = 1 / np.sqrt(0.9)
    radius = np.linspace(0, 8, 4001)
    points = np.stack([radius, np.zeros_like(radius), np.ones_like(radius)], axis=1)
    uv, valid = model.project(points)
    naive = 700 * radius * (1 - 0.3 * radius**2) + 320
    assert np.any((radius > fold) & (naive > 0) & (naive < 640))  # the danger is there
    assert not valid[radius >= fold].any()
    assert valid[radius < 0.99 * fold].all()
    assert np.all(np.diff(uv[valid, 0]) > 0)


def test_fisheye_polynomial_does_not_fold_either() -> None:
    model = CameraModel(640, 480, K, (-0.2, 0, 0, 0), "equidistant")
    theta = np.deg2rad(np.linspace(0, 89, 500))
    points = np.stack([np.zeros_like(theta), np.sin(theta), np.cos(theta)], axis=1)
    uv, valid = model.project(points)
    turn = np.sqrt(1 / 0.6)  # d/dtheta (theta - 0.2 theta^3) = 0
    assert valid[theta < 0.99 * turn].all()
    assert not valid[theta > turn].any()
    assert np.all(np.diff(uv[valid, 1]) > 0)


def test_pixels_that_no_ray_reaches_are_nan() -> None:
    model = CameraModel(640, 480, K, (-0.3, 0, 0, 0), "plumb_bob")
    largest = 700 * 2 / 3 / np.sqrt(0.9)  # r (1 - 0.3 r^2) at the fold
    rays = model.unproject([[320 + 0.98 * largest, 240], [320 + 1.02 * largest, 240]])
    assert np.isfinite(rays[0]).all()
    assert np.isnan(rays[1]).all()


def test_nothing_at_all() -> None:
    uv, valid = camera("plumb_bob 5").project(np.zeros((0, 3)))
    assert uv.shape == (0, 2)
    assert valid.shape == (0,)
    assert camera("equidistant").unproject(np.zeros((0, 2))).shape == (0, 3)


# --- CameraInfo ------------------------------------------------------------------------------


def info(**changes: Any) -> SimpleNamespace:
    values: dict[str, Any] = {
        "width": 640,
        "height": 480,
        "distortion_model": "plumb_bob",
        "d": list(WEBCAM),
        "k": K.ravel(),
        "r": np.eye(3).ravel(),
        "p": np.hstack([K, np.zeros((3, 1))]).ravel(),
        "binning_x": 0,
        "binning_y": 0,
        "roi": SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False),
    }
    return SimpleNamespace(**(values | changes))


def test_camera_info_of_raw_images() -> None:
    model = CameraModel.from_camera_info(info())
    assert (model.width, model.height, model.distortion_model) == (640, 480, "plumb_bob")
    points = scattered(100)
    np.testing.assert_allclose(model.project(points)[0], camera("plumb_bob 5").project(points)[0])


def test_camera_info_with_ros1_names() -> None:
    names = {"d": "D", "k": "K", "r": "R", "p": "P"}
    old = {names.get(name, name): value for name, value in vars(info()).items()}
    model = CameraModel.from_camera_info(SimpleNamespace(**old))
    np.testing.assert_array_equal(model.K, K)


def test_rectified_images_use_p_with_its_offset_and_no_distortion() -> None:
    """The right camera of a stereo pair, 0.12 m from the left: P's fourth column is -fx * 0.12."""
    P = np.array([[500.0, 0, 300, -60], [0, 500, 200, 0], [0, 0, 1, 0]])
    model = CameraModel.from_camera_info(info(p=P.ravel()), rectified=True)
    uv, _ = model.project([[0.12, 0, 2], [0.62, 0.4, 2]])
    np.testing.assert_allclose(uv, [[300, 200], [425, 300]])
    np.testing.assert_allclose(model.unproject(uv, 2.0), [[0.12, 0, 2], [0.62, 0.4, 2]])


def test_raw_image_of_a_rotated_camera_agrees_with_the_rectified_one() -> None:
    """A rectified ray turned back by R and distorted is where OpenCV's rectification looks."""
    cv2 = pytest.importorskip("cv2", reason="compares with OpenCV, which is not installed")
    R = from_euler(0.02, -0.03, 0.01)[:3, :3]
    P = np.array([[500.0, 0, 300, -60], [0, 500, 200, 0], [0, 0, 1, 0]])
    message = info(r=R.ravel(), p=P.ravel())
    raw = CameraModel.from_camera_info(message)
    rectified = CameraModel.from_camera_info(message, rectified=True)
    map_u, map_v = cv2.initUndistortRectifyMap(
        K, np.array(WEBCAM), R, P[:, :3], (640, 480), cv2.CV_32FC1
    )
    v, u = np.mgrid[0:480:9, 0:640:9]
    points = rectified.unproject(np.stack([u.ravel(), v.ravel()], axis=1), 2.0)
    uv, valid = raw.project(points)
    assert valid.all()
    expected = np.stack([map_u[v, u].ravel(), map_v[v, u].ravel()], axis=1)
    np.testing.assert_allclose(uv, expected, atol=1e-3)  # the map is float32
    np.testing.assert_allclose(raw.unproject(uv, points[:, 2]), points, atol=1e-6)


def test_projection_matrix_with_a_depth_offset() -> None:
    """KITTI's P2 has a fourth column in all three rows."""
    P = np.array([[721.5, 0, 609.6, 44.86], [0, 721.5, 172.9, 0.2164], [0, 0, 1, 0.00275]])
    model = CameraModel.from_projection(P, 1242, 375)
    points = scattered(50, spread=0.2)
    homogeneous = np.hstack([points, np.ones((50, 1))]) @ P.T
    uv, valid = model.project(points)
    assert valid.all()
    np.testing.assert_allclose(uv, homogeneous[:, :2] / homogeneous[:, 2:], atol=1e-9)
    np.testing.assert_allclose(model.unproject(uv, points[:, 2]), points, atol=1e-9)


@pytest.mark.parametrize("rectified", [False, True])
def test_region_of_interest_and_binning(rectified: bool) -> None:
    """REP-104: the region is given in sensor pixels, binning shrinks what is inside it."""
    roi = SimpleNamespace(x_offset=100, y_offset=60, width=400, height=200, do_rectify=False)
    part = CameraModel.from_camera_info(info(roi=roi, binning_x=2, binning_y=4), rectified)
    whole = CameraModel.from_camera_info(info(), rectified)
    assert (part.width, part.height) == (200, 50)
    points = scattered(100, spread=0.3)
    expected = (whole.project(points)[0] - [100, 60]) / [2, 4]
    np.testing.assert_allclose(part.project(points)[0], expected, atol=1e-9)


def test_camera_info_without_roi_and_binning() -> None:
    message = info(r=np.zeros(9), p=np.zeros(12))
    del message.roi, message.binning_x, message.binning_y
    assert CameraModel.from_camera_info(message).width == 640


def test_scaled_image_keeps_its_outer_edges() -> None:
    model = camera("plumb_bob 5")
    half = model.scaled(320, 240)
    points = scattered(50, spread=0.2)
    expected = (model.project(points)[0] + 0.5) / 2 - 0.5
    np.testing.assert_allclose(half.project(points)[0], expected, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"distortion_model": "double_sphere"}, "unknown distortion model 'double_sphere'.*plumb"),
        ({"d": [0.1, 0.2]}, "4, 5, 8, 12 or 14 coefficients, got 2"),
        ({"distortion_model": "equidistant"}, "equidistant has 4 coefficients, got 5"),
        ({"d": [0.1] * 12 + [0.01, 0]}, "tilted sensor"),
        ({"distortion_model": ""}, "without a distortion model"),
        ({"d": [np.nan] * 5}, "must be finite"),
        ({"d": [1e300, 0, 0, 0, 0]}, r"at most 1e\+06, got \(1e\+300"),
        ({"k": np.zeros(9)}, "not calibrated"),
        ({"k": np.full(9, np.nan)}, "finite"),
        ({"r": np.full(9, np.nan)}, r"CameraInfo\.r must be finite"),
        ({"p": np.full(12, np.inf)}, r"CameraInfo\.p must be finite"),
        ({"k": np.zeros(4)}, "k has 4 entries, expected 9"),
        ({"width": 0, "height": 0}, "image size 0 x 0"),
    ],
)
def test_bad_camera_info(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        CameraModel.from_camera_info(info(**changes))


def test_rectified_images_need_p() -> None:
    with pytest.raises(InputError, match=r"CameraInfo\.p is not set"):
        CameraModel.from_camera_info(info(p=np.zeros(12)), rectified=True)


@pytest.mark.parametrize("d", [[], [0.0] * 5, [0.1, 0, 0, 0, 0] + [0.0] * 9])
def test_coefficient_lists_of_any_known_length(d: list[float]) -> None:
    model = CameraModel.from_camera_info(info(d=d))
    assert model.project([[0, 0, 1]])[1].all()


def test_model_survives_pickle() -> None:
    """Samples with cameras travel between data-loading processes."""
    import pickle

    model = camera("rational_polynomial")
    copy = pickle.loads(pickle.dumps(model))
    points = scattered(20)
    np.testing.assert_array_equal(copy.project(points)[0], model.project(points)[0])


@pytest.mark.parametrize(
    ("name", "coefficients"),
    [
        ("plumb_bob", (-0.3, 0.1, 0.001, -0.002, 0.05)),
        ("plumb_bob", (-0.3, 0.1, 0.001, -0.002)),
        ("rational_polynomial", (0.1, 0.02, 0.001, 0.002, 0.01, 0.2, 0.03, 0.01)),
        ("equidistant", (0.01, -0.02, 0.003, 0.001)),
    ],
)
@pytest.mark.parametrize("zeros", [1, 2, 3, 9])
def test_coefficients_padded_with_zeros(name: str, coefficients, zeros: int) -> None:
    x, y = np.array([0.3, -0.2]), np.array([0.1, 0.25])
    plain = create_distortion(name, coefficients).distort(x, y)
    padded = create_distortion(name, coefficients + (0.0,) * zeros).distort(x, y)
    for a, b in zip(plain, padded):
        np.testing.assert_array_equal(a, b)


def test_numbers_that_give_no_pixel() -> None:
    """A singular projection is refused; a pixel beyond all numbers is not valid."""
    P = [30.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    with pytest.raises(InputError, match="projection P"):
        CameraModel.from_camera_info(info(p=P))
    camera = CameraModel(40, 20, np.array([[1e300, 0, 0], [0, 1e300, 0], [0, 0, 1.0]]))
    uv, valid = camera.project([[1e200, 1.0, 1.0], [0.0, 0.0, 1.0]])
    assert valid.tolist() == [False, True] and np.isnan(uv[0]).all()
