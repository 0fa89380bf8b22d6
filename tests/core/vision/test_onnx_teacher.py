# SPDX-License-Identifier: Apache-2.0
"""Teachers in ONNX format: real networks exported, layouts, names, and files that are wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from teacher_inputs import IMAGE, load
from torch import Tensor, nn

from pcseg_core.bundled import bundled_file
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.vision.teachers.espnetv2 import load_espnetv2

SIMULATION = LabelSpace.load("simulation")


class Shuffle(nn.Module):
    """ChannelShuffle of operations that ONNX has."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.reshape(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def _means(length: int, out: int) -> Tensor:
    """(out, length) matrix of adaptive average pooling."""
    rows = np.zeros((out, length), np.float32)
    for i in range(out):
        first, last = i * length // out, -(-(i + 1) * length // out)
        rows[i, first:last] = 1 / (last - first)
    return torch.from_numpy(rows)


def _pool(x: Tensor, size: int | tuple[int, int]) -> Tensor:
    height, width = (int(side) for side in x.shape[-2:])
    rows, columns = (size, size) if isinstance(size, int) else size
    return _means(height, rows) @ x @ _means(width, columns).t()


@contextlib.contextmanager
def exportable(monkeypatch: pytest.MonkeyPatch, network: nn.Module) -> Iterator[None]:
    """ESPNetv2 of operations that ONNX has, with the same results."""
    for module in network.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ChannelShuffle):
                setattr(module, name, Shuffle(child.groups))
    with monkeypatch.context() as patch:
        patch.setattr(F, "adaptive_avg_pool2d", _pool)
        yield


def export(network: nn.Module, shape: tuple[int, ...], path: Path, **options: Any) -> Path:
    torch.onnx.export(
        network,
        (torch.zeros(shape),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["logits"],
        **options,
    )
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_espnetv2_in_onnx_gives_the_same_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    weights = bundled_file("bundled:simulation_teacher")
    assert weights is not None
    network = load_espnetv2(weights).eval()
    with exportable(monkeypatch, network):
        export(network, (1, 3, 64, 96), tmp_path / "net.onnx")
    (tmp_path / "names.txt").write_text("\n".join(SIMULATION.names))
    common = {"label_space": "simulation"}
    own = load(weights="bundled:simulation_teacher", scales=[1.0], flip=False, **common)
    names = str(tmp_path / "names.txt")
    other = load(name="onnx", file=str(tmp_path / "net.onnx"), names_file=names, **common)
    expected, found = own.probabilities(IMAGE), other.probabilities(IMAGE)
    assert np.abs(expected - found).max() < 1e-4
    assert np.array_equal(expected.argmax(0), found.argmax(0))


class Colors(nn.Module):
    """Logits of two classes: red, and the rest."""

    def __init__(self, last: bool = False, ids: bool = False) -> None:
        super().__init__()
        self.last, self.ids = last, ids

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2) if self.last else x
        logits = torch.stack([x[:, 0], x[:, 1]], 1)
        if self.ids:
            return logits.argmax(1)
        return logits.permute(0, 2, 3, 1) if self.last else logits


@pytest.fixture
def colors(tmp_path: Path) -> Callable[..., Path]:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")

    def make(
        last: bool = False, ids: bool = False, shape: tuple[int, ...] = (1, 3, 32, 64)
    ) -> Path:
        free = {"image": {2: "height", 3: "width"}}
        options = {} if last or ids else {"dynamic_axes": free}
        return export(Colors(last, ids), shape, tmp_path / f"{last}{ids}.onnx", **options)

    return make


RED = np.zeros((64, 96, 3), np.uint8)
RED[:, :48, 0], RED[:, 48:, 1] = 255, 255


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["free", "last", "ids"])
def test_layouts_of_onnx_networks(colors: Callable[..., Path], form: str) -> None:
    shape = (1, 32, 64, 3) if form == "last" else (1, 3, 32, 64)
    file = colors(form == "last", form == "ids", shape)
    values = {"output": "ids"} if form == "ids" else {}
    teacher = load(name="onnx", file=str(file), names=["road", "car"], **values)
    found = teacher.probabilities(RED)
    assert found.shape == ((19, 64, 96) if form == "free" else (19, 32, 64))
    winner, half = found.argmax(0), found.shape[2] // 2
    assert (winner[:, : half - 1] == 0).all() and (winner[:, half + 1 :] == 13).all()


@pytest.mark.filterwarnings("ignore")
def test_what_is_wrong_with_an_onnx_file_is_named(
    colors: Callable[..., Path], tmp_path: Path
) -> None:
    file = str(colors())
    bad = tmp_path / "bad.onnx"
    bad.write_text("no network")
    for values, message in (
        ({"file": str(bad), "names": ["road"]}, "bad.onnx: not usable as an ONNX file"),
        ({"file": file}, "no class names in its metadata; give 'names'"),
        ({"file": file, "names": ["road"], "output_name": "out"}, "no output 'out'; it has logits"),
    ):
        with pytest.raises(InputError, match=message):
            load(name="onnx", **values)
    three = load(name="onnx", file=file, names=["road", "car", "sky"])
    with pytest.raises(InputError, match=r"\(1, 2, 64, 96\); expected \(1, 3, h, w\)"):
        three.probabilities(IMAGE)
    with pytest.raises(InputError, match="no such file"):
        load(name="onnx", file=str(tmp_path / "none.onnx"), names=["road"])


@pytest.mark.filterwarnings("ignore")
def test_names_in_the_metadata_of_an_onnx_file(colors: Callable[..., Path]) -> None:
    onnx = pytest.importorskip("onnx")
    file = colors()
    model = onnx.load(str(file))
    entry = model.metadata_props.add()
    entry.key, entry.value = "names", "{0: 'road', 1: 'car'}"
    onnx.save(model, str(file))
    assert load(name="onnx", file=str(file)).probabilities(RED)[13, :, 60:].min() > 0.5
