# SPDX-License-Identifier: Apache-2.0
"""The node as users start it, with a network (of random weights) from a checkpoint on disk."""

from __future__ import annotations

import re
from array import array
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("torch")

import torch
from harness import Client, NodeProcess, field_of, positions, sweep, wait_for
from node_process import ROOT

from pcseg_core.checkpoint import CheckpointMeta, CheckpointText, save_checkpoint
from pcseg_core.labels import LabelSpace, from_wire
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.vision.text_space import GeneratedText, table_of
from pcseg_ros.conversions import read_sweep
from pcseg_ros.loading import usual_sweep

PROGRAM = ROOT / "pcseg_ros" / "__main__.py"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    config, space = StudentConfig(depth=14, width=0.25, voxel_size_m=0.5), LabelSpace.load("street")
    student = Student(config, len(space))
    meta = CheckpointMeta(student=config.model_dump(), label_space=space.to_dict())
    save_checkpoint(folder / "checkpoint.safetensors", student.state_dict(), meta)
    return folder


def test_labels_are_those_of_the_segmenter(client: Client, run_folder: Path) -> None:
    parameters = (f"checkpoint:={run_folder}", "backend:=torch", "device:=cpu")
    with NodeProcess(*parameters, program=PROGRAM) as process:
        node = client.attach(process)
        sent = sweep(3000)
        rows = np.frombuffer(sent.data, np.uint8).reshape(3000, -1).copy()
        rows[:500, :12] = 0  # x, y and z: no returns
        sent.data = array("B", rows.tobytes())
        answer = node.exchange(sent)
        segmenter = Segmenter.load(run_folder, device="cpu", backend="torch")
        expected = segmenter.segment(read_sweep(sent, 0.0))
        np.testing.assert_array_equal(positions(answer), positions(sent))
        same = from_wire(field_of(answer, "label")) == expected.labels
        assert same.mean() > 0.999  # a tie may fall either way
        assert (field_of(answer, "label")[:500] == 65535).all()
        assert (field_of(answer, "label")[500:] != 65535).all()
        np.testing.assert_allclose(
            field_of(answer, "confidence"), expected.confidence, rtol=0, atol=1e-4
        )
        assert process.stop()[0] == 0


def test_the_node_warms_up_with_a_sweep_of_usual_size() -> None:
    """A sweep of an HDL-64E in a street has about 42,000 voxels of 15 cm."""
    cloud = usual_sweep()
    assert len(cloud) == 64 * 2048 and cloud.finite.all()
    assert 35_000 < len(np.unique(np.floor(cloud.xyz / 0.15), axis=0)) < 55_000


def test_damaged_checkpoint_leaves_the_node_unconfigured(
    client: Client, run_folder: Path, tmp_path: Path
) -> None:
    whole = (run_folder / "checkpoint.safetensors").read_bytes()
    (tmp_path / "checkpoint.safetensors").write_bytes(whole[: len(whole) // 2])
    with NodeProcess(f"checkpoint:={tmp_path}", program=PROGRAM) as process:
        node = client.attach(process, active=False)
        wait_for(lambda: "not configured: " in process.output, "the message")
        assert "damaged" in process.output
        assert "Traceback" not in process.output
        assert node.state() == "unconfigured"
        # Repaired, the same node can be configured.
        (tmp_path / "checkpoint.safetensors").write_bytes(whole)
        assert node.change("configure")
        assert node.state() == "inactive"


def test_without_a_checkpoint_the_bundled_one_runs(client: Client) -> None:
    with NodeProcess(program=PROGRAM) as process:
        node = client.attach(process)
        sent = sweep(3000)
        expected = Pipeline(Segmenter.load("bundled")).process(Sweep(read_sweep(sent, 0.0)))
        assert np.mean(field_of(node.exchange(sent), "label") == expected.labels) > 0.99
        assert "checkpoint 'bundled' with the classes road, " in process.output
        engine = r"runs on (cpu|cuda) by (native [a-z0-9_]+|torch|triton) (fp32|fp16|bf16)\n"
        assert re.search(engine, process.output)
        lines = [line for line in process.lines if "trained on simulated drives" in line]
        assert len(lines) == 1 and lines[0].startswith("[WARN]")


@pytest.fixture(scope="module")
def words_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    torch.manual_seed(0)
    config = StudentConfig(depth=14, width=0.25, voxel_size_m=0.5, text_channels=16)
    space = LabelSpace.load("street")
    words = [*space.names, "tree", "машина", *(f"word{i}" for i in range(20))]
    names = {name: (name,) for name in space.names}
    text = CheckpointText(table_of(GeneratedText(16), words), names, 0.05)
    meta = CheckpointMeta(student=config.model_dump(mode="json"), label_space=space.to_dict())
    state = Student(config, len(space)).state_dict()
    save_checkpoint(folder / "checkpoint.safetensors", state, meta, text)
    return folder


def test_words_become_the_classes_of_the_next_sweep(client: Client, words_folder: Path) -> None:
    parameters = (f"checkpoint:={words_folder}", "backend:=torch", "device:=cpu")
    with NodeProcess(*parameters, program=PROGRAM) as process:
        node = client.attach(process)
        segmenter = Segmenter.load(words_folder, device="cpu", backend="torch")
        sent = sweep(3000)

        def agrees() -> bool:
            answer = field_of(node.exchange(sent), "label")
            return bool((answer == segmenter.segment(read_sweep(sent, 0.0)).labels).mean() > 0.99)

        assert agrees()
        prompts = ["машина: vehicle, машина", "tree", "*"]
        segmenter.set_prompts(prompts)
        assert node.set_parameter("prompts", prompts).successful
        assert agrees()
        wait_for(
            lambda: (
                list(node.get_parameter("class_names").string_array_value)
                == list(segmenter.label_space.names)
            ),
            "names of the classes",
        )
        for wrong, reason in (
            (["tree", "quagga"], "quagga"),
            ([], "empty"),
            ([f"unknown{i}" for i in range(300)], "unknown0"),
        ):
            refused = node.set_parameter("prompts", wrong)
            assert not refused.successful and reason in refused.reason
            assert list(node.get_parameter("prompts").string_array_value) == prompts
            assert agrees()


def test_prompts_need_a_checkpoint_that_knows_words(client: Client, run_folder: Path) -> None:
    parameters = (f"checkpoint:={run_folder}", "backend:=torch", "device:=cpu")
    with NodeProcess(*parameters, program=PROGRAM) as process:
        node = client.attach(process)
        refused = node.set_parameter("prompts", ["tree"])
        assert not refused.successful and "text" in refused.reason
        assert node.exchange(sweep(100)).width == 100
