# SPDX-License-Identifier: Apache-2.0
"""Cameras of a bag: which are found, their calibration, images that do not fit."""

import numpy as np
import pytest
from recordings import CAMERA, SIZE, START, T_CAM_LIDAR, bag, cloud_message, picture, png

from pcseg_core.camera import CameraModel
from pcseg_core.data import messages
from pcseg_core.data.bag import BagRecording
from pcseg_core.data.bag_reader import CAMERA_INFO
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.data.calibration import save_calibration
from pcseg_core.errors import InputError
from pcseg_core.geometry import invert


def test_images_that_are_too_far_in_time(tmp_path) -> None:
    path = bag(tmp_path / "drive", image_delay_ns=50_000_000)
    assert len(BagRecording(path)[0].cameras) == 1
    drive = BagRecording(path, max_image_offset_s=0.04)
    assert all(not drive[i].cameras for i in range(5))
    assert drive.skipped["/front/image_raw/compressed: no image near the sweep"] == 5


def test_missing_extrinsic_is_named_and_a_file_replaces_it(tmp_path) -> None:
    path = bag(tmp_path / "drive", extrinsic=False)
    drive = BagRecording(path)
    assert drive.cameras == [] and drive[0].cameras == []
    (problem,) = drive.problems
    assert "no transform from 'lidar' to 'front_optical'" in problem and "calibration" in problem
    with pytest.raises(InputError, match="extrinsic calibration is missing"):
        BagRecording(path, camera_topics="/front/image_raw/compressed")
    whole = BagRecording(bag(tmp_path / "whole"))
    save_calibration(tmp_path / "rig.yaml", whole[0].cameras)
    calibrated = BagRecording(path, calibration=tmp_path / "rig.yaml")
    np.testing.assert_allclose(calibrated[1].T_cam_lidar(0), whole[1].T_cam_lidar(0), atol=1e-12)


def _with_info(path, change: dict[str, object], topic: str = "/front/image_raw") -> BagRecording:
    """A bag of one sweep and image whose CameraInfo is changed."""
    info = messages.camera_info(CAMERA, "front_optical", START)
    for name, value in change.items():
        setattr(info, name, value)
    with BagWriter(path) as writer:
        writer.write_tf({("lidar", "front_optical"): invert(T_CAM_LIDAR)}, START, static=True)
        writer.write_cloud("/points", cloud_message(), "lidar", START)
        writer.write_image(topic, picture(), "front_optical", START)
        writer.write_message("/front/camera_info", CAMERA_INFO, info, START)
    return BagRecording(path, poses="none")


def test_unknown_distortion_model_is_named(tmp_path) -> None:
    drive = _with_info(tmp_path / "a", {"distortion_model": "fancy", "d": np.ones(3)})
    assert drive.cameras == [] and "fancy" in drive.problems[0]


def test_uncalibrated_camera_is_named(tmp_path) -> None:
    drive = _with_info(tmp_path / "a", {"k": np.zeros(9)})
    assert drive.cameras == [] and "not calibrated" in drive.problems[0]


def test_rectified_images_use_the_projection_matrix(tmp_path) -> None:
    P = np.array([25.0, 0, 18, 0, 0, 25, 9, 0, 0, 0, 1, 0])
    change = {"p": P, "d": np.array([-0.3, 0.1, 0, 0, 0])}
    rectified = _with_info(tmp_path / "a", change, "/front/image_rect_color")
    raw = _with_info(tmp_path / "b", change, "/front/image_raw")
    point = np.array([[0.4, 0.1, 1.0]])
    np.testing.assert_allclose(rectified.cameras[0].model.project(point)[0], [[28.0, 11.5]])
    assert raw.cameras[0].model.D[0] == -0.3
    np.testing.assert_allclose(raw.cameras[0].model.K, CAMERA.K)


def test_images_of_another_size_than_their_camera(tmp_path) -> None:
    drive = _with_info(tmp_path / "a", {"width": 80})
    with pytest.raises(InputError, match="40x20, its camera model is for 80x20"):
        drive[0].cameras[0].image  # noqa: B018


def _image_topics(
    path, topics: dict[str, str], infos: dict[str, str]
) -> list[tuple[str, str, str]]:
    """Which cameras are found in a bag with these topics (topic -> frame)."""
    with BagWriter(path) as writer:
        writer.write_cloud("/points", cloud_message(), "lidar", START)
        frames = {*topics.values(), *infos.values()}
        writer.write_tf({("lidar", f): invert(T_CAM_LIDAR) for f in frames}, START, static=True)
        for topic, frame in topics.items():
            if topic.endswith("compressed"):
                writer.write_compressed_image(topic, png(picture()), "png", frame, START)
            else:
                writer.write_image(topic, picture(), frame, START)
        for topic, frame in infos.items():
            writer.write_camera_info(topic, CAMERA, frame, START)
    drive = BagRecording(path, poses="none")
    return [(c.topics.name, c.topics.image, c.topics.info) for c in drive.cameras]


def test_cameras_are_found_by_their_names(tmp_path) -> None:
    found = _image_topics(
        tmp_path / "a",
        {
            "/cam/left/image_raw": "l",
            "/cam/left/image_rect_color/compressed": "l",
            "/cam/left/image_rect": "l",
            "/cam/right/image_raw/compressed": "r",
            "/cam/depth/image_raw": "l",
            "/front_image": "f",
            "/lonely/image_raw": "x",
        },
        {
            "/cam/left/camera_info": "l",
            "/cam/right/camera_info": "r",
            "/cam/depth/camera_info": "l",
            "/front_image/camera_info": "f",
        },
    )
    assert found == [
        ("cam/left", "/cam/left/image_rect", "/cam/left/camera_info"),
        ("cam/right", "/cam/right/image_raw/compressed", "/cam/right/camera_info"),
        ("front_image", "/front_image", "/front_image/camera_info"),
    ]


def test_cameras_are_found_by_their_frames(tmp_path) -> None:
    topics = {"/a/rgb": "fa", "/b/rgb": "fb"}
    infos = {"/calib/one": "fa", "/calib/two": "fb"}
    found = _image_topics(tmp_path / "a", topics, infos)
    assert found == [("a", "/a/rgb", "/calib/one"), ("b", "/b/rgb", "/calib/two")]


def test_an_image_that_does_not_decode_is_named(tmp_path) -> None:
    with BagWriter(tmp_path / "drive") as writer:
        writer.write_tf({("lidar", "cam"): invert(T_CAM_LIDAR)}, START, static=True)
        writer.write_cloud("/points", cloud_message(), "lidar", START)
        topic = "/cam/image_raw/compressed"
        writer.write_compressed_image(topic, png(picture())[:200], "png", "cam", START)
        writer.write_camera_info("/cam/camera_info", CAMERA, "cam", START)
    sample = BagRecording(tmp_path / "drive", poses="none")[0]
    with pytest.raises(InputError, match=f"{topic} at {START} ns: the image does not decode"):
        sample.cameras[0].image  # noqa: B018


def test_camera_size_is_that_of_the_camera_info(tmp_path) -> None:
    model = BagRecording(bag(tmp_path / "drive"))[0].cameras[0].camera
    assert isinstance(model, CameraModel) and (model.width, model.height) == SIZE
