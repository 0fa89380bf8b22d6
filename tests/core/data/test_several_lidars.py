# SPDX-License-Identifier: Apache-2.0
"""Bags with several LiDARs: read united, inspected, labeled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from recordings import PERIOD, START, T_BASE_LIDAR, lidar_pose
from typer.testing import CliRunner

from pcseg_core.cli import app
from pcseg_core.cloud import encode_cloud
from pcseg_core.data import open_recording
from pcseg_core.data.bag import BagRecording
from pcseg_core.data.bag_info import inspect_bag
from pcseg_core.data.bag_reader import BagFile
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.data.calibration import Calibration
from pcseg_core.errors import InputError
from pcseg_core.geometry import compose, from_euler, invert, transform
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.runs import check_cameras
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.replay import segment_bag
from pcseg_core.online.segmenter import Segmenter

T_BASE_REAR = from_euler(0.0, 0.2, 3.0, (-1.0, 0.3, 0.8))
LATER = 40_000_000
BOTH = "/front,/rear"
WORLD = np.random.default_rng(5).uniform((-15, -15, -1), (25, 15, 3), (400, 3))


def pose(stamp_ns: int) -> np.ndarray:
    return lidar_pose((stamp_ns - START) / PERIOD)


def rig(
    path: Path,
    sweeps: int = 5,
    place: bool = True,
    rear_clock_ns: int = 0,
    rear: tuple[int, int] = (0, 400),
) -> Path:
    """A bag of two LiDARs that see the same points of the world, the rear one 40 ms later."""
    with BagWriter(path) as writer:
        static = {("base_link", "front"): T_BASE_LIDAR}
        if place:
            static["base_link", "rear"] = T_BASE_REAR
        writer.write_tf(static, START, static=True)
        for k in range(-5, 10 * sweeps + 5):
            stamp = START + k * PERIOD // 10
            writer.write_tf({("odom", "base_link"): pose(stamp)}, stamp)
        for k in range(sweeps):
            stamp = START + k * PERIOD
            _write(writer, "front", T_BASE_LIDAR, stamp, slice(0, 400), label=True)
            _write(writer, "rear", T_BASE_REAR, stamp + LATER, slice(*rear), rear_clock_ns)
    (path / "labels.yaml").write_text(_street())
    return path


def _write(
    writer: BagWriter,
    name: str,
    place: np.ndarray,
    stamp: int,
    seen: slice,
    clock_ns: int = 0,
    label: bool = False,
) -> None:
    xyz = transform(invert(pose(stamp) @ place), WORLD[seen]).astype(np.float32)
    fields = dict(zip("xyz", xyz.T))
    fields["intensity"] = np.linspace(0, 255, len(xyz)).astype(np.float32)
    if label:
        fields["label"] = (np.arange(len(xyz)) % 8).astype(np.uint32)
    writer.write_cloud(f"/{name}", encode_cloud(fields), name, stamp + clock_ns, bag_ns=stamp)


def _street() -> str:
    return yaml.safe_dump(LabelSpace.load("street").to_dict())


def test_united_sweeps_are_at_one_moment(tmp_path: Path) -> None:
    drive = open_recording(f"{rig(tmp_path / 'drive')}?cloud_topic={BOTH}")
    assert isinstance(drive, BagRecording)
    assert len(drive) == 5 and drive.pose_source == "tf"
    sample = drive[2]
    cloud = sample.cloud
    assert (cloud.frame_id, cloud.stamp_ns, len(cloud)) == ("front", START + 2 * PERIOD, 800)
    expected = transform(invert(pose(cloud.stamp_ns) @ T_BASE_LIDAR), WORLD)
    found = sample.deskewed()
    np.testing.assert_allclose(found[:400], expected, atol=1e-3)
    np.testing.assert_allclose(found[400:], expected, atol=1e-3)
    assert np.abs(cloud.xyz[400:] - expected).max() > 0.3  # 40 ms at 10 m/s
    assert cloud.intensity is not None and cloud.intensity.max() <= 1
    assert sample.labels is not None
    assert sample.labels[:400].tolist() == [k % 8 for k in range(400)]
    assert (sample.labels[400:] == -1).all()  # the rear one has no labels
    base = BagRecording(tmp_path / "drive", BOTH, united_frame="base_link")[2]
    expected = transform(invert(pose(cloud.stamp_ns)), WORLD)
    np.testing.assert_allclose(base.deskewed(), np.tile(expected, (2, 1)), atol=1e-3)
    assert base.cloud.frame_id == "base_link"
    used = {topic: drive.account.used[topic] for topic in ("/front", "/rear")}
    assert used == {"/front": 5, "/rear": 5} and not drive.account.unexplained()


def test_a_lidar_needs_a_place(tmp_path: Path) -> None:
    path = rig(tmp_path / "drive", place=False)
    with pytest.raises(InputError, match="/rear cannot be united in 'front': no transform"):
        BagRecording(path, cloud_topic=BOTH)
    place = compose(invert(T_BASE_LIDAR), T_BASE_REAR)
    for name in ("/rear", "rear"):  # its topic or its frame
        lidars = {name: {"T_united_lidar": place[:3].tolist()}}
        drive = BagRecording(path, BOTH, calibration=Calibration.model_validate({"lidars": lidars}))
        expected = transform(invert(pose(drive[1].stamp_ns) @ T_BASE_LIDAR), WORLD)
        np.testing.assert_allclose(drive[1].deskewed()[400:], expected, atol=1e-3)


def test_overlap_and_offsets_are_reported(tmp_path: Path) -> None:
    report, recording = inspect_bag(rig(tmp_path / "drive", rear=(100, 400)), poses="tf")
    assert recording is not None and recording.cloud_topic == "/front" and not report.trainable
    (rear,) = report.lidars
    assert (rear.topic, rear.problem, rear.paired) == ("/rear", "", 1.0)
    assert (rear.offset_ms, rear.clock_ms) == (pytest.approx(40.0), pytest.approx(0.0))
    assert rear.overlap == 1.0
    findings = {finding.what: finding for finding in report.findings}
    assert findings["/rear can be united with /front"].do == "cloud_topic=/front,/rear"
    assert any("several PointCloud2 topics" in what for what in findings)
    shown = CliRunner().invoke(app, ["bag", "info", str(tmp_path / "drive"), "--cloud-topic", BOTH])
    assert "100%" in shown.output and "40.0" in shown.output and "possible" in shown.output
    assert "several PointCloud2 topics" not in shown.output


@pytest.mark.parametrize("topics", [None, "/front", BOTH])
def test_each_message_is_scanned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, topics: str | None
) -> None:
    """`bag info` compares all LiDARs, and trainings check a bag, after one scan of its messages."""
    scanned: Counter[tuple[str, int]] = Counter()
    read = BagFile.messages

    def counted(self: BagFile, *args: Any) -> Iterator[tuple[Any, int, bytes]]:
        for connection, time, raw in read(self, *args):
            if len(args) < 3:  # with a start and an end it is one message of a sweep
                scanned[connection.topic, time] += 1
            yield connection, time, raw

    monkeypatch.setattr(BagFile, "messages", counted)
    report, _ = inspect_bag(rig(tmp_path / "drive"), poses="tf", cloud_topic=topics)
    assert len(report.lidars) == 1 and report.lidars[0].overlap == 1.0
    assert {topic for topic, _ in scanned} == {"/front", "/rear", "/tf", "/tf_static"}
    assert set(scanned.values()) == {1}
    scanned.clear()
    drive = BagRecording(tmp_path / "drive", topics or "/front", poses="tf")
    with pytest.raises(InputError, match="no camera"):
        check_cameras([drive])
    assert set(scanned.values()) == {1}


def test_a_lidar_of_another_clock_cannot_be_united(tmp_path: Path) -> None:
    path = rig(tmp_path / "drive", rear_clock_ns=37 * 10**9)
    report, _ = inspect_bag(path, cloud_topic="/front")
    (rear,) = report.lidars
    assert rear.problem == "its stamps are of another clock" and rear.overlap is None
    assert rear.clock_ms == pytest.approx(37_000)
    assert "/rear cannot be united: its stamps are of another clock" in [
        finding.what for finding in report.findings
    ]
    with pytest.raises(InputError, match=r"/rear .* \+37.000 s ahead, of another clock"):
        BagRecording(path, cloud_topic=BOTH)


def test_each_cloud_gets_its_part_of_the_labels(tmp_path: Path, tiny_run: Path) -> None:
    """What `segment` writes is what the pipeline gives for the united sweeps."""
    source = f"{rig(tmp_path / 'drive', rear=(0, 250))}?cloud_topic={BOTH}"
    pipelines = [Pipeline(Segmenter.load(tiny_run, device="cpu")) for _ in range(2)]
    result = segment_bag(pipelines[0], source, tmp_path / "out")
    assert result.sweeps == 5 and result.counts.sum() + result.unlabeled == 5 * 650
    assert {result.account.used[topic] for topic in ("/front", "/rear")} == {5}
    drive = open_recording(source)
    pipelines[1].match_intensities(drive)
    parts = [
        BagRecording(tmp_path / "out", cloud_topic=topic, poses="none")
        for topic in ("/front", "/rear")
    ]
    for k in range(5):
        expected = pipelines[1].process(Sweep.of(drive[k])).labels
        found = np.concatenate([part[k].labels for part in parts])
        np.testing.assert_array_equal(found, expected)
    whole = BagRecording(tmp_path / "drive", cloud_topic="/rear", poses="none")
    np.testing.assert_array_equal(parts[1][3].cloud.xyz, whole[3].cloud.xyz)  # as they were
