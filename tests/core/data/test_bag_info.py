# SPDX-License-Identifier: Apache-2.0
"""`pcseg bag info` and `pcseg bag from-kitti`, as functions and as commands."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from recordings import (
    CAMERA,
    PERIOD,
    START,
    T_CAM_LIDAR,
    bag,
    kitti_raw,
    lidar_pose,
    picture,
    points,
)
from typer.testing import CliRunner

from pcseg_core.camera import CameraModel
from pcseg_core.cli import app
from pcseg_core.cloud import encode_cloud
from pcseg_core.data import bag_info, open_recording
from pcseg_core.data.bag_findings import USUAL_RANGE_M
from pcseg_core.data.bag_info import BagReport, inspect_bag
from pcseg_core.data.bag_picture import depth_colors, draw_overlay
from pcseg_core.data.bag_reader import BagFile
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.data.kitti import KittiRawRecording
from pcseg_core.data.kitti_to_bag import write_kitti_bag
from pcseg_core.errors import InputError
from pcseg_core.geometry import invert
from pcseg_core.models.student import StudentConfig
from pcseg_core.projection import project_sample


def _cloud(cells: np.ndarray):
    return encode_cloud(dict(zip(("x", "y", "z"), np.asarray(cells, dtype=np.float32).T)))


def _findings(report: BagReport, level: str) -> str:
    return " | ".join(f.what for f in report.findings if f.level == level)


def test_a_good_bag(tmp_path) -> None:
    report, drive = inspect_bag(bag(tmp_path / "drive", sweeps=40))
    assert report.trainable and not _findings(report, "error")
    assert _findings(report, "warning") == "1 street, 39 m, 1 place"
    assert (report.sweeps, report.points, report.poses) == (40, 200, "tf")
    assert report.fields == ("intensity",) and report.finite == 1.0
    lidar = next(t for t in report.topics if t.topic == "/points")
    assert lidar.rate_hz == pytest.approx(10.0) and lidar.missing == lidar.backward == 0
    (camera,) = report.cameras
    assert camera.paired == 1.0 and camera.offset_ms == pytest.approx(20.0)
    assert camera.offset_spread_ms == pytest.approx(0.0)
    assert camera.distance_m == pytest.approx(0.2)
    step = lidar_pose(0)[:3, 3] - lidar_pose(1)[:3, 3]
    assert report.distance_m == pytest.approx(39 * np.linalg.norm(step), rel=0.01)
    assert drive is not None and len(drive) == 40
    assert report.diversity is not None and report.diversity.turns == 0
    assert report.findings[0].do == "expect a segmenter for this street; record more places"


def test_the_clouds_are_described(tmp_path) -> None:
    """Zeros, far points, times that cannot be or have another name, and the intensity scale."""
    count = 1000
    rng = np.random.default_rng(0)
    fields = dict(zip("xyz", rng.uniform(1, 20, (3, count)).astype(np.float32)))
    for axis in "xyz":
        fields[axis][:250] = 0
        fields[axis][250:325] = 70  # 121 m away: a tenth of the returns
    fields["intensity"] = rng.uniform(1, 200, count).astype(np.float32)
    fields["firing_usec"] = np.linspace(0, 1e5, count)
    with BagWriter(tmp_path / "drive") as writer:
        for i in range(3):
            writer.write_cloud("/points", encode_cloud(fields), "lidar", START + i * PERIOD)
    report, _ = inspect_bag(tmp_path / "drive")
    assert report.zeros == 0.25 and report.finite == 0.75
    assert report.beyond_range == pytest.approx(0.1)
    assert report.intensity_scale == 1 / 255 and report.intensity_source.startswith("guessed")
    notes = _findings(report, "note")
    assert "25.0 % of the points are exactly (0, 0, 0)" in notes
    assert "10.0 % of the returns are farther than 80 m" in notes
    assert any("--time-field firing_usec" in finding.do for finding in report.findings)
    known, _ = inspect_bag(tmp_path / "drive", time_field="firing_usec", time_unit="us")
    assert "time" in known.fields and "no per-point times" not in _findings(known, "note")
    wrong, _ = inspect_bag(tmp_path / "drive", time_field="firing_usec", time_unit="s")
    assert "3 of 3 inspected sweeps: point times left out" in _findings(wrong, "warning")


def test_clouds_in_millimeters_are_a_warning(tmp_path) -> None:
    with BagWriter(tmp_path / "drive") as writer:
        writer.write_cloud("/points", _cloud(1000 * points()[:, :3]), "lidar", START)
    assert "are farther than 80 m" in _findings(inspect_bag(tmp_path / "drive")[0], "warning")
    assert StudentConfig().max_range_m == USUAL_RANGE_M


def test_the_time_field_is_an_option_of_the_commands(tmp_path) -> None:
    source = bag(tmp_path / "drive", extra_fields={"firing": np.linspace(0, 0.1, 200)})
    path = tmp_path / "report.json"
    info = CliRunner().invoke(
        app, ["bag", "info", str(source), "--time-field", "firing", "--json", str(path)]
    )
    assert info.exit_code == 0 and "intensity scale: 1 (" in info.output, info.output
    assert json.loads(path.read_text())["fields"] == ["intensity", "time"]
    unknown = CliRunner().invoke(app, ["bag", "info", str(source), "--time-field", "no"])
    assert "no time field 'no' (fields: x, y, z, intensity, firing)" in unknown.output


def test_overlap_by_hand(tmp_path) -> None:
    """Of four points, one is seen, one is hidden behind it, one is beside and one behind."""
    cells = [[5, 0, 0.2], [20, 0, 0.2], [5, 30, 0], [-5, 0, 0]]
    with BagWriter(tmp_path / "drive") as writer:
        writer.write_tf({("lidar", "cam"): invert(T_CAM_LIDAR)}, START, static=True)
        for i in range(2):
            writer.write_cloud("/points", _cloud(cells), "lidar", START + i * PERIOD)
            writer.write_image("/cam/image_raw", picture(), "cam", START + i * PERIOD)
            writer.write_camera_info("/cam/camera_info", CAMERA, "cam", START + i * PERIOD)
    report, _ = inspect_bag(tmp_path / "drive")
    assert report.visible == report.cameras[0].visible == 0.25
    assert "only 2 sweeps" in _findings(report, "warning")
    assert "no intensity" in _findings(report, "note")


def test_gaps_and_backward_stamps_are_counted(tmp_path) -> None:
    with BagWriter(tmp_path / "drive") as writer:
        for position, i in enumerate([0, 1, 2, 5, 6, 4, 7, 8]):
            stamp, recorded = START + i * PERIOD, START + position * PERIOD + 5 * 10**9
            writer.write_cloud("/points", _cloud(points()[:, :3]), "lidar", stamp, bag_ns=recorded)
    report, _ = inspect_bag(tmp_path / "drive")
    (topic,) = report.topics
    assert (topic.missing, topic.backward) == (2, 1)
    assert topic.delay_ms == pytest.approx(4800, abs=210)
    warnings = _findings(report, "warning")
    assert "2 messages are missing" in warnings and "1 stamps repeat" in warnings
    assert "differ by" in warnings
    assert not report.trainable and "no camera" in _findings(report, "error")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"camera": False}, "no camera has images"),
        ({"extrinsic": False}, "no camera has images"),
        ({"image_delay_ns": 80_000_000, "sweeps": 1}, "no image matches a sweep"),
    ],
)
def test_what_is_missing_is_an_error(tmp_path, change: dict, message: str) -> None:
    report, _ = inspect_bag(bag(tmp_path / "drive", **change))
    assert not report.trainable and message in _findings(report, "error")


def test_a_camera_that_looks_elsewhere(tmp_path) -> None:
    behind = points()
    behind[:, 0] = -np.abs(behind[:, 0]) - 1
    with BagWriter(tmp_path / "drive") as writer:
        writer.write_tf({("lidar", "cam"): invert(T_CAM_LIDAR)}, START, static=True)
        writer.write_cloud("/points", _cloud(behind[:, :3]), "lidar", START)
        writer.write_image("/cam/image_raw", picture(), "cam", START)
        writer.write_camera_info("/cam/camera_info", CAMERA, "cam", START)
    report, _ = inspect_bag(tmp_path / "drive")
    assert not report.trainable and "sees only 0.0%" in _findings(report, "error")


def test_a_bag_without_clouds_is_reported(tmp_path) -> None:
    with BagWriter(tmp_path / "drive") as writer:
        writer.write_image("/cam/image_raw", picture(), "cam", START)
    report, drive = inspect_bag(tmp_path / "drive")
    assert drive is None and not report.trainable and report.topics[0].messages == 1


def test_sweeps_that_do_not_read_are_reported(tmp_path) -> None:
    with BagWriter(tmp_path / "drive") as writer:
        nan = np.full((3, 3), np.nan)
        for i in range(3):
            writer.write_cloud("/points", _cloud(nan), "lidar", START + i * PERIOD)
    report, _ = inspect_bag(tmp_path / "drive")
    assert "none of its 3 points is finite" in _findings(report, "warning")
    assert "no sweep could be read" in _findings(report, "error")


def test_an_image_without_a_pose_costs_that_image(tmp_path, monkeypatch) -> None:
    asked = []

    def project(sample, camera_index):
        asked.append(sample)
        if len(asked) == 1:
            raise InputError("no pose at 5 ns: it lies in a gap of 1.10 s")
        return project_sample(sample, camera_index)

    monkeypatch.setattr(bag_info, "project_sample", project)
    report, _ = inspect_bag(bag(tmp_path / "drive", sweeps=4))
    (reason,) = (f.what for f in report.findings if "gap of 1.10 s" in f.what)
    assert reason.startswith("1 of") and len(asked) > 1


def test_picture_shows_points_where_they_fall(tmp_path) -> None:
    camera = CameraModel.pinhole(300.0, 300.0, 199.5, 99.5, 400, 200)
    with BagWriter(tmp_path / "drive") as writer:
        writer.write_tf({("lidar", "cam"): invert(T_CAM_LIDAR)}, START, static=True)
        writer.write_cloud("/points", _cloud([[10, 0, 0.2]]), "lidar", START)  # straight ahead
        writer.write_image("/cam/image_raw", np.zeros((200, 400, 3), np.uint8), "cam", START)
        writer.write_camera_info("/cam/camera_info", camera, "cam", START)
    sample = open_recording(tmp_path / "drive", poses="none")[0]
    draw_overlay(sample, tmp_path / "seen.png")
    image = np.asarray(Image.open(tmp_path / "seen.png"))
    # The principal point (199.5, 99.5) rounds to an even pixel, and marks are two pixels wide.
    color = depth_colors(np.array([10.0], np.float32))[0]
    np.testing.assert_array_equal(image[100:102, 200:202], np.tile(color, (2, 2, 1)))
    assert not image[102:200].any() and not image[50:100].any()
    sample.cameras.clear()
    with pytest.raises(InputError, match="nothing to draw"):
        draw_overlay(sample, tmp_path / "none.png")


@pytest.mark.parametrize(
    ("format", "raw", "compress"),
    [("mcap", False, False), ("mcap", True, True), ("sqlite3", False, True)],
)
def test_a_kitti_drive_survives_the_way_through_a_bag(tmp_path, format, raw, compress) -> None:
    drive = KittiRawRecording(kitti_raw(tmp_path))
    write_kitti_bag(drive, tmp_path / "bag", format, raw_images=raw, compress=compress)
    again = open_recording(tmp_path / "bag")
    assert again.pose_source == "tf" and len(again) == 4
    for i in range(4):
        one, two = drive[i], again[i]
        assert one.stamp_ns == two.stamp_ns
        np.testing.assert_array_equal(one.cloud.xyz, two.cloud.xyz)
        np.testing.assert_array_equal(one.cloud.intensity, two.cloud.intensity)
        np.testing.assert_allclose(one.cloud.time, two.cloud.time, atol=1e-7)
        np.testing.assert_allclose(one.T_world_lidar, two.T_world_lidar, atol=1e-9)
        np.testing.assert_allclose(one.T_cam_lidar(0), two.T_cam_lidar(0), atol=1e-9)
        np.testing.assert_array_equal(one.cameras[0].image, two.cameras[0].image)
        np.testing.assert_allclose(one.cameras[0].camera.K, two.cameras[0].camera.K)


def test_odometry_velocities_are_those_of_the_drive(tmp_path) -> None:
    drive = KittiRawRecording(kitti_raw(tmp_path))
    write_kitti_bag(drive, tmp_path / "bag")
    file = BagFile(tmp_path / "bag")
    middle = file.read(file.index(["/odometry"])[0]["/odometry"], 1)
    poses = drive.trajectory.poses @ drive.T_velo_imu()
    speed = np.linalg.norm(poses[2][:3, 3] - poses[0][:3, 3]) / 0.2
    linear, angular = middle.twist.twist.linear, middle.twist.twist.angular
    assert np.linalg.norm([linear.x, linear.y, linear.z]) == pytest.approx(speed, rel=1e-6)
    assert angular.z == pytest.approx(0.1, rel=1e-2)  # yaw grows by 0.01 in 0.1 s


def test_broken_frames_of_a_kitti_drive_are_left_out(tmp_path) -> None:
    path = kitti_raw(tmp_path)
    drive = KittiRawRecording(path)
    drive.sweep_path(1).write_bytes(np.full((5, 4), np.nan, np.float32).tobytes())
    drive.image_path("image_02", 2).write_bytes(b"no image")
    counts = write_kitti_bag(drive, tmp_path / "bag").counts
    assert counts["/velodyne_points"] == 3
    assert counts["/camera_2/image_rect_color/compressed"] == 2
    assert sum(drive.skipped.values()) == 2
    for number in range(4):
        drive.sweep_path(number).write_bytes(b"\0" * 12)
    with pytest.raises(InputError, match="no sweep could be read"):
        write_kitti_bag(drive, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def _pcseg(*arguments: object) -> subprocess.CompletedProcess:
    code = "from pcseg_core.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_commands(tmp_path) -> None:
    path = kitti_raw(tmp_path)
    made = _pcseg("bag", "from-kitti", path, "--out", tmp_path / "drive")
    assert made.returncode == 0, made.stderr
    assert "4  /velodyne_points" in made.stdout and "poses from oxts" in made.stdout
    out, png = tmp_path / "info.json", tmp_path / "info.png"
    told = _pcseg("bag", "info", tmp_path / "drive", "--json", out, "--picture", png)
    assert told.returncode == 0, told.stderr
    assert "This bag can train a segmenter.\n1 street, 3 m, 1 place: expect" in told.stdout
    assert "0 turns; standing still 0% of the time" in told.stdout
    report = BagReport.model_validate(json.loads(out.read_text()))
    assert report.trainable and report.sweeps == 4
    assert Image.open(png).size[0] == 40


def test_a_teacher_tells_the_share_of_each_class(tmp_path) -> None:
    path = tmp_path / "report.json"
    teacher = "{name: espnetv2, weights: 'bundled:simulation_teacher', label_space: simulation}"
    words = ["bag", "info", str(bag(tmp_path / "drive")), "--teacher", teacher, "--json", str(path)]
    info = CliRunner().invoke(app, words)
    assert info.exit_code == 0 and "of the points that cameras see: road " in info.output
    report = BagReport.model_validate_json(path.read_text())
    assert report.diversity is not None
    shares = report.diversity.classes
    assert set(shares) >= {"road", "vehicle", "person"}
    assert sum(shares.values()) == pytest.approx(1)
    rare = [name for name, share in shares.items() if share < 0.001]
    assert rare
    assert all(
        name in _findings(report, "warning").split("hardly any point of")[1] for name in rare
    )
    words[2] = str(bag(tmp_path / "blind", camera=False))
    blind = CliRunner().invoke(app, words)
    assert blind.exit_code == 1 and "no camera can be used" in blind.output


def test_commands_explain_errors_without_traceback(tmp_path) -> None:
    path = kitti_raw(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    for arguments, message in [
        (("from-kitti", tmp_path, "--out", tmp_path / "x"), "give the folder of one drive"),
        (("from-kitti", path, "--out", tmp_path / "taken"), "is not a bag"),
        (("from-kitti", path, "--out", tmp_path / "x", "--format", "zip"), "mcap or sqlite3"),
        (("info", tmp_path / "absent"), "no such bag"),
    ]:
        result = _pcseg("bag", *arguments)
        assert result.returncode == 2 and message in result.stderr
        assert "Traceback" not in result.stderr + result.stdout
    assert not (tmp_path / "x").exists()


def test_real_drive_as_a_bag(shared_data, tmp_path) -> None:
    folder = shared_data / "kitti_raw" / "2011_09_26" / "2011_09_26_drive_0013_sync"
    drive = KittiRawRecording(folder)
    write_kitti_bag(drive, tmp_path / "drive")
    again = open_recording(tmp_path / "drive")
    assert len(again) == 44
    for i in (0, 21, 43):
        one, two = drive[i], again[i]
        np.testing.assert_array_equal(one.cloud.xyz, two.cloud.xyz)
        np.testing.assert_allclose(one.T_world_lidar, two.T_world_lidar, atol=1e-6)
        np.testing.assert_allclose(one.T_cam_lidar(0), two.T_cam_lidar(0), atol=1e-6)
        np.testing.assert_array_equal(one.cameras[0].image, two.cameras[0].image)
    report, _ = inspect_bag(tmp_path / "drive")
    assert report.trainable and 0.1 < report.visible < 0.2 and 45 < report.distance_m < 55
