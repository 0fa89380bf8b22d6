# SPDX-License-Identifier: Apache-2.0
"""The camera teacher at run time: it delays no sweep, and its labels are those of its pixels."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import PointCloud
from pcseg_core.data.sample import CameraFrame
from pcseg_core.distill.evidence import PixelEvidence
from pcseg_core.labels import IGNORE, LabelSpace
from pcseg_core.online.camera_fusion import label_by_cameras
from pcseg_ros.camera_teacher import CameraTeacher, PendingEvidence
from pcseg_ros.config import TeacherParameters
from pcseg_ros.inputs import NodeSweep

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


def sweep_of(xyz: np.ndarray, frames: int = 1) -> NodeSweep:
    image = np.zeros((48, 64, 3), np.uint8)
    made = [CameraFrame(f"c{i}", 0, CAMERA, np.eye(4), image) for i in range(frames)]
    received: Any = SimpleNamespace(received_s=time.monotonic())
    cloud = PointCloud(xyz.astype(np.float32))
    return NodeSweep(cloud, lambda: made, received=received, measured=cloud.xyz)


class Harness:
    """A teacher's thread with what it reports."""

    def __init__(self, teacher: Any, deadline_s: float = 5.0) -> None:
        self.done: list[PendingEvidence] = []
        self.errors: list[Exception] = []
        self.reported = threading.Event()
        parameters = TeacherParameters(fuse=True, deadline_s=deadline_s)
        self.teacher = CameraTeacher(
            teacher, parameters, lambda: False, self.done.append, self._on_error
        )
        self.teacher.start()

    def observe(self, sweep: NodeSweep, space: LabelSpace = SPACE) -> Any:
        return self.teacher.observe(sweep, sweep.cloud, space)

    def _on_error(self, error: Exception) -> None:
        self.errors.append(error)
        self.reported.set()


POINTS = np.array([[-5.0, 0.0, 10.0], [5.0, 0.0, 10.0], [0.0, 0.0, -10.0], [np.nan] * 3])


def test_labels_are_those_of_the_pixels_and_unseen_points_have_none() -> None:
    harness = Harness(Halves())
    sweep = sweep_of(POINTS)
    evidence = harness.observe(sweep)()
    assert evidence is not None and not harness.errors
    assert harness.teacher.stop(5)
    labeled = harness.done[0].labels()
    vehicle, vegetation = SPACE.index("vehicle"), SPACE.index("vegetation")
    assert labeled.labels.tolist() == [vehicle, vegetation, IGNORE, IGNORE]
    np.testing.assert_allclose(labeled.confidence, [0.8, 0.6, 0, 0], atol=1e-6)


def test_cameras_vote() -> None:
    sure, unsure = np.zeros((2, len(SPACE), 48, 64), np.float32)
    sure[3], unsure[5] = 0.9, 0.5
    evidence = [PixelEvidence(p, CAMERA, np.eye(4)) for p in (unsure, sure)]
    labels, confidence = label_by_cameras(POINTS[:1].astype(np.float32), evidence)
    assert labels.tolist() == [3] and confidence[0] == pytest.approx(0.45)


def test_a_sweep_waits_for_its_deadline_and_no_longer() -> None:
    harness = Harness(Halves(delay_s=0.5), deadline_s=0.1)
    sweep = sweep_of(POINTS)
    evidence_of = harness.observe(sweep)
    assert evidence_of() is None
    assert time.monotonic() - sweep.received.received_s < 0.4
    assert harness.teacher.stop(5)
    assert evidence_of() is not None  # the evidence itself is not lost


def test_waiting_sweeps_are_replaced_by_the_newest() -> None:
    teacher = Halves(delay_s=0.2)
    harness = Harness(teacher)
    sweeps, evidence_of = [sweep_of(POINTS) for _ in range(5)], None
    for sweep in sweeps:
        evidence_of = harness.observe(sweep)
        time.sleep(0.01)
    assert evidence_of is not None and evidence_of() is not None
    assert harness.teacher.stop(5)
    assert [done.sweep for done in harness.done] == [sweeps[0], sweeps[-1]]
    assert teacher.looks == 2


def test_without_fusion_and_subscribers_the_teacher_is_idle() -> None:
    teacher, wanted = Halves(), [False]
    done: list[PendingEvidence] = []
    idle = CameraTeacher(teacher, TeacherParameters(), lambda: wanted[0], done.append, print)
    idle.start()
    sweep = sweep_of(POINTS)
    assert idle.observe(sweep, sweep.cloud, SPACE)() == []
    wanted[0] = True
    evidence_of = idle.observe(sweep, sweep.cloud, SPACE)
    assert evidence_of() is not None or done
    assert idle.stop(5) and teacher.looks == 1


def test_classes_that_do_not_group_are_reported_and_the_sweep_is_labeled() -> None:
    harness = Harness(Halves())
    space = LabelSpace.from_dict(
        {"name": "prompts", "classes": [{"name": "quagga", "color": [1, 2, 3]}]}
    )
    assert harness.observe(sweep_of(POINTS), space)() is None
    assert harness.reported.wait(5)
    (error,) = harness.errors
    assert "quagga" not in str(error) and "prompts" in str(error)
    assert harness.teacher.stop(5)


def _fusing(folder: Path) -> tuple[str, ...]:
    """Parameters of a node that fuses one camera."""
    from sensors import write_calibration
    from test_cameras import T_BODY_LIDAR

    file = write_calibration(folder / "rig.yaml", intrinsics=True, T_body_lidar=T_BODY_LIDAR)
    return (
        "checkpoint:=fake",
        "cameras.topics:=['front/image_raw']",
        "cameras.deadline_s:=0.3",
        f"cameras.calibration:={file}",
        "motion.source:=none",
        "teacher.fuse:=true",
        "teacher.weights:=bundled:simulation_teacher",
        "teacher.label_space:=simulation",
        "device:=cpu",
    )


def test_teacher_beside_the_student_over_dds(client: Any, tmp_path: Path) -> None:
    from harness import NodeProcess, field_of, stamped, wait_for
    from sensor_msgs.msg import PointCloud2
    from sensors import Sensors
    from test_cameras import post

    with NodeProcess(*_fusing(tmp_path), "teacher.deadline_s:=5.0") as process:
        node = client.attach(process)
        sensors = Sensors(client, process.namespace)
        teacher = node.listen(PointCloud2, "teacher_points")
        wait_for(sensors.front.get_subscription_count, "a subscriber of the images")
        seconds = itertools.count(10)

        def taught() -> bool:
            second = next(seconds)
            sensors.look(float(second))
            assert node.exchange(stamped(post(), (second, 0))).width == 100
            return not teacher.empty()

        wait_for(taught, "labels of the teacher")
        seen = teacher.get(timeout=1)
        assert [f.name for f in seen.fields] == ["x", "y", "z", "label", "confidence"]
        ahead = field_of(seen, "x") > 0
        assert (field_of(seen, "label")[~ahead] == 65535).all()  # behind the camera
        assert (field_of(seen, "label")[ahead] < 8).any()


def test_late_evidence_is_counted_and_the_sweep_published(client: Any, tmp_path: Path) -> None:
    from harness import NodeProcess, stamped, value_of, wait_for
    from sensors import Sensors
    from test_cameras import post

    slow = ("diagnostics_period_s:=0.1", "teacher.deadline_s:=0.0")
    with NodeProcess(*_fusing(tmp_path), *slow) as process:
        node = client.attach(process)
        sensors = Sensors(client, process.namespace)
        wait_for(sensors.front.get_subscription_count, "a subscriber of the images")
        for number in range(3):
            sensors.look(10.0 + number)
            assert node.exchange(stamped(post(), (10 + number, 0))).width == 100
        node.report(lambda s: int(value_of(s, "counted: camera evidence late") or 0) > 0)
