# SPDX-License-Identifier: Apache-2.0
"""Bags as samples: poses, labels, times, and what is left out and why."""

import pickle

import numpy as np
import pytest
from recordings import (
    CAMERA,
    PERIOD,
    START,
    T_BASE_LIDAR,
    T_CAM_LIDAR,
    bag,
    cloud_message,
    lidar_pose,
    picture,
    points,
    put,
)

from pcseg_core.cloud import encode_cloud
from pcseg_core.data import bag_poses, messages, open_recording, readable
from pcseg_core.data.bag import BagRecording
from pcseg_core.data.bag_reader import CLOUD, TF
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.data.calibration import Calibration
from pcseg_core.errors import InputError
from pcseg_core.geometry import compose, from_euler, invert


@pytest.mark.parametrize(
    ("format", "raw"), [("mcap", False), ("mcap", True), ("sqlite3", False), ("sqlite3", True)]
)
def test_samples(tmp_path, format: str, raw: bool) -> None:
    drive = BagRecording(bag(tmp_path / "drive", format=format, raw_images=raw))
    assert len(drive) == 5 and drive.pose_source == "tf" and not drive.problems
    assert drive.skipped == {} and list(drive.scenes) == ["drive"] * 5
    sample = drive[3]
    np.testing.assert_array_equal(sample.cloud.xyz, points(seed=3)[:, :3])
    np.testing.assert_array_equal(sample.cloud.intensity, points(seed=3)[:, 3])
    assert sample.stamp_ns == START + 3 * PERIOD and sample.cloud.frame_id == "lidar"
    frame = sample.cameras[0]
    assert frame.name == "front" and frame.stamp_ns - sample.stamp_ns == 20_000_000
    np.testing.assert_array_equal(frame.image, picture(3))
    np.testing.assert_allclose(frame.T_cam_lidar, T_CAM_LIDAR, atol=1e-12)
    np.testing.assert_allclose(frame.camera.K, CAMERA.K)
    np.testing.assert_allclose(sample.T_world_lidar, lidar_pose(3) @ T_BASE_LIDAR, atol=1e-12)


def test_motion_between_stamps(tmp_path) -> None:
    sample = BagRecording(bag(tmp_path / "drive"))[2]
    # The image is 20 ms later, when the vehicle is a fifth of a step on: interpolate by hand.
    here, there = lidar_pose(2) @ T_BASE_LIDAR, lidar_pose(3) @ T_BASE_LIDAR
    later = lidar_pose(2.2) @ T_BASE_LIDAR
    later[:3, 3] = 0.8 * here[:3, 3] + 0.2 * there[:3, 3]
    expected = compose(T_CAM_LIDAR, invert(later), here)
    np.testing.assert_allclose(sample.T_cam_lidar(0), expected, atol=1e-9)


def test_poses_from_odometry_equal_those_from_tf(tmp_path) -> None:
    drive = BagRecording(bag(tmp_path / "drive", tf=False, odometry=True))
    assert drive.pose_source == "odometry"
    np.testing.assert_allclose(drive[4].T_world_lidar, lidar_pose(4) @ T_BASE_LIDAR, atol=1e-12)


def test_odometry_uses_the_place_of_the_lidar_in_the_calibration(tmp_path) -> None:
    path = bag(tmp_path / "drive", tf=False, odometry=True)
    place = from_euler(0.0, 0.1, 0.2, (1.0, 2.0, 3.0))
    calibration = Calibration.model_validate({"cameras": {}, "T_body_lidar": place.tolist()})
    drive = BagRecording(path, calibration=calibration)
    assert drive.pose_source == "odometry"
    np.testing.assert_allclose(drive[4].T_world_lidar, lidar_pose(4) @ place, atol=1e-12)


def test_without_poses(tmp_path, monkeypatch) -> None:
    path = bag(tmp_path / "drive", tf=False)
    drive = BagRecording(path, poses="recorded")
    assert drive.pose_source == "none" and drive[0].trajectory is None
    assert "no moving transform" in drive.problems[0] and "no Odometry" in drive.problems[0]
    monkeypatch.setattr(bag_poses, "find_spec", lambda name: None)
    assert BagRecording(path).pose_source == "none"  # as where kiss-icp is not installed
    for poses in ("tf", "odometry"):
        with pytest.raises(InputError, match="no poses"):
            BagRecording(path, poses=poses)
    with pytest.raises(InputError, match="expected auto, recorded"):
        BagRecording(path, poses="gps")


def test_poses_by_kiss_icp_or_from_a_file(tmp_path, monkeypatch) -> None:
    pytest.importorskip("kiss_icp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = bag(tmp_path / "drive", tf=False)
    drive = BagRecording(path)
    assert drive.pose_source == "kiss-icp" and len(drive.trajectory) == 5
    assert len(list((tmp_path / "cache" / "pcseg" / "odometry").iterdir())) == 1
    lines = [f"{(START + i * PERIOD) / 1e9:.1f} {i} 0 0 0 0 0 1" for i in range(5)]
    tum = put(tmp_path / "poses.tum", "\n".join(lines))
    drive = BagRecording(path, poses=str(tum))
    assert drive.pose_source == "file"
    np.testing.assert_allclose(drive[3].T_world_lidar[:3, 3], [3, 0, 0], atol=1e-5)


def test_poses_of_another_clock(tmp_path) -> None:
    with BagWriter(tmp_path / "drive") as writer:
        writer.write_tf({("base_link", "lidar"): T_BASE_LIDAR}, START, static=True)
        for i in range(3):
            writer.write_cloud("/points", cloud_message(i), "lidar", START + i * PERIOD)
            writer.write_tf({("odom", "base_link"): lidar_pose(i)}, i * PERIOD, bag_ns=START)
    drive = BagRecording(tmp_path / "drive", poses="recorded")
    assert drive.pose_source == "none" and "are they on one clock" in drive.problems[0]
    with pytest.raises(InputError, match="one clock"):
        BagRecording(tmp_path / "drive", poses="tf")


def test_sweeps_before_the_first_pose_are_counted(tmp_path) -> None:
    with BagWriter(tmp_path / "drive") as writer:
        for i in range(6):
            writer.write_cloud("/points", cloud_message(i), "lidar", START + i * PERIOD)
            if i >= 4:
                writer.write_tf({("odom", "lidar"): lidar_pose(i)}, START + i * PERIOD)
    drive = BagRecording(tmp_path / "drive")
    assert drive.clouds.stamps_ns[0] == START + 3 * PERIOD  # 0.1 s is extrapolated, more is not
    assert drive.skipped["sweep outside the time of the poses"] == 3


@pytest.mark.parametrize("order", [(0, 1, 3, 2, 4), (0, 1, 1, 2, 4), (0, 900, 1, 2, 4)])
def test_stamps_that_go_backwards_are_counted(tmp_path, order: tuple[int, ...]) -> None:
    with BagWriter(tmp_path / "drive") as writer:
        for position, i in enumerate(order):
            stamp = START + i * PERIOD
            recorded = START + position * PERIOD
            writer.write_cloud("/points", cloud_message(i), "lidar", stamp, bag_ns=recorded)
    drive = BagRecording(tmp_path / "drive", poses="none")
    assert len(drive) == 4
    assert drive.skipped["/points: stamp that repeats or goes backwards"] == 1
    for sample in (drive[i] for i in range(4)):  # the message is the one of its stamp
        i = (sample.stamp_ns - START) // PERIOD
        np.testing.assert_array_equal(sample.cloud.xyz, points(seed=i)[:, :3])


def test_one_of_several_lidars_must_be_chosen(tmp_path) -> None:
    with BagWriter(tmp_path / "drive") as writer:
        for topic in ("/left", "/right"):
            writer.write_cloud(topic, cloud_message(), "lidar", START)
    with pytest.raises(InputError, match=r"choose one \(topics: /left, /right\)"):
        BagRecording(tmp_path / "drive")
    assert BagRecording(tmp_path / "drive", cloud_topic="/right").cloud_topic == "/right"
    with pytest.raises(InputError, match="no clouds on /middle; PointCloud2 topics: /left"):
        BagRecording(tmp_path / "drive", cloud_topic="/middle")


def test_a_bag_without_clouds(tmp_path) -> None:
    with BagWriter(tmp_path / "drive") as writer:
        writer.write_tf({("a", "b"): np.eye(4)}, START)
    with pytest.raises(InputError, match=r"no PointCloud2 topic \(topics: /tf\)"):
        BagRecording(tmp_path / "drive")


def test_bad_sweeps_are_errors_that_name_them_and_are_counted(tmp_path) -> None:
    def broken(fields: dict[str, np.ndarray]):
        return encode_cloud(fields)

    nan = np.full(4, np.nan, np.float32)
    flat = np.zeros(4, np.float32)
    with BagWriter(tmp_path / "drive") as writer:
        clouds = [
            cloud_message(),
            broken({"x": flat, "y": flat}),
            broken({"x": nan, "y": nan, "z": nan}),
            broken({"x": flat[:0], "y": flat[:0], "z": flat[:0]}),
        ]
        for i, cloud in enumerate(clouds):
            writer.write_cloud("/points", cloud, "lidar", START + i * PERIOD)
        cut = messages.cloud(cloud_message(), "lidar", START + 4 * PERIOD)
        cut.data = cut.data[:100]
        writer.write_message("/points", CLOUD, cut, START + 4 * PERIOD)
    drive = BagRecording(tmp_path / "drive", poses="none")
    expected = ["no field z", "none of its 4 points", "none of its 0 points", "data has 100 bytes"]
    for i, message in enumerate(expected, start=1):
        with pytest.raises(InputError, match=f"/points at {START + i * PERIOD} ns: .*{message}"):
            drive[i]
    assert [index for index, _ in readable(drive)] == [0]
    assert sum(drive.skipped.values()) == 4


def test_messages_that_do_not_deserialize_are_counted(tmp_path) -> None:
    source = BagRecording(bag(tmp_path / "drive"))
    with BagWriter(tmp_path / "broken") as writer:
        for number, (connection, stamp, raw) in enumerate(source.bag.messages()):
            cut = connection.topic in ("/points", "/tf") and number > 10
            writer.pass_through(connection, stamp, raw[:10] if cut else raw)
    drive = BagRecording(tmp_path / "broken")
    assert 0 < len(drive) < 5
    assert drive.skipped["/points: message that does not deserialize"] > 0
    assert drive.skipped["/tf: message that does not deserialize"] > 0


def test_labels_of_a_labeled_bag(tmp_path) -> None:
    wire = np.arange(200, dtype=np.uint32) % 8
    wire[7] = 65535
    path = bag(tmp_path / "drive", sweeps=1, extra_fields={"label": wire})
    sample = BagRecording(path, label_space="street", poses="none")[0]
    assert sample.label_space.name == "street" and sample.labels.dtype == np.int16
    assert sample.labels[7] == -1 and sample.labels[15] == 7
    with pytest.raises(InputError, match="label 7 is not in label space 'street_merged_ground'"):
        BagRecording(path, label_space="street_merged_ground", poses="none")[0]
    assert BagRecording(bag(tmp_path / "plain", sweeps=1), poses="none")[0].labels is None


def test_per_point_times_are_kept_relative_to_the_stamp(tmp_path) -> None:
    times = np.linspace(0, 0.1, 200, dtype=np.float32)
    path = bag(tmp_path / "drive", sweeps=1, extra_fields={"time": times})
    np.testing.assert_allclose(BagRecording(path, poses="none")[0].cloud.time, times, atol=1e-6)
    ended = BagRecording(path, poses="none", stamp_reference="end")[0].cloud.time
    np.testing.assert_allclose(ended, times - 0.1, atol=1e-6)


def test_one_intensity_scale_for_the_whole_bag(tmp_path) -> None:
    """A dark sweep of a 0..255 sensor must not be read as one of a 0..1 sensor."""
    with BagWriter(tmp_path / "drive") as writer:
        for i, brightest in enumerate((1.0, 240.0, 1.0)):
            cloud = cloud_message(intensity=np.full(200, brightest, np.float32))
            writer.write_cloud("/points", cloud, "lidar", START + i * PERIOD)
    drive = BagRecording(tmp_path / "drive", poses="none")
    read = [drive[i].cloud.intensity[0] for i in range(3)]
    np.testing.assert_allclose(read, np.array([1.0, 240.0, 1.0]) / 255, rtol=1e-6)


def test_workers_read_the_same(tmp_path) -> None:
    torch_data = pytest.importorskip("torch.utils.data")
    drive = BagRecording(bag(tmp_path / "drive"))

    class Sizes(torch_data.Dataset):
        def __len__(self) -> int:
            return len(drive)

        def __getitem__(self, index: int) -> tuple[float, int]:
            sample = drive[index]
            return float(sample.cloud.xyz.sum()), int(sample.cameras[0].image.sum())

    alone = [Sizes()[i] for i in range(5)]
    loader = torch_data.DataLoader(Sizes(), batch_size=None, num_workers=2)
    assert [tuple(row) for row in loader] == alone
    again = pickle.loads(pickle.dumps(drive))
    np.testing.assert_array_equal(again[2].cameras[0].image, picture(2))


def test_options_in_the_source(tmp_path) -> None:
    path = bag(tmp_path / "drive", image_delay_ns=50_000_000)
    drive = open_recording(f"bag:{path}?max_image_offset_s=0.01&poses=none")
    assert drive.pose_source == "none" and not drive[0].cameras
    assert (
        open_recording(f"{path}?poses=odometry&cloud_topic=/points", poses="none").name == "drive"
    )
    with pytest.raises(InputError, match="no option 'poes' here; options: cloud_topic"):
        open_recording(f"bag:{path}?poes=tf")


def test_quaternions_that_are_only_roughly_normalized(tmp_path) -> None:
    tf = messages.tf({("odom", "lidar"): lidar_pose(3)}, START)
    tf.transforms[0].transform.rotation.w *= 1.0 + 1e-7
    with BagWriter(tmp_path / "drive") as writer:
        writer.write_cloud("/points", cloud_message(), "lidar", START)
        writer.write_message("/tf", TF, tf, START)
        writer.write_tf({("odom", "lidar"): lidar_pose(4)}, START + PERIOD)
    pose = BagRecording(tmp_path / "drive")[0].T_world_lidar
    np.testing.assert_allclose(pose, lidar_pose(3), atol=1e-6)
