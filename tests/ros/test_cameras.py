# SPDX-License-Identifier: Apache-2.0
"""Two cameras beside the LiDAR over DDS, calibrated by a file, with odometry; and their faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from harness import Attachment, Client, NodeProcess, stamped, value_of, wait_for
from harness import sweep as make_sweep
from sensor_msgs.msg import Image, PointCloud2
from sensors import FOCAL, HEIGHT, WIDTH, Sensors, write_calibration

from pcseg_core.cloud import encode_cloud
from pcseg_core.labels import LabelSpace
from pcseg_ros.cameras import camera_names, info_topic
from pcseg_ros.conversions import cloud_message

PALETTE = LabelSpace.load("street").palette
T_BODY_LIDAR = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize(
    "topics, names",
    [
        (
            ["/camera/front/image_raw", "/camera/rear/image_raw/compressed"],
            ["camera/front", "camera/rear"],
        ),
        (["/left/image_raw", "/left/image_rect"], ["left/image_raw", "left/image_rect"]),
        (["image"], ["image"]),
    ],
)
def test_names_of_cameras(topics: list[str], names: list[str]) -> None:
    assert camera_names(topics) == names


def test_camera_info_is_beside_the_image() -> None:
    assert info_topic("/front/image_raw/compressed") == "/front/camera_info"
    assert info_topic("image_raw") == "camera_info"


class Vehicle:
    """A node with its sensors, and a time that goes on from test to test."""

    def __init__(self, node: Attachment, sensors: Sensors, overlays: Any) -> None:
        self.node = node
        self.sensors = sensors
        self.front, self.rear = overlays
        self.now_s = 10.0
        self.driven_s = 9.9

    def send(self, front: bool = True, rear: bool = True, drive: bool = True) -> PointCloud2:
        """Publish odometry, images (12 ms before and after) and a sweep; its answer."""
        self.now_s += 0.1
        if drive:
            self.sensors.drive(self.driven_s + 0.02, self.now_s + 0.04)
            self.driven_s = self.now_s + 0.04
        if front:
            self.sensors.look(self.now_s - 0.012)
        if rear:
            self.sensors.look_back(self.now_s + 0.012)
        return self.sweep()

    def sweep(self) -> PointCloud2:
        stamp = divmod(round(self.now_s * 1e9), 10**9)
        return self.node.exchange(stamped(post(), stamp))

    def picture(self, camera: str) -> Image:
        """The overlay of the last sweep."""
        stamp_s = self.now_s + {"front": -0.012, "rear": 0.012}[camera]
        while True:
            picture = getattr(self, camera).get(timeout=5)
            if abs(stamp_of(picture) - stamp_s) < 1e-3:
                return picture

    def pictures(self, camera: str, since_s: float) -> int:
        """Overlays waiting that are of images after a stamp."""
        waiting = getattr(self, camera)
        stamps = [stamp_of(waiting.get()) for _ in range(waiting.qsize())]
        return sum(stamp > since_s for stamp in stamps)

    def count(self, key: str) -> int:
        """A value of the next report."""
        while not self.node.reports.empty():
            self.node.reports.get()
        return int(value_of(self.node.report(lambda _: True), key) or 0)


def stamp_of(message: Any) -> float:
    return message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec


def post() -> PointCloud2:
    """A post 10 m ahead and one 10 m behind, 0.4 m to the left of the x axis."""
    heights = np.linspace(-0.5, 0.5, 50, dtype=np.float32)
    x = np.repeat(np.float32([10.0, -10.0]), 50)
    xyz = {"x": x, "y": np.full(100, 0.4, np.float32), "z": np.tile(heights, 2)}
    return cloud_message(PointCloud2().header, encode_cloud(xyz))


@pytest.fixture(scope="module")
def vehicle(client: Client, tmp_path_factory: Any) -> Iterator[Vehicle]:
    folder: Path = tmp_path_factory.mktemp("calibration")
    file = write_calibration(folder / "rig.yaml", T_body_lidar=T_BODY_LIDAR)
    topics = "['front/image_raw', 'rear/image_raw/compressed']"
    with NodeProcess(
        "checkpoint:=fake",
        "diagnostics_period_s:=0.1",
        f"cameras.topics:={topics}",
        f"cameras.calibration:={file}",
        "cameras.deadline_s:=0.3",
        "motion.source:=odometry",
        "motion.timeout_s:=0.2",
    ) as process:
        node = client.attach(process)
        sensors = Sensors(client, process.namespace)
        overlays = [node.listen(Image, f"overlay/{name}") for name in ("front", "rear")]
        sensors.wait()
        yield Vehicle(node, sensors, overlays)


def test_sweeps_are_labeled_before_the_cameras_are_known(vehicle: Vehicle) -> None:
    before = vehicle.count("counted: camera front left out")
    assert vehicle.send().width == 100
    key = "counted: camera front left out"
    vehicle.node.report(lambda s: value_of(s, key) == str(before + 1))
    vehicle.sensors.inform()
    wait_for(lambda: vehicle.send() and not vehicle.front.empty(), "an overlay")


def test_overlay_shows_the_labels_where_the_image_saw_the_points(vehicle: Vehicle) -> None:
    answer = vehicle.send()
    picture = vehicle.picture("front")
    assert (picture.width, picture.height, picture.encoding) == (WIDTH, HEIGHT, "rgb8")
    assert picture.header.frame_id == "front_optical"
    pixels = np.frombuffer(picture.data, np.uint8).reshape(HEIGHT, WIDTH, 3)
    painted = np.argwhere((pixels != 40).any(axis=2))
    # The image is 12 ms older than the sweep: at 10 m/s the post was 0.12 m farther away.
    column = (WIDTH - 1) / 2 - FOCAL * 0.4 / 10.12
    assert abs(painted[:, 1].mean() - column) < 0.6
    blended = {tuple(np.rint(0.7 * color.astype(float) + 0.3 * 40)) for color in PALETTE}
    assert {tuple(pixels[v, u].astype(float)) for v, u in painted} <= blended
    assert stamp_of(answer) - stamp_of(picture) == pytest.approx(0.012)
    assert vehicle.picture("rear").header.frame_id == "rear_optical"


def test_camera_dies_and_comes_back(vehicle: Vehicle) -> None:
    before, died_s = vehicle.count("counted: without camera front"), vehicle.now_s
    for _ in range(3):
        assert vehicle.send(front=False).width == 100
        assert vehicle.picture("rear")
    status = vehicle.node.report(lambda s: "without camera front" in s.message)
    assert status.level == status.WARN
    assert vehicle.count("counted: without camera front") == before + 3
    assert vehicle.pictures("front", since_s=died_s) == 0
    vehicle.send()
    assert vehicle.picture("front")


@pytest.mark.parametrize("fault", ["truncated", "empty", "size"])
def test_images_that_cannot_be_used_are_counted(vehicle: Vehicle, fault: str) -> None:
    camera = "front" if fault == "size" else "rear"
    key = f"counted: camera {camera} left out"
    before = vehicle.count(key)
    vehicle.now_s += 0.02
    if fault == "size":
        vehicle.sensors.look(vehicle.now_s + 0.1, width=WIDTH + 2)
    else:
        vehicle.sensors.look_back(vehicle.now_s + 0.1, keep=300 if fault == "truncated" else 0)
    answer = vehicle.send(front=camera != "front", rear=camera != "rear")
    assert answer.width == 100
    vehicle.node.report(lambda s: value_of(s, key) == str(before + 1))
    assert vehicle.picture("rear" if camera == "front" else "front")
    assert vehicle.pictures(camera, since_s=vehicle.now_s - 0.04) == 0
    vehicle.send()
    assert vehicle.picture("front") and vehicle.picture("rear")


def test_odometry_stops_and_comes_back(vehicle: Vehicle) -> None:
    key = "counted: camera front left out"
    before, stopped_s = vehicle.count(key), vehicle.now_s
    for _ in range(10):  # an image may come later than its sweep is waited for
        assert vehicle.send(drive=False).width == 100
        if vehicle.count(key) >= before + 2:
            break
    assert vehicle.count(key) >= before + 2
    assert vehicle.pictures("front", since_s=stopped_s) == 0
    vehicle.send()
    assert vehicle.picture("front")


def test_bag_in_a_loop(vehicle: Vehicle) -> None:
    vehicle.now_s, vehicle.driven_s = 2.0, 1.9
    for _ in range(3):
        assert vehicle.send().width == 100
    assert vehicle.picture("front")
    assert vehicle.count("counted: stamps of the sweeps jumped back") == 1


def test_stamps_that_repeat_or_go_back_a_little_are_dropped_and_counted(vehicle: Vehicle) -> None:
    vehicle.send()
    now_ns = round(vehicle.now_s * 1e9)
    for stamp_ns, reason in ((now_ns, "stamp seen before"), (now_ns - 50_000_000, "out of order")):
        vehicle.node.send(stamped(make_sweep(10), divmod(stamp_ns, 10**9)))
        vehicle.node.report(lambda s, key=f"dropped: {reason}": value_of(s, key) == "1")


def test_private_and_substituted_topics_of_cameras(client: Client, tmp_path: Path) -> None:
    file = write_calibration(tmp_path / "rig.yaml", intrinsics=True)
    topics = "cameras.topics:=['~/image', '{node}/rear/image']"
    given = ["checkpoint:=fake", topics, f"cameras.calibration:={file}"]
    with NodeProcess(*given) as process:
        client.attach(process)
        name = f"{process.namespace}/segment_node".lstrip("/")
        assert f"/{name}/image, /{name}/rear/image -> " in process.output
        for camera in (name, f"{name}/rear"):
            overlay = f"{process.namespace}/overlay/{camera}"
            wait_for(lambda topic=overlay: client.node.count_publishers(topic), overlay)


@pytest.mark.parametrize(
    "parameters, words",
    [
        (["cameras.calibration:=none.yaml"], "none.yaml"),
        (["cameras.info_topics:=['a']"], "1 topics for 2"),
        (
            ["tracks.enabled:=true", "motion.source:=none"],
            "motion.source is none; take tf or odometry for tracks.enabled",
        ),
        (["cameras.topics:=['front/1st image']"], "topic 'front/1st image': Invalid topic name"),
    ],
)
def test_what_cannot_work_is_refused_at_configure(
    client: Client, tmp_path: Path, parameters: list[str], words: str
) -> None:
    file = write_calibration(tmp_path / "rig.yaml")
    topics = "cameras.topics:=['front/image_raw', 'rear/image_raw']"
    given = ["checkpoint:=fake", topics, f"cameras.calibration:={file}", *parameters]
    with NodeProcess(*given) as process:
        wait_for(lambda: words in process.output, f"'{words}' in {process.output}")
        assert "not configured" in process.output and "Traceback" not in process.output
