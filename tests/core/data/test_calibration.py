# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from recordings import T_CAM_LIDAR

from pcseg_core.camera import CameraModel
from pcseg_core.data.calibration import load_calibration, save_calibration
from pcseg_core.data.sample import CameraFrame
from pcseg_core.errors import InputError
from pcseg_core.geometry import from_euler

IDENTITY = "[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]"


def test_written_and_read_again(tmp_path) -> None:
    R = from_euler(0.01, 0.02, 0.0)[:3, :3]
    K = np.array([[500.0, 0.1, 320.5], [0.0, 501.0, 240.25], [0.0, 0.0, 1.0]])
    P = np.array([[480.0, 0, 310, -12.5], [0, 480, 235, 0], [0, 0, 1, 0]])
    model = CameraModel(640, 480, K, (-0.3, 0.1, 1e-3, -1e-3, 0.01), "plumb_bob", R, P)
    frame = CameraFrame("front", 0, model, T_CAM_LIDAR, np.zeros((480, 640, 3), np.uint8))
    save_calibration(tmp_path / "rig.yaml", [frame])
    camera = load_calibration(tmp_path / "rig.yaml").cameras["front"]
    read = camera.model()
    np.testing.assert_allclose(camera.extrinsic(), T_CAM_LIDAR)
    xyz = np.array([[0.3, -0.2, 4.0], [1.0, 1.0, 9.0]])
    np.testing.assert_array_equal(read.project(xyz)[0], model.project(xyz)[0])


def test_extrinsic_alone(tmp_path) -> None:
    path = tmp_path / "rig.yaml"
    path.write_text(f"cameras:\n  front:\n    T_cam_lidar: {IDENTITY}\n")
    camera = load_calibration(path).cameras["front"]
    assert camera.model() is None
    np.testing.assert_array_equal(camera.extrinsic(), np.eye(4))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("T_cam_lidar: [[1, 0, 0], [0, 1, 0], [0, 0, 1]]", "3 or 4 rows of 4 numbers"),
        ("T_cam_lidar: [[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]", "not a rotation"),
        ("T_cam_lidar: [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]", "not a rotation"),
        (f"T_cam_lidar: {IDENTITY}\n    width: 10", "width, height and K belong together"),
        (f"T_cam_lidar: {IDENTITY}\n    T_lidar_cam: 3", "unknown key"),
        ("width: 10", "required and missing"),
        (f"T_cam_lidar: {IDENTITY}\n    width: 9\n    height: 9\n    K: [1]", "K has 1 numbers"),
        ("T_cam_lidar: [[1, 0, 0, .inf], [0, 1, 0, 0], [0, 0, 1, 0]]", "finite number"),
        (
            f"T_cam_lidar: {IDENTITY}\n    width: 9\n    height: 9\n    K: {[0] * 9}",
            "rig.yaml: .*focal length",
        ),
    ],
)
def test_wrong_files_are_explained(tmp_path, lines: str, message: str) -> None:
    path = tmp_path / "rig.yaml"
    path.write_text(f"cameras:\n  front:\n    {lines}\n")
    with pytest.raises(InputError, match=message):
        load_calibration(path)


def test_unknown_distortion_model(tmp_path) -> None:
    path = tmp_path / "rig.yaml"
    path.write_text(
        f"cameras:\n  front:\n    T_cam_lidar: {IDENTITY}\n    width: 9\n    height: 9\n"
        "    K: [1, 0, 0, 0, 1, 0, 0, 0, 1]\n    distortion_model: fancy\n"
    )
    with pytest.raises(InputError, match="fancy"):
        load_calibration(path).cameras["front"].model()


def test_time_offsets_and_the_frame_of_the_poses_are_kept(tmp_path) -> None:
    model = CameraModel.pinhole(100, 100, 31.5, 23.5, 64, 48)
    image = np.zeros((48, 64, 3), np.uint8)
    frames = [CameraFrame(name, 0, model, T_CAM_LIDAR, image) for name in ("front", "back")]
    body = from_euler(0.0, 0.1, 0.2, (1, 2, 3))
    save_calibration(tmp_path / "rig.yaml", frames, {"back": -0.02}, body)
    read = load_calibration(tmp_path / "rig.yaml")
    assert read.cameras["back"].time_offset_ns == -20_000_000
    assert read.cameras["front"].time_offset_ns == 0
    np.testing.assert_allclose(read.body(), body)
