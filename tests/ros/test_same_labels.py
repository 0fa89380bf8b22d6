# SPDX-License-Identifier: Apache-2.0
"""The node over DDS and the pipeline offline give the same labels for the same recording."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("torch")

from harness import Client, NodeProcess, field_of, value_of, wait_for
from nav_msgs.msg import Odometry
from node_process import ROOT
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, PointCloud2

from pcseg_core.data.bag import BagRecording
from pcseg_core.data.bag_reader import BagFile, parse_header
from pcseg_core.data.calibration import save_calibration
from pcseg_core.online.pipeline import ImmediateCameras, LabeledSweep, Pipeline, Sweep
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.simulation.to_bag import (
    BASE_FRAME,
    CLOUD_TOPIC,
    ODOMETRY_TOPIC,
    write_simulated_bag,
)
from pcseg_ros.config import NodeConfig
from pcseg_ros.conversions import read_labels, stamp_ns
from pcseg_ros.loading import load_segmenter, load_teacher
from pcseg_ros.parameter_file import read

PROGRAM = ROOT / "pcseg_ros" / "__main__.py"
IMAGE_TOPIC = "/camera_0/image/compressed"
SWEEPS, RATE_HZ = 5, 10
PERIOD_NS = 10**9 // RATE_HZ

# The limits of time are generous, so that the busy machine of a test leaves no input out.
COMMON: dict[str, Any] = {"device": "cpu", "diagnostics_period_s": 0.2, "intensity_scale": 1.0}
MOTION = {"source": "odometry", "timeout_s": 5.0}
CAMERAS = {"topics": [IMAGE_TOPIC], "tolerance_s": 0.06, "deadline_s": 5.0}
TEACHER = {
    "weights": "bundled:simulation_teacher",
    "label_space": "simulation",
    "fuse": True,
    "deadline_s": 5.0,
}
CASES: dict[str, dict[str, Any]] = {
    "network": {},
    "deskew": {"motion": {**MOTION, "deskew": True}},
    "smoothing": {"motion": MOTION, "temporal": {"enabled": True}},
    "cameras": {"motion": MOTION, "cameras": CAMERAS, "teacher": TEACHER},
    "all": {
        "motion": {**MOTION, "deskew": True},
        "temporal": {"enabled": True},
        "cameras": CAMERAS,
        "teacher": TEACHER,
    },
}


@dataclass
class Recorded:
    """A bag, its calibration file, and its serialized messages by topic, with their stamps."""

    bag: Path
    calibration: Path
    messages: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A moving vehicle with one camera; points have times."""
    folder = tmp_path_factory.mktemp("drive")
    drive = SimulatedDrive(
        100_003,
        sweeps=SWEEPS,
        beams=32,
        columns=256,
        cameras=1,
        width=320,
        height=192,
        rate_hz=RATE_HZ,
        speed_mps=12.0,
    )
    made = Recorded(write_simulated_bag(drive, folder / "bag").path, folder / "rig.yaml")
    recording = BagRecording(made.bag, poses="odometry")
    save_calibration(made.calibration, recording[0].cameras)
    place = recording.tree.static(BASE_FRAME, recording.lidar_frame)
    with made.calibration.open("a") as file:
        yaml.safe_dump({"T_body_lidar": place.tolist()}, file)
    topics = [CLOUD_TOPIC, IMAGE_TOPIC, ODOMETRY_TOPIC]
    for connection, _, raw in BagFile(made.bag).messages(topics):
        stamp = parse_header(raw)[0]
        made.messages.setdefault(connection.topic, []).append((stamp, bytes(raw)))
    return made


@pytest.fixture(scope="module")
def unaided(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """Labels of the network alone."""
    return label_offline(recorded, write(recorded, "network", tmp_path_factory.mktemp("network")))


def write(recorded: Recorded, case: str, folder: Path) -> Path:
    """The parameter file of a case."""
    values = {**COMMON, **CASES[case]}
    calibration = {"calibration": str(recorded.calibration)}
    values["cameras"] = {**values.get("cameras", {}), **calibration}
    file = folder / "params.yaml"
    file.write_text(yaml.safe_dump({"/**": {"ros__parameters": values}}))
    return file


def label_offline(recorded: Recorded, params: Path) -> dict[int, LabeledSweep]:
    """Labels of the recording by stamp, with the parameters of a node."""
    config = read(params)
    recording = BagRecording(recorded.bag, **config.recording_options())
    teacher = load_teacher(config)
    cameras = None if teacher is None else ImmediateCameras(teacher)
    pipeline = Pipeline(load_segmenter(config), config, cameras)
    labeled = [pipeline.process(Sweep.of(recording[k])) for k in range(len(recording))]
    assert not any(sweep.problems for sweep in labeled)
    return {sweep.cloud.stamp_ns: sweep for sweep in labeled}


def label_live(client: Client, recorded: Recorded, params: Path) -> dict[int, PointCloud2]:
    """Labeled clouds of a node that the recording is played to, by stamp."""
    rules = (f"odometry:={ODOMETRY_TOPIC}",)
    with NodeProcess(program=PROGRAM, params=params, remap=rules) as process:
        node = client.attach(process)
        player = Player(client, recorded, read(params))
        answers: dict[int, PointCloud2] = {}
        for stamp, raw in recorded.messages[CLOUD_TOPIC]:
            # Ahead of the sweep: the node waits for poses, but not for the first image.
            player.play(stamp + 2 * PERIOD_NS)
            if not answers:
                time.sleep(0.5)
            answer = node.exchange(raw)
            answers[stamp_ns(answer.header)] = answer
        player.close()
        status = node.report(lambda s: value_of(s, "sweeps published") == str(SWEEPS))
    counted = [v.key for v in status.values if v.key.startswith(("counted: ", "dropped: "))]
    assert not [key for key in counted if "smoothing" not in key]  # no input was left out
    return answers


class Player:
    """Publishes the odometry and the images of a recording, as far as a node subscribes them."""

    def __init__(self, client: Client, recorded: Recorded, config: NodeConfig) -> None:
        self._client = client
        self._publishers = []
        images, deskew = bool(config.cameras.topics), config.motion.deskew
        for topic, kind, wanted in (
            (ODOMETRY_TOPIC, Odometry, images or deskew or config.temporal.enabled),
            (IMAGE_TOPIC, CompressedImage, images),
        ):
            if wanted:
                publisher = client.node.create_publisher(kind, topic, QoSProfile(depth=100))
                self._publishers.append((publisher, list(recorded.messages[topic])))
                wait_for(publisher.get_subscription_count, f"a subscriber of {topic}")

    def play(self, until_ns: int) -> None:
        """Publish the messages up to a stamp."""
        for publisher, waiting in self._publishers:
            while waiting and waiting[0][0] <= until_ns:
                publisher.publish(waiting.pop(0)[1])

    def close(self) -> None:
        for publisher, _ in self._publishers:
            self._client.node.destroy_publisher(publisher)


@pytest.mark.parametrize("case", CASES)
def test_live_and_offline_labels_are_equal(
    client: Client, recorded: Recorded, unaided: dict[int, LabeledSweep], tmp_path: Path, case: str
) -> None:
    params = write(recorded, case, tmp_path)
    live, offline = label_live(client, recorded, params), label_offline(recorded, params)
    assert live.keys() == offline.keys() and len(live) == SWEEPS
    for stamp, answer in live.items():
        np.testing.assert_array_equal(read_labels(answer), offline[stamp].labels)
        # The teacher's convolutions may differ in the last bits between two processes.
        confidence = field_of(answer, "confidence")
        np.testing.assert_allclose(confidence, offline[stamp].confidence, rtol=0, atol=1e-5)
    if case != "network":
        assert any((offline[s].labels != unaided[s].labels).any() for s in offline)
