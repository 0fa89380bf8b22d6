# SPDX-License-Identifier: Apache-2.0
"""The calibration monitor over DDS: a camera that is turned while the node runs is reported."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from diagnostic_msgs.msg import DiagnosticStatus
from harness import TIMEOUT_S, Attachment, Client, NodeProcess, stamped, value_of, wait_for
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Image, PointCloud2

from pcseg_core.cloud import encode_cloud
from pcseg_ros.conversions import cloud_message, image_message
from tests.panels import CAMERA, FORWARD, Place

IMAGES = 3
KEY = "calibration of front"


def calibration(path: Path) -> Path:
    camera = {
        "T_cam_lidar": FORWARD[:3].tolist(),
        "width": CAMERA.width,
        "height": CAMERA.height,
        "K": CAMERA.K.ravel().tolist(),
    }
    path.write_text(yaml.safe_dump({"cameras": {"front": camera}}))
    return path


class Drive:
    """Sends sweeps and images of one place after another, two seconds apart."""

    def __init__(self, client: Client, node: Attachment, process: NodeProcess) -> None:
        self.node, self.process, self.second = node, process, 10
        topic = f"{node.namespace}/front/image_raw"
        self._images = client.node.create_publisher(Image, topic, 10)
        wait_for(self._images.get_subscription_count, "a subscriber of the images")

    def until(self, accept: Any, degrees: float = 0.0) -> DiagnosticStatus:
        """Drive on, the camera turned by this, until a report is accepted."""
        end_s = time.monotonic() + 3 * TIMEOUT_S
        while time.monotonic() < end_s:
            self.second += 2
            self._send(Place(self.second), degrees)
            status = self.node.report(lambda _: True)  # sweeps are no faster than reports
            if accept(status):
                return status
        raise AssertionError(f"not reported; last: {status}")

    def _send(self, place: Place, degrees: float) -> None:
        turned = Rotation.from_rotvec([0, np.radians(degrees), 0]).as_matrix()
        image = image_message(place.image(turned), Image().header)
        self._images.publish(stamped(image, (self.second, 0), "front_optical"))
        cloud = place.cloud()
        fields = {axis: cloud.xyz[:, k] for k, axis in enumerate("xyz")}
        message = cloud_message(PointCloud2().header, encode_cloud(fields | cloud.extra))
        self.node.exchange(stamped(message, (self.second, 0)))


@pytest.fixture
def drive(client: Client, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Drive]:
    with NodeProcess(
        "checkpoint:=fake",
        "diagnostics_period_s:=0.1",
        "cameras.topics:=['front/image_raw']",
        f"cameras.calibration:={calibration(tmp_path / 'rig.yaml')}",
        "cameras.deadline_s:=0.3",
        f"cameras.monitor.images:={IMAGES}",
        "cameras.monitor.max_rotation_deg:=0.8",
        "motion.source:=none",
        *getattr(request, "param", ()),
    ) as process:
        yield Drive(client, client.attach(process), process)


def test_a_camera_that_is_turned_while_the_node_runs_is_reported(drive: Drive) -> None:
    learned = drive.until(lambda s: value_of(s, KEY) == "as learned")
    assert (learned.level, learned.message) == (learned.OK, "labeling")
    assert float(value_of(learned, f"{KEY}, turned (deg)").split()[0]) < 0.5
    assert "usual" in value_of(learned, f"{KEY}, score")
    status = drive.until(lambda s: value_of(s, KEY) == "turned", degrees=3.0)
    assert status.level == status.WARN and "camera front: turned by about" in status.message
    assert "camera front: turned" in drive.process.output
    drive.until(lambda s: value_of(s, KEY) == "as learned" and s.level == s.OK)
    assert "as learned again" in drive.process.output


@pytest.mark.parametrize("drive", [["cameras.monitor.period_s:=0.0"]], indirect=True)
def test_the_monitor_can_be_turned_off(drive: Drive) -> None:
    status = drive.until(lambda s: value_of(s, "sweeps published") == "3")
    assert value_of(status, KEY) == ""
