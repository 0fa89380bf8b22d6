# SPDX-License-Identifier: Apache-2.0
"""Overlays are drawn in a thread of their own, and only those of the newest sweep."""

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
from pcseg_core.data.sample import CameraFrame
from pcseg_ros.overlays import OverlayThread


def test_sweeps_do_not_wait_for_overlays() -> None:
    drawn: list[str] = []
    release = threading.Event()
    model = CameraModel.pinhole(10.0, 10.0, 20.0, 15.0, 41, 31)
    image = np.zeros((31, 41, 3), np.uint8)

    def frames(drawing: Any, cameras: Any) -> list[CameraFrame]:
        return [CameraFrame(name, 0, model, np.eye(4), image) for name in cameras]

    class Outputs:
        def wanted_overlays(self) -> list[str]:
            return ["front"]

        def publish_overlay(self, header: Any, frame: CameraFrame, labeled: Any) -> None:
            assert frame.name == "front"
            release.wait(10)
            drawn.append(labeled)

    outputs: Any = Outputs()
    errors: list[Exception] = []
    overlays = OverlayThread(outputs, frames, errors.append)
    received = SimpleNamespace(images={"front": SimpleNamespace(header=None)})
    try:
        started = time.monotonic()
        for name in ("first", "passed over", "newest"):
            drawing: Any = SimpleNamespace(labeled=name, received=received)
            overlays.offer(drawing)
            if name == "first":
                time.sleep(0.2)  # it is being drawn when the others come
        assert time.monotonic() - started < 5  # the picture takes until it is released
        release.set()
        wait_for(lambda: drawn == ["first", "newest"], "the newest sweep to be drawn")
    finally:
        release.set()
        assert overlays.stop(5.0)
    assert not errors
