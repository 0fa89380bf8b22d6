# SPDX-License-Identifier: Apache-2.0
"""Overlays take their time in a thread of their own, and only the newest sweep is drawn."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from harness import wait_for

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import PointCloud
from pcseg_core.data.sample import CameraFrame
from pcseg_ros.config import NodeConfig
from pcseg_ros.fusion import SweepFusion
from pcseg_ros.statistics import SweepStatistics


def test_sweeps_do_not_wait_for_pictures() -> None:
    drawn: list[str] = []
    release = threading.Event()
    model = CameraModel.pinhole(10.0, 10.0, 20.0, 15.0, 41, 31)
    image = np.zeros((31, 41, 3), np.uint8)

    class Camera:
        def frame(self, *arguments: Any) -> CameraFrame:
            return CameraFrame("front", 0, model, np.eye(4), image)

    class Outputs:
        def wanted_overlays(self) -> list[str]:
            return ["front"]

        def publish_overlay(self, camera: str, labeled: Any, view: Any) -> None:
            release.wait(10)
            drawn.append(labeled)

    node: Any = SimpleNamespace(context=SimpleNamespace(ok=lambda: True))
    inputs: Any = SimpleNamespace(cameras={"front": Camera()}, rig=None)
    outputs: Any = Outputs()
    fusion = SweepFusion(node, inputs, outputs, SweepStatistics(), None, NodeConfig())
    cloud = PointCloud(np.ones((1, 3), np.float32))
    sweep: Any = SimpleNamespace(images={"front": SimpleNamespace(header=None)})
    fusion.start()
    try:
        started = time.monotonic()
        for name in ("first", "passed over", "newest"):
            fusion.show(name, sweep, cloud)  # type: ignore[arg-type]
            if name == "first":
                time.sleep(0.2)  # it is being drawn when the others come
        assert time.monotonic() - started < 5  # the picture takes until it is released
        release.set()
        wait_for(lambda: drawn == ["first", "newest"], "the newest sweep to be drawn")
    finally:
        release.set()
        assert fusion.stop(5.0)
