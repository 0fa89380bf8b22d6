# SPDX-License-Identifier: Apache-2.0
"""Exported graphs give what the torch network gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pcseg_core.cloud import PointCloud
from pcseg_core.export.calibration import labels_changed, record
from pcseg_core.export.runtime import OnnxStudent
from pcseg_core.export.tables import TABLES, graph_inputs
from pcseg_core.export.writer import build
from pcseg_core.online.prompts import PromptHead, PromptSet
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.sparse import SparseTensor

Make = Callable[..., Segmenter]
Voxels = Callable[..., SparseTensor]


def logits(segmenter: Segmenter, x: SparseTensor) -> np.ndarray:
    with torch.no_grad():
        return segmenter.student.network(x).feats.numpy()


def cloud(seed: int, count: int = 4000) -> PointCloud:
    rng = np.random.default_rng(seed)
    xyz = rng.uniform((-20, -20, -2), (20, 20, 1), (count, 3)).astype(np.float32)
    return PointCloud(xyz, rng.random(count).astype(np.float32))


def assert_same(given: np.ndarray, expected: np.ndarray) -> None:
    """Labels are equal, logits differ by less than 1e-5 of their range."""
    assert given.dtype == np.float32 and given.shape == expected.shape
    assert (given.argmax(1) == expected.argmax(1)).all()
    assert np.abs(given - expected).max() < 1e-5 * np.ptp(expected)


@pytest.mark.parametrize(("depth", "width"), [(14, 0.25), (14, 1.0), (18, 0.5), (34, 0.3)])
@pytest.mark.parametrize("inputs", [("z", "intensity"), ("offset",)])
def test_equals_the_network(
    depth: int, width: float, inputs: tuple[str, ...], make_segmenter: Make, make_voxels: Voxels
) -> None:
    segmenter = make_segmenter(depth=depth, width=width, inputs=inputs)
    student = OnnxStudent(build(segmenter).SerializeToString())
    for count in (1500, 1, 40):
        x = make_voxels(count, segmenter.student.network.in_channels, seed=count)
        assert_same(student(x), logits(segmenter, x))


def test_two_convolutions_in_the_stem(make_segmenter: Make, make_voxels: Voxels) -> None:
    segmenter = make_segmenter(stem_convs=2, planes=(8, 16, 16, 16, 16, 16, 8, 12))
    student = OnnxStudent(build(segmenter).SerializeToString())
    x = make_voxels(500, segmenter.student.network.in_channels)
    assert_same(student(x), logits(segmenter, x))


def test_no_voxels_give_no_logits(make_segmenter: Make) -> None:
    segmenter = make_segmenter()
    none = {table.name: np.zeros((table.offsets, 0), np.int32) for table in TABLES}
    none["features"] = np.zeros((0, 2), np.float32)
    for precision in ("fp32", "fp16"):
        student = OnnxStudent(build(segmenter, precision).SerializeToString())
        assert student.session.run(None, none)[0].shape == (0, 8)


def test_operators_need_no_plug_in(make_segmenter: Make) -> None:
    segmenter = make_segmenter(text_channels=16)
    plain = {"Gather", "MatMul", "Add", "Relu", "Concat", "Reshape", "Transpose"}

    def operators(precision: str = "fp32", peaks: dict[str, float] | None = None) -> set[str]:
        model = build(segmenter, precision, peaks)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
        return {node.op_type for node in model.graph.node}

    assert operators() == plain
    assert operators("fp16") == plain | {"Cast"}
    peaks = record(segmenter, [cloud(0)]).peaks
    assert operators("int8", peaks) == plain | {"QuantizeLinear", "DequantizeLinear", "Sum"}
    segmenter.set_prompts(["jeep", "minivan"])
    assert operators() == plain | {"ReduceL2", "Max", "Div"}
    segmenter.set_prompts(["car: jeep, minivan", "*"])
    assert operators() == plain | {"ReduceL2", "Max", "Div", "Softmax", "Log"}


@pytest.mark.parametrize("prompts", [("jeep", "lamp post"), ("car: jeep, minivan", "pole", "*")])
def test_words_equal_the_prompted_segmenter(
    prompts: tuple[str, ...], make_segmenter: Make, make_voxels: Voxels
) -> None:
    segmenter = make_segmenter(text_channels=16)
    segmenter.set_prompts(prompts)
    x = make_voxels(1500)
    rows, owner = PromptSet.parse(prompts).encode(segmenter.text)
    head = segmenter.student.text_head
    folded = PromptHead(head, rows, owner, len(prompts), segmenter.text.temperature)
    member = torch.nn.functional.one_hot(torch.from_numpy(owner), len(prompts)).float()
    with torch.no_grad():
        features = segmenter.student.network.features(x)
        scores = folded.logits(torch.addmm(folded.offset, features, folded.matrix))
    likely = scores.softmax(1) @ member
    given = torch.from_numpy(OnnxStudent(build(segmenter).SerializeToString())(x))
    assert_same(given.log_softmax(1).numpy(), likely.log().numpy())


def test_missing_neighbors_are_the_row_of_zeros(make_voxels: Voxels) -> None:
    """Two voxels side by side, one far away."""
    coords = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 9, 9, 9]])
    inputs = graph_inputs(SparseTensor(coords, torch.ones(3, 2), backend="torch"))
    assert list(inputs) == ["features", *(table.name for table in TABLES)]
    near = inputs["neighbors_0"]
    assert near[13].tolist() == [0, 1, 2] and near[14].tolist() == [1, 3, 3]
    assert near[12].tolist() == [3, 0, 3] and near.dtype == np.int32
    assert inputs["children_1"][:, 0].tolist() == [0, 1, 3, 3, 3, 3, 3, 3]
    assert inputs["parents_0"][0].tolist() == [0, 2, 2]
    assert inputs["parents_0"][1].tolist() == [2, 0, 2]
    assert inputs["parents_0"][7].tolist() == [2, 2, 1]
    assert all((table >= 0).all() for name, table in inputs.items() if name != "features")


def test_half_precision_and_int8_stay_near(make_segmenter: Make) -> None:
    segmenter = make_segmenter(voxel_size_m=0.5)
    exact = OnnxStudent(build(segmenter).SerializeToString())
    seen, unseen = record(segmenter, [cloud(0), cloud(1)]), record(segmenter, [cloud(2)])
    x = unseen.sweeps[0]
    for precision, worst in (("fp16", 0.005), ("int8", 0.1)):
        peaks = seen.peaks if precision == "int8" else None
        given = OnnxStudent(build(segmenter, precision, peaks).SerializeToString())
        error = np.linalg.norm(given(x) - exact(x)) / np.linalg.norm(exact(x))
        assert 1e-5 < error < worst
        assert labels_changed(exact, given, [x]) < worst


def test_onnx_runtime_multiplies_int8(make_segmenter: Make, tmp_path: Path) -> None:
    """Other forms of the same graph fall back to products in float32."""
    import onnx
    import onnxruntime

    segmenter = make_segmenter()
    model = build(segmenter, "int8", record(segmenter, [cloud(0)]).peaks)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "o.onnx"), 3
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    nodes = [node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node]
    convolutions = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    assert convolutions == 24 == nodes.count("MatMulIntegerToFloat")


def test_int8_stores_weights_in_a_quarter_of_the_bytes(make_segmenter: Make) -> None:
    segmenter = make_segmenter(width=1.0)
    peaks = record(segmenter, [cloud(0)]).peaks
    sizes = {p: build(segmenter, p, peaks).ByteSize() for p in ("fp16", "int8")}
    whole = build(segmenter).ByteSize()
    assert sizes["fp16"] < 0.52 * whole and sizes["int8"] < 0.3 * whole


def test_a_second_reader_agrees(make_segmenter: Make, make_voxels: Voxels, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    segmenter = make_segmenter(depth=18, width=0.5)
    (tmp_path / "student.onnx").write_bytes(build(segmenter).SerializeToString())
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(str(tmp_path / "student.onnx"), "CPU", settings)
    for count in (1500, 1):
        x = make_voxels(count)
        assert_same(model(graph_inputs(x))["logits"], logits(segmenter, x))
