# SPDX-License-Identifier: Apache-2.0
"""A simulated bag over DDS through the real node, with a network of random weights."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
torch = pytest.importorskip("torch")

from node_process import ROOT

from pcseg_core.checkpoint import CheckpointMeta, save_checkpoint
from pcseg_core.errors import PcsegError
from pcseg_core.evaluation.live import replay_in_process
from pcseg_core.labels import LabelSpace
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.simulation.to_bag import write_simulated_bag
from pcseg_ros.replay import replay

SWEEPS = 5


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bags") / "drive"
    drive = SimulatedDrive(4, sweeps=SWEEPS, beams=16, columns=128, cameras=0, rate_hz=5)
    write_simulated_bag(drive, path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config, space = StudentConfig(depth=14, width=0.25, voxel_size_m=0.5), LabelSpace.load("street")
    meta = CheckpointMeta(student=config.model_dump(), label_space=space.to_dict())
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, Student(config, len(space)).state_dict(), meta)
    return path


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes find the packages as this one does."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def test_the_node_answers_every_sweep_as_the_network_does(
    bag: Path, checkpoint: Path, tmp_path: Path
) -> None:
    before = os.environ.get("ROS_DOMAIN_ID")
    heard = replay(bag, checkpoint, tmp_path / "logs")
    alone = replay_in_process(bag, checkpoint, tmp_path)
    assert (heard.transport, heard.sent, heard.dropped) == ("DDS", SWEEPS, {})
    assert heard.labels.keys() == alone.labels.keys()
    for stamp, labels in heard.labels.items():
        assert np.mean(labels == alone.labels[stamp]) > 0.999  # a tie may fall either way
    assert {"queue", "decode", "inference", "encode", "latency"} <= heard.stages_ms.keys()
    median, high = heard.stages_ms["inference"]
    assert 0 < median <= high <= heard.stages_ms["latency"][1]
    assert os.environ.get("ROS_DOMAIN_ID") == before


def test_the_node_takes_a_parameter_file(bag: Path, checkpoint: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("/**: {ros__parameters: {min_confidence: 1.0}}")
    heard = replay(bag, checkpoint, tmp_path / "logs", params)
    assert len(heard.labels) + sum(heard.dropped.values()) == SWEEPS and heard.labels
    assert all((labels == -1).all() for labels in heard.labels.values())


def test_a_node_that_cannot_start_is_told_with_its_own_words(bag: Path, tmp_path: Path) -> None:
    with pytest.raises(PcsegError, match="no checkpoint at"):
        replay(bag, tmp_path / "nothing", tmp_path / "logs")
