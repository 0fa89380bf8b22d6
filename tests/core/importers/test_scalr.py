# SPDX-License-Identifier: Apache-2.0
"""Import of ScaLR and WaffleIron: all keys, the published formula, and files that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pcseg_core.errors import InputError
from pcseg_core.importers.run import import_weights
from pcseg_core.models.neighbors import neighborhoods
from pcseg_core.models.student import Points
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.sparse import Voxels

State = dict[str, Tensor]
KITTI = (0.28613698, 0.14090556)  # mean and deviation of the intensities


def published(layers: int, width: int, norm: str, head: dict[str, tuple[int, ...]]) -> State:
    """Random tensors with the published keys and shapes, without a prefix."""
    state: State = {}

    def layer(key: str, *shape: int, bias: bool = True) -> None:
        state[f"{key}.weight"] = torch.randn(shape) / max(1, shape[1]) ** 0.5
        if bias:
            state[f"{key}.bias"] = 0.1 * torch.randn(shape[0])

    def batch_norm(key: str, channels: int) -> None:
        for name, low in (("weight", 0.5), ("bias", 0), ("running_mean", 0), ("running_var", 0.5)):
            state[f"{key}.{name}"] = low + torch.rand(channels)
        state[f"{key}.num_batches_tracked"] = torch.tensor(9)

    batch_norm("embed.norm", 5)
    layer("embed.conv1", width, 5, 1)
    batch_norm("embed.conv2.0", 5)
    layer("embed.conv2.1", width, 5, 1, 1, bias=False)
    batch_norm("embed.conv2.2", width)
    layer("embed.conv2.4", width, width, 1, 1, bias=False)
    layer("embed.final", width, 2 * width, 1)
    for kind, part, shape in (("channel", "mlp", (width, 1)), ("spatial", "ffn", (1, 3, 3))):
        for i in range(layers):
            start = f"waffleiron.{kind}_mix.{i}"
            if norm == "batch":
                batch_norm(f"{start}.norm", width)
            else:
                state[f"{start}.norm.weight"] = 0.5 + torch.rand(width)
                state[f"{start}.norm.bias"] = torch.rand(width)
            layer(f"{start}.{part}.0", width, *shape)
            layer(f"{start}.{part}.2", width, *shape)
            layer(f"{start}.scale", width, 1, 1, bias=False)
    for key, size in head.items():
        layer(key, *size) if len(size) > 1 else batch_norm(key, *size)
    return state


def probed(width: int, classes: int) -> dict[str, tuple[int, ...]]:
    """The head of a network with classes: a batch norm and a layer."""
    return {"classif.0": (width,), "classif.1": (classes, width, 1)}


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("family", "key", "head", "tensors"),
    [
        ("scalr", "model_points", {"classif": (1024, 8, 1)}, 695),
        (
            "scalr-plus",
            "model_point",
            {"classif.0": (2048, 8, 1), "classif.2": (1024, 2048, 1)},
            697,
        ),
    ],
)
def test_pretrained_networks_load_completely(
    family: str, key: str, head: dict[str, tuple[int, ...]], tensors: int, tmp_path: Path
) -> None:
    state = published(48, 8, "layer", head)
    assert len(state) == tensors
    content = {"epoch": 24, key: {f"module.{k}": v for k, v in state.items()}}
    figures = import_weights(save(tmp_path / "w.pth", content), family, tmp_path / "run")
    assert figures["left_out"] == [
        f"{key}.module.classif.*: projection to image features, of the pretraining"
    ]
    assert figures["license"] == "Apache-2.0" and figures["outputs"] == 0


def expected_logits(state: State, points: Tensor, gelu: bool, neighbors: Tensor) -> Tensor:
    """The published formula on points (N, 4), in layers on (1, C, N), at 0.5 m cells."""
    xyz, intensity = points[:, :3], (points[:, 3] - KITTI[0]) / KITTI[1]
    x = torch.cat([intensity[:, None], xyz, xyz.norm(dim=1)[:, None]], 1).t()[None]

    def batch_norm(x: Tensor, key: str) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{key}.{name}"] for name in names))

    def conv(x: Tensor, key: str, **options: int) -> Tensor:
        function = F.conv1d if state[f"{key}.weight"].ndim == 3 else F.conv2d
        return function(x, state[f"{key}.weight"], state.get(f"{key}.bias"), **options)

    def layer_norm(x: Tensor, key: str) -> Tensor:
        width = x.shape[1:2]
        parts = state[f"{key}.weight"], state[f"{key}.bias"]
        return F.layer_norm(x.transpose(1, 2), width, *parts).transpose(1, 2)

    x = batch_norm(x, "embed.norm")
    around = batch_norm(x[:, :, neighbors] - x[..., None], "embed.conv2.0")
    around = batch_norm(conv(around, "embed.conv2.1"), "embed.conv2.2").relu()
    around = conv(around, "embed.conv2.4").amax(3)
    x = conv(torch.cat([conv(x, "embed.conv1"), around], 1), "embed.final")
    place = ((xyz - torch.tensor([-64, -64, -8])) / 0.5).long()
    act = F.gelu if gelu else F.relu
    for i, (a, b, size) in enumerate(((0, 1, (256, 256)), (0, 2, (256, 32)), (1, 2, (256, 32)))):
        start, width = f"waffleiron.spatial_mix.{i}", x.shape[1]
        member = F.one_hot(place[:, a] * size[1] + place[:, b], size[0] * size[1]).float()
        mean = layer_norm(x, f"{start}.norm") @ (member / member.sum(0).clamp(min=1))
        image = conv(mean.view(1, width, *size), f"{start}.ffn.0", padding=1, groups=width)
        image = conv(act(image), f"{start}.ffn.2", padding=1, groups=width)
        x = x + conv(image.flatten(2) @ member.t(), f"{start}.scale", groups=width)
        start = f"waffleiron.channel_mix.{i}"
        mixed = conv(layer_norm(x, f"{start}.norm"), f"{start}.mlp.0")
        x = x + conv(conv(act(mixed), f"{start}.mlp.2"), f"{start}.scale", groups=width)
    return conv(batch_norm(x, "classif.0"), "classif.1")[0].t()


@pytest.mark.parametrize(("family", "gelu"), [("scalr", False), ("scalr-plus", True)])
def test_logits_are_those_of_the_published_formula(family: str, gelu: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = published(3, 8, "layer", probed(8, 19))
    file = save(tmp_path / "w.pth", {"net": {f"module.{k}": v for k, v in state.items()}})
    import_weights(file, family, tmp_path / "run")
    segmenter = Segmenter.load(tmp_path / "run", "cpu", backend="torch")
    assert segmenter.label_space.names[:2] == ("car", "bicycle")
    spots = torch.cartesian_prod(*(torch.arange(-2.0, 2.0),) * 2, torch.arange(-1.0, 1.0))
    points = torch.cat([spots + 0.11 + torch.rand(32, 3) / 3, torch.rand(32, 1)], 1)
    order = (points[:, :3] / 0.1).floor().long()
    rows = sorted(range(32), key=lambda i: order[i].tolist())  # as the voxels
    points = points[rows]
    neighbors = neighborhoods(points[:, :3], torch.zeros(32, dtype=torch.long), 16)
    x = segmenter.student.sparse_input(*_voxels(segmenter, points))
    with torch.no_grad():
        given = segmenter.student.network(x).feats
    expected = expected_logits(state, points, gelu, neighbors)
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)
    assert float(expected.std()) > 0.1


def _voxels(segmenter: Segmenter, points: Tensor) -> tuple[Points, Voxels]:
    batch = torch.zeros(len(points), dtype=torch.long)
    given = Points(points[:, :3].contiguous(), points[:, 3].contiguous(), batch)
    return given, segmenter.student.voxelize(given)


@pytest.mark.parametrize(
    ("classes", "box", "name"),
    [(16, (-50, -50, -5), "nuscenes16"), (19, (-50, -50, -3), "semantic_kitti")],
)
def test_networks_without_pretraining_have_their_boxes(
    classes: int, box: tuple[float, ...], name: str, tmp_path: Path
) -> None:
    state = published(2, 8, "batch", {"classif": (classes, 8, 1)})
    import_weights(save(tmp_path / "w.pth", {"net": state}), "waffleiron", tmp_path / "run")
    segmenter = Segmenter.load(tmp_path / "run", "cpu")
    assert segmenter.student.config.waffleiron.box_min_m == box
    assert segmenter.label_space.name == name


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("scalr", {"waffleiron.spatial_mix.1.ffn.2.bias": None}, "1 missing: .*ffn.2.bias"),
        ("scalr", {"waffleiron.extra": torch.zeros(1)}, "1 left over: waffleiron.extra"),
        ("scalr", {"embed.final.weight": torch.zeros(8, 8, 1)}, "'embed.final.weight' is"),
        ("waffleiron", {}, "'classif.weight' is missing"),
        ("slidr", {}, "no network of the family 'slidr'.*scalr"),
    ],
)
def test_files_that_do_not_fit_name_their_keys(
    family: str, change: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    state = {**published(2, 8, "layer", probed(8, 19)), **change}
    file = save(tmp_path / "w.pth", {k: v for k, v in state.items() if v is not None})
    with pytest.raises(InputError, match=message):
        import_weights(file, family, tmp_path / "run")


def test_the_head_of_the_other_scalr_is_refused(tmp_path: Path) -> None:
    state = published(2, 8, "layer", {"classif.0": (16, 8, 1), "classif.2": (4, 16, 1)})
    with pytest.raises(InputError, match="family 'scalr-plus'"):
        import_weights(save(tmp_path / "w.pth", state), "scalr", tmp_path / "run")
    state = published(2, 8, "batch", {"classif": (5, 8, 1)})
    with pytest.raises(InputError, match="5 classes; known are"):
        import_weights(save(tmp_path / "w.pth", state), "waffleiron", tmp_path / "run")
