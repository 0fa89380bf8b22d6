# SPDX-License-Identifier: Apache-2.0
"""Point Transformers as runs: all published keys, their inputs, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import STREET
from torch import Tensor
from typer.testing import CliRunner

from pcseg_core.checkpoint import check_fits, load_checkpoint
from pcseg_core.cli import app
from pcseg_core.cloud import PointCloud
from pcseg_core.errors import InputError
from pcseg_core.importers.family import Imported
from pcseg_core.importers.ptv3 import FAMILY as PTV3
from pcseg_core.importers.published import Keys, Published
from pcseg_core.importers.run import import_weights
from pcseg_core.importers.sonata import FAMILY, INDOOR
from pcseg_core.learning.probe import FrozenNetwork
from pcseg_core.models.ptv3 import Ptv3
from pcseg_core.models.ptv3_layers import Stem
from pcseg_core.models.student import Points, _Uninitialized, load_student, make_network
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.sparse import SparseTensor
from pcseg_core.sparse.maps import kernel_offsets

SONATA: dict[str, Any] = {
    "in_channels": 9,
    "order": ("z", "z-trans", "hilbert", "hilbert-trans"),
    "stride": (2, 2, 2, 2),
    "enc_depths": (3, 3, 3, 12, 3),
    "enc_channels": (48, 96, 192, 384, 512),
    "enc_num_head": (3, 6, 12, 24, 32),
    "enc_patch_size": (1024,) * 5,
    "mlp_ratio": 4,
    "drop_path": 0.3,
    "shuffle_orders": True,
    "enable_flash": True,
    "mask_token": True,
    "enc_mode": True,
}
TINY = SONATA | {
    "stride": (2,),
    "enc_depths": (1, 1),
    "enc_channels": (8, 12),
    "enc_num_head": (2, 3),
    "enc_patch_size": (64, 64),
}
Shapes = dict[str, tuple[int, ...]]
SOURCE = "simulated:seed=5,sweeps=2,beams=8,columns=64,cameras=0"


def layers_of(block: str, c: int) -> Shapes:
    """Shapes of the weights of a block of c channels."""
    vectors = {block + name: (c,) for name in ("cpe.2", "norm1.0", "norm2.0")}
    squares = {block + name: (c, c) for name in ("cpe.1", "attn.proj")}
    wide = {block + "mlp.0.fc1": (4 * c, c), block + "mlp.0.fc2": (c, 4 * c)}
    return {block + "cpe.0": (c, 3, 3, 3, c), block + "attn.qkv": (3 * c, c)} | (
        vectors | squares | wide
    )


def encoder(depths: Sequence[int], channels: Sequence[int]) -> Shapes:
    """Shapes of the weights of all stages."""
    found: Shapes = {}
    for s, c in enumerate(channels):
        if s:
            found |= {f"enc.enc{s}.down.proj": (c, channels[s - 1])}
            found |= {f"enc.enc{s}.down.norm.0": (c,)}
        for b in range(depths[s]):
            found |= layers_of(f"enc.enc{s}.block{b}.", c)
    return found


def filled(layers: Shapes, device: str = "cpu") -> dict[str, Tensor]:
    """Random weights and biases."""
    shapes = {f"{k}.weight": v for k, v in layers.items()}
    shapes |= {f"{k}.bias": v[:1] for k, v in layers.items()}
    made = torch.Generator().manual_seed(0)
    if device == "meta":  # torch compiles arithmetic there, and the stem is scaled
        real = {k: torch.zeros(v) for k, v in shapes.items() if ".stem." in k}
        return {k: torch.empty(v, device="meta") for k, v in shapes.items()} | real
    return {k: torch.randn(v, generator=made) / max(v[0], 2) ** 0.5 for k, v in shapes.items()}


def tensors(config: dict[str, Any], device: str = "cpu") -> dict[str, Tensor]:
    """Random weights with the keys and shapes of Sonata."""
    first = config["enc_channels"][0]
    stem = {"embedding.stem.linear": (first, 9), "embedding.stem.norm": (first,)}
    layers = encoder(config["enc_depths"], config["enc_channels"])
    token = {"embedding.mask_token": torch.zeros(1, first, device=device)}
    return filled(stem | layers, device) | token


def labeled(depths: Sequence[int], channels: Sequence[int], back: Sequence[int]) -> Shapes:
    """Shapes of the weights of Pointcept's network for 16 classes, two blocks a decoder grid."""
    layers = {"embedding.stem.norm": (channels[0],)} | encoder(depths, channels)
    for g, c in enumerate(back):
        below = (*back, channels[-1])[g + 1]
        for name, width in (("proj", below), ("proj_skip", channels[g])):
            layers |= {f"dec.dec{g}.up.{name}.0": (c, width), f"dec.dec{g}.up.{name}.1": (c,)}
        for b in range(2):
            layers |= layers_of(f"dec.dec{g}.block{b}.", c)
    return {f"backbone.{k}": v for k, v in layers.items()} | {"seg_head": (16, back[0])}


def pointcept(
    depths: Sequence[int], channels: Sequence[int], back: Sequence[int], device: str = "cpu"
) -> dict[str, Tensor]:
    """Random weights with the keys and shapes of Pointcept's network."""
    layers = labeled(depths, channels, back)
    found = filled(layers, device)
    found["backbone.embedding.stem.conv.weight"] = torch.zeros(channels[0], 5, 5, 5, 4)
    norms = ("stem.norm", "down.norm.0", "up.proj.1", "up.proj_skip.1")
    for name in [k for k in layers if k.endswith(norms)]:
        for kind in ("running_mean", "running_var"):
            found[f"{name}.{kind}"] = torch.ones(layers[name], device=device)
        found[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64, device=device)
    return {f"module.{name}": tensor for name, tensor in found.items()}


def keys(config: dict[str, Any], found: dict[str, Tensor]) -> Keys:
    values = {f"config.{name}": value for name, value in config.items()}
    return Keys(Path("sonata.pth"), "sonata", "", found, {}, values)


def write(path: Path, config: dict[str, Any], found: dict[str, Tensor]) -> Path:
    torch.save({"config": config, "state_dict": found}, path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sonata")
    file = write(folder / "tiny.pth", TINY, tensors(TINY))
    figures = import_weights(file, "sonata", folder / "run")
    assert figures["license"] == "CC-BY-NC-4.0"
    (told,) = figures["left_out"]
    assert told == "state_dict.embedding.mask_token*: stands for hidden points in pretraining"
    return folder / "run"


def test_all_tensors_of_the_published_network_load() -> None:
    found = tensors(SONATA, "meta")
    assert len(found) == 453
    assert round(sum(tensor.numel() for tensor in found.values()) / 1e6, 2) == 108.46
    taken = keys(SONATA, found)
    imported = FAMILY.convert(taken)
    taken.check()
    check_whole(imported)


def check_whole(imported: Imported) -> None:
    """The network has these tensors, and its classifier."""
    with _Uninitialized(), torch.device("meta"):
        network = make_network(imported.config, 1)
    head = {f"classifier.{k}": v for k, v in network.classifier.state_dict().items()}
    state = {k.removeprefix("network."): v for k, v in imported.state.items()}
    check_fits(network, head | state, "a file")


def test_kernels_keep_their_axes() -> None:
    found = tensors(TINY)
    weight = torch.zeros(8, 3, 3, 3, 8)
    weight[5, 0, 1, 2, 3] = 1.0  # output 5 from input 3 at x - 1, y, z + 1
    found["enc.enc0.block0.cpe.0.weight"] = weight
    state = FAMILY.convert(keys(TINY, found)).state
    kernel = state["network.encoder.0.0.position.conv.weight"]
    assert kernel.nonzero().tolist() == [[kernel_offsets(3).index((-1, 0, 1)), 3, 5]]


@pytest.mark.parametrize("family, scale", [(FAMILY, 0.2), (INDOOR, 1.0)])
def test_positions_have_the_published_scale(family: Any, scale: float) -> None:
    """As the nine published inputs with positions in their scale and six zeros."""
    found = tensors(TINY)
    imported = family.convert(keys(TINY, found))
    student = load_student(imported.config, 1, _with_head(imported.state), "tiny")
    named = [(axis, 1.0) for axis in "xyz"] + [("zero", 1.0)] * 6
    published = Ptv3(named, 1, imported.config.ptv3)
    state = {k.removeprefix("network."): v for k, v in _with_head(imported.state).items()}
    state["stem.linear.weight"] = found["embedding.stem.linear.weight"]
    published.load_state_dict(state)
    xyz = torch.rand(300, 3) * 4
    points = Points(xyz, torch.rand(300), torch.zeros(300, dtype=torch.int64))
    voxels = student.voxelize(points)
    x = student.sparse_input(points, voxels)
    mean = torch.zeros(len(voxels), 3).index_add(0, voxels.inverse, xyz) / voxels.counts[:, None]
    nine = torch.cat([mean * scale, torch.zeros(len(voxels), 6)], 1)
    expected = published.eval().features(SparseTensor(voxels.coords, nine))
    torch.testing.assert_close(student.eval().network.features(x), expected, atol=1e-4, rtol=1e-4)
    assert imported.config.ptv3.centered == (family is INDOOR)


def _with_head(state: dict[str, Tensor], width: int = 20) -> dict[str, Tensor]:
    head = {"weight": torch.zeros(1, width), "bias": torch.zeros(1)}
    return state | {f"network.classifier.{name}": value for name, value in head.items()}


def test_all_tensors_of_the_network_with_classes_load() -> None:
    """Point Transformer V3 for nuScenes: its sizes follow from the tensors."""
    depths, channels, back = (2, 2, 2, 6, 2), (32, 64, 128, 256, 512), (64, 64, 128, 256)
    found = pointcept(depths, channels, back, "meta")
    count = sum(v.numel() for v in found.values() if v.is_floating_point())
    assert round(count / 1e6, 1) == 46.2
    taken = Published(Path("model_best.pth"), found).network(PTV3.probes, "ptv3")
    imported = PTV3.convert(taken)
    taken.check()
    assert not taken.left_out
    config = imported.config.ptv3
    assert (config.depths, config.decoder_depths) == (depths, (2, 2, 2, 2))
    assert (config.heads, config.decoder_heads) == ((2, 4, 8, 16, 32), (4, 4, 8, 16))
    assert imported.head is not None and imported.classes == "nuscenes16"
    check_whole(imported)


def test_the_first_kernel_reads_meters_and_intensity(tmp_path: Path) -> None:
    """A segmenter whose class follows from the input at one offset."""
    found = pointcept((1, 1), (4, 8), (4,))
    for name in found:
        if name.endswith(".weight") and not name.endswith(("norm.weight", "seg_head.weight")):
            found[name] = torch.zeros_like(found[name])
    kernel = found["module.backbone.embedding.stem.conv.weight"]
    kernel[2, 3, 2, 2, 3] = 0.5  # channel 2: half of the intensity at x + 1
    kernel[1, 2, 2, 2, 0] = 2.0  # channel 1: twice x
    taken = Published(Path("f"), found).network(PTV3.probes, "ptv3")
    imported = PTV3.convert(taken)
    student = load_student(imported.config, 1, _with_head(imported.state, 4), "f").eval()
    xyz = torch.tensor([[1.01, 0.01, 0.01], [1.06, 0.01, 0.01]])
    points = Points(xyz, torch.tensor([0.2, 0.8]), torch.zeros(2, dtype=torch.int64))
    x = student.sparse_input(points, student.voxelize(points))
    stem = student.network.stem
    assert isinstance(stem, Stem)
    given = stem.conv(x).feats
    torch.testing.assert_close(given[:, 2], torch.tensor([0.4, 0.0]))
    torch.testing.assert_close(given[:, 1], 2 * xyz[:, 0])


def test_a_network_with_classes_segments(tmp_path: Path) -> None:
    found = pointcept((1, 1), (16, 32), (16,))
    file = write(tmp_path / "model_best.pth", {}, found)
    figures = import_weights(file, "ptv3", tmp_path / "run")
    assert figures["outputs"] == 16 and not figures["left_out"]
    segmenter = Segmenter.load(tmp_path / "run", "cpu")
    assert segmenter.label_space.names[-1] == "vegetation"
    xyz = torch.rand(200, 3).numpy() * 4
    assert segmenter.segment(PointCloud(xyz)).confidence.min() > 1 / 16
    del found["module.backbone.dec.dec0.block0.norm1.0.weight"]
    with pytest.raises(InputError, match=r"dec\.dec0\.block0\.norm1\.0\.weight"):
        import_weights(write(file, {}, found), "ptv3", tmp_path / "other")


def test_missing_and_left_over_keys_are_named(tmp_path: Path) -> None:
    found = tensors(TINY)
    found["enc.enc1.block0.ls1.0.gamma"] = torch.ones(12)
    del found["enc.enc1.down.proj.bias"]
    file = write(tmp_path / "wrong.pth", TINY, found)
    with pytest.raises(InputError, match=r"enc1\.down\.proj\.bias.*enc1\.block0\.ls1\.0\.gamma"):
        import_weights(file, "sonata", tmp_path / "run")


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"rope_base": 10}, "RoPE.*Utonia.*take weights of Sonata"),
        ({"enc_mode": False}, "'enc_mode' is False"),
        ({"in_channels": 4}, "'in_channels' is 4"),
        ({"enc_patch_size": (64, 48)}, "one size"),
        ({"stride": (2, 2)}, "differ in length"),
        ({"enc_num_head": (3, 3)}, "multiples of heads"),
        ({"enable_rpe": True}, "'enable_rpe' is True"),
        ({"gates": 2}, "unknown key 'gates'"),
    ],
)
def test_other_encoders_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        FAMILY.convert(keys(TINY | changes, tensors(TINY)))


def test_rotation_is_seen_in_the_keys_and_a_config_is_needed() -> None:
    found = tensors(TINY)
    with pytest.raises(InputError, match="no 'config' beside 'state_dict'"):
        FAMILY.convert(keys({}, found))
    found["enc.enc0.block0.attn.rope.inv_freq"] = torch.ones(2)
    with pytest.raises(InputError, match="RoPE"):
        FAMILY.convert(keys(TINY, found))


def test_the_run_is_probed_fine_tuned_and_segments(run: Path, tmp_path: Path) -> None:
    def pcseg(*arguments: object) -> str:
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        return result.output

    small = ("--max-points", 200, "--json", tmp_path / "probe.json")
    pcseg("probe", run, "--fit", SOURCE, "--test", SOURCE, *small)
    probed = json.loads((tmp_path / "probe.json").read_text())
    assert {"pretrained", "untrained", "raw"} <= probed["methods"].keys()
    out = tmp_path / "fine"
    before = FrozenNetwork.load(run).student.state_dict()
    pcseg("finetune", run, SOURCE, "--out", out, "--steps", 1, "--device", "cpu")
    after, meta = load_checkpoint(out)
    assert meta.license == "CC-BY-NC-4.0" and meta.student["network"] == "ptv3"
    changed = [k for k in after if k in before and not torch.equal(after[k], before[k])]
    assert any(key.endswith("attention.qkv.weight") for key in changed)
    pcseg("segment", SOURCE, "--checkpoint", out, "--out", tmp_path / "labels", "--device", "cpu")
    assert Segmenter.load(out, "cpu").label_space.names == STREET.names
