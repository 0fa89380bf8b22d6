# SPDX-License-Identifier: Apache-2.0
"""Several LiDARs over DDS: united, each by itself; one that stops, another clock, no transform."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from harness import (
    RELIABLE,
    TIMEOUT_S,
    Attachment,
    Client,
    NodeProcess,
    field_of,
    positions,
    stamped,
    value_of,
    wait_for,
)
from sensor_msgs.msg import PointCloud2
from sensors import Sensors

from pcseg_core.cloud import encode_cloud
from pcseg_core.geometry import from_euler, transform
from pcseg_core.labels import WIRE_UNLABELED
from pcseg_ros.conversions import cloud_message, stamp_ns

T_FIRST_RIGHT = from_euler(0.0, 0.2, -1.2, (0.5, -0.8, -1.0))
SPEED = 10.0
STEP_NS = 20_000_000  # between Odometry


class Rig:
    """A node with two LiDARs: `points` in the frame os_sensor, and `right/points` in `right`."""

    def __init__(self, node: Attachment, client: Client) -> None:
        self.node = node
        self._began_ns, self._steps = time.monotonic_ns(), 0
        self.sensors = Sensors(client, node.namespace)
        self._right = client.node.create_publisher(
            PointCloud2, f"{node.namespace}/right/points", RELIABLE
        )
        self.sensors.wait(cameras=False)
        wait_for(self._right.get_subscription_count, "a subscriber of right/points")

    def now(self) -> int:
        """A stamp [ns] that follows the clock by which sweeps arrive, with Odometry around it."""
        steps = (time.monotonic_ns() - self._began_ns) // STEP_NS + 5000
        self._steps = max(steps, self._steps + 1)
        stamp = self._steps * STEP_NS
        self.sensors.drive(1e-9 * stamp - 0.1, 1e-9 * stamp + 0.1, SPEED)
        return stamp

    def first(self, stamp: int, points: int = 40, seed: int = 0) -> np.ndarray:
        """Send a sweep of the first LiDAR; its points."""
        cloud, xyz = _sweep(points, seed, time=np.zeros(points, np.float32))
        self.node.send(stamped(cloud, divmod(stamp, 10**9)))
        return xyz

    def right(
        self, stamp: int, points: int = 30, seed: int = 1, frame: str = "right"
    ) -> np.ndarray:
        """Send one of the right LiDAR, without times of its points; its points."""
        cloud, xyz = _sweep(points, seed)
        self._right.publish(stamped(cloud, divmod(stamp, 10**9), frame))
        return xyz

    def exchange(self, width: int, frame: str = "right") -> None:
        """Send sweeps of both until one with as many points comes back.

        The first of a LiDAR that was silent may come after the set that it belongs to, and a busy
        node drops the older one of two sets.
        """
        for _ in range(20):
            stamp = self.now()
            self.right(stamp, frame=frame)
            self.first(stamp)
            with suppress(queue.Empty):
                if self.answer(stamp, 1.0).width == width:
                    return
        raise AssertionError(f"no sweep of {width} points")

    def answer(self, stamp: int, timeout_s: float = TIMEOUT_S) -> PointCloud2:
        """The next labeled sweep that is not of an earlier stamp."""
        while True:
            answer = self.node.received.get(timeout=timeout_s)
            if stamp_ns(answer.header) >= stamp:
                return answer


def _sweep(count: int, seed: int, **fields: np.ndarray) -> tuple[PointCloud2, np.ndarray]:
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(-20, 20, (count, 3)).astype(np.float32)
    columns: dict[str, Any] = dict(zip("xyz", xyz.T))
    columns["intensity"] = (rng.integers(0, 8, count) / 10).astype(np.float32)
    return cloud_message(PointCloud2().header, encode_cloud({**columns, **fields})), xyz


@contextmanager
def running(client: Client, folder: Path, *parameters: str) -> Iterator[Rig]:
    """The node with these parameters."""
    file = folder / "rig.yaml"
    lidars = {"right": {"T_united_lidar": T_FIRST_RIGHT.tolist()}}
    file.write_text(yaml.safe_dump({"lidars": lidars, "T_body_lidar": np.eye(4).tolist()}))
    with NodeProcess(
        "points.topics:=[points, right/points]",
        f"cameras.calibration:={file}",
        "checkpoint:=fake:painted=1",
        "intensity_scale:=1.0",
        "diagnostics_period_s:=0.1",
        "motion.source:=odometry",
        "motion.timeout_s:=5.0",
        "points.deadline_s:=0.3",
        *parameters,
    ) as process:
        yield Rig(client.attach(process), client)


@pytest.fixture(scope="module")
def rig(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running(client, tmp_path_factory.mktemp("rig")) as rig:
        yield rig


def test_united_at_one_moment_and_each_by_itself(rig: Rig) -> None:
    """The second LiDAR is 30 ms later: its points move by 0.3 m, to the moment of the first."""
    stamp = rig.now()
    right_alone = rig.node.listen(PointCloud2, "labeled_points/right", RELIABLE)
    first, right = rig.first(stamp), rig.right(stamp + 30_000_000)
    united = rig.answer(stamp)
    assert (united.header.frame_id, stamp_ns(united.header)) == ("os_sensor", stamp)
    assert [f.name for f in united.fields] == [
        *("x", "y", "z", "intensity", "source", "label", "confidence")
    ]
    assert field_of(united, "source").ravel().tolist() == [0] * 40 + [1] * 30
    placed = transform(T_FIRST_RIGHT, right.astype(np.float64)) + np.array([0.03 * SPEED, 0, 0])
    np.testing.assert_allclose(positions(united), np.concatenate([first, placed]), atol=2e-4)
    painted = np.rint(10 * field_of(united, "intensity")).ravel()
    np.testing.assert_array_equal(field_of(united, "label").ravel(), painted)
    alone = right_alone.get(timeout=TIMEOUT_S)
    rig.node.deafen()
    assert (alone.header.frame_id, stamp_ns(alone.header)) == ("right", stamp + 30_000_000)
    np.testing.assert_array_equal(positions(alone), right)
    np.testing.assert_array_equal(field_of(alone, "label").ravel(), painted[40:])


def test_one_that_stops_is_not_waited_for_and_comes_back(rig: Rig) -> None:
    rig.exchange(70)
    stamp = rig.now()
    rig.first(stamp)
    assert rig.answer(stamp).width == 40
    status = rig.node.report(lambda s: value_of(s, "LiDAR right: missed") not in ("", "0"))
    assert int(value_of(status, "counted: without LiDAR right")) > 0
    rig.exchange(70)


def test_the_first_one_may_stop_too(rig: Rig) -> None:
    stamp = rig.now()
    rig.right(stamp)
    alone = rig.answer(stamp)
    assert (alone.width, alone.header.frame_id) == (30, "os_sensor")


def test_another_clock_is_never_united(rig: Rig) -> None:
    stamp = rig.now()
    rig.first(stamp)
    rig.right(stamp + 40 * 10**9)
    assert rig.answer(stamp).width == 40
    status = rig.node.report(lambda s: "clock" in value_of(s, "reason: LiDAR right left out"))
    assert float(value_of(status, "LiDAR right: clock offset (s)")) == pytest.approx(40, abs=1.5)


def test_one_without_a_transform_is_left_out(rig: Rig) -> None:
    rig.exchange(70)
    rig.exchange(40, frame="nowhere")
    rig.node.report(lambda s: "'nowhere'" in value_of(s, "reason: LiDAR right left out"))
    rig.exchange(70)


def test_the_robot_stays_as_measured_in_united_sweeps(client: Client, tmp_path: Path) -> None:
    """It moves along with the LiDARs: its returns are not deskewed, and all others are."""
    box = "points.body:=[-9.0, -9.0, -9.0, 9.0, 9.0, 9.0]"
    clouds = ("clouds.names:=['rest']", "clouds.rest.classes:=['*', 'unlabeled']")
    with running(client, tmp_path, box, *clouds) as rig:
        rest = rig.node.listen(PointCloud2, "rest", RELIABLE)
        stamp = rig.now()
        first, right = rig.first(stamp), rig.right(stamp + 30_000_000, points=200)
        united, part = rig.answer(stamp), rest.get(timeout=TIMEOUT_S)
    measured = np.concatenate([first, transform(T_FIRST_RIGHT, right.astype(np.float64))])
    robot = (np.abs(measured) <= 9).all(1)
    assert robot[:40].any() and robot[40:].any() and robot.sum() < 100
    late = np.repeat([0.0, 0.03], [40, 200])[:, None] * (~robot[:, None])
    expected = measured + late * np.array([SPEED, 0, 0])
    np.testing.assert_allclose(positions(united), expected, atol=2e-4)
    label, painted = field_of(united, "label"), 10 * field_of(united, "intensity")
    np.testing.assert_array_equal(label == WIRE_UNLABELED, robot)
    np.testing.assert_array_equal(label[~robot], np.rint(painted[~robot]))
    assert (field_of(united, "confidence")[robot] == 0).all()
    np.testing.assert_allclose(positions(part), expected[~robot], atol=2e-4)
