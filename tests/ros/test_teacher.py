# SPDX-License-Identifier: Apache-2.0
"""The camera teacher at run time: never in the way, and its labels are those of its pixels."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import PointCloud
from pcseg_core.data.sample import CameraFrame
from pcseg_core.labels import IGNORE, LabelSpace
from pcseg_core.online.camera_fusion import PixelEvidence
from pcseg_ros.teacher import Look, TeacherThread, projected_labels

SPACE = LabelSpace.load("street")
CAMERA = CameraModel.pinhole(20.0, 20.0, 31.5, 23.5, 64, 48)


class Halves:
    """Sees vehicles on the left half of every image and vegetation on the right one."""

    label_space = SPACE

    def __init__(self, delay_s: float = 0.0) -> None:
        self.looks = 0
        self._delay_s = delay_s

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        self.looks += 1
        time.sleep(self._delay_s)
        classes = np.zeros((len(SPACE), *image.shape[:2]), np.float32)
        middle = image.shape[1] // 2
        classes[SPACE.index("vehicle"), :, :middle] = 0.8
        classes[SPACE.index("vegetation"), :, middle:] = 0.6
        return classes


def look(xyz: np.ndarray, frames: int = 1) -> Look:
    image = np.zeros((48, 64, 3), np.uint8)
    made = [CameraFrame(f"c{i}", 0, CAMERA, np.eye(4), image) for i in range(frames)]
    return Look(SimpleNamespace(), PointCloud(xyz.astype(np.float32)), lambda: made, SPACE)


POINTS = np.array([[-5.0, 0.0, 10.0], [5.0, 0.0, 10.0], [0.0, 0.0, -10.0], [np.nan] * 3])


def test_labels_are_those_of_the_pixels_and_unseen_points_have_none() -> None:
    errors: list[Exception] = []
    thread = TeacherThread(Halves(), lambda _: None, errors.append)
    seen = look(POINTS)
    thread.offer(seen)
    evidence = seen.wait(time.monotonic() + 5)
    assert evidence is not None and not errors
    labels, confidence = projected_labels(seen.cloud.xyz, evidence)
    assert labels.tolist() == [SPACE.index("vehicle"), SPACE.index("vegetation"), IGNORE, IGNORE]
    np.testing.assert_allclose(confidence, [0.8, 0.6, 0, 0], atol=1e-6)
    assert thread.stop(5)


def test_cameras_vote() -> None:
    sure, unsure = np.zeros((2, len(SPACE), 48, 64), np.float32)
    sure[3], unsure[5] = 0.9, 0.5
    evidence = [PixelEvidence(p, CAMERA, np.eye(4)) for p in (unsure, sure)]
    labels, confidence = projected_labels(POINTS[:1].astype(np.float32), evidence)
    assert labels.tolist() == [3] and confidence[0] == pytest.approx(0.45)


def test_a_sweep_waits_for_its_deadline_and_no_longer() -> None:
    thread = TeacherThread(Halves(delay_s=0.5), lambda _: None, lambda _: None)
    late = look(POINTS)
    thread.offer(late)
    begin = time.monotonic()
    assert late.wait(begin + 0.1) is None
    assert time.monotonic() - begin < 0.4
    assert late.wait(begin + 5) is not None  # it comes, for whoever has the time
    assert thread.stop(5)


def test_sweeps_that_wait_are_passed_over_for_the_newest() -> None:
    teacher, done = Halves(delay_s=0.2), []
    thread = TeacherThread(teacher, done.append, lambda _: None)
    looks = [look(POINTS) for _ in range(5)]
    for one in looks:
        thread.offer(one)
        time.sleep(0.01)
    assert looks[-1].wait(time.monotonic() + 5) is not None
    assert thread.stop(5)
    assert done == [looks[0], looks[-1]] and teacher.looks == 2


def test_classes_that_do_not_group_are_reported_and_the_sweep_goes_on() -> None:
    errors: list[Exception] = []
    reported = threading.Event()

    def report(error: Exception) -> None:
        errors.append(error)
        reported.set()

    thread = TeacherThread(Halves(), lambda _: None, report)
    lost = look(POINTS)
    lost.space = LabelSpace.from_dict(
        {"name": "prompts", "classes": [{"name": "quagga", "color": [1, 2, 3]}]}
    )
    thread.offer(lost)
    assert lost.wait(time.monotonic() + 5) is None
    assert reported.wait(5) and "quagga" not in str(errors[0]) and "prompts" in str(errors[0])
    assert thread.stop(5)


def test_teacher_beside_the_student_over_dds(client: Any, tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
    from harness import NodeProcess, field_of, stamped
    from sensor_msgs.msg import PointCloud2
    from sensors import Sensors, write_calibration
    from test_cameras import T_BODY_LIDAR, post

    file = write_calibration(tmp_path / "rig.yaml", intrinsics=True, T_body_lidar=T_BODY_LIDAR)
    with NodeProcess(
        "checkpoint:=fake",
        "cameras.topics:=['front/image_raw']",
        "cameras.deadline_s:=0.3",
        f"cameras.calibration:={file}",
        "motion.source:=none",
        "teacher.fuse:=true",
        "teacher.weights:=bundled:simulation_teacher",
        "teacher.label_space:=simulation",
        "teacher.deadline_s:=5.0",
        "device:=cpu",
    ) as process:
        node = client.attach(process)
        sensors = Sensors(client, process.namespace)
        teacher = node.listen(PointCloud2, "teacher_points")
        for number in range(3):
            sensors.look(10.0 + number)
            answer = node.exchange(stamped(post(), (10 + number, 0)))
        assert answer.width == 100
        seen = teacher.get(timeout=10)
        assert [f.name for f in seen.fields] == ["x", "y", "z", "label", "confidence"]
        ahead = field_of(seen, "x") > 0
        assert (field_of(seen, "label")[~ahead] == 65535).all()  # behind the camera
        assert (field_of(seen, "label")[ahead] < 8).any()
