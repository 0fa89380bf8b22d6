# SPDX-License-Identifier: Apache-2.0
"""Every tensor of a published network is used, and the student gives what the network gives.

The published passes are dense: see `published`. The cells of the points follow the rules of the
published readers, written out here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from published import PLANES, PublishedNetwork, narrow, openscene, slidr, spvnas, superflow
from safetensors.torch import save_file

from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.importers.minkunet import reordered
from pcseg_core.importers.run import import_weights
from pcseg_core.labels import NO_CLASSES
from pcseg_core.learning.probe import by_point, run_student
from pcseg_core.models.student import Student, StudentConfig, load_student

SIDE = 32
SMALL = narrow(PLANES)


def loaded(run: Path) -> Student:
    state, meta = load_checkpoint(run)
    config = StudentConfig.model_validate(meta.student)
    return load_student(config, len(meta.label_space["classes"]), state, run).eval()


def imported(tmp_path: Path, family: str, content: object, **options: object) -> Path:
    torch.save(content, tmp_path / "weights.pt")
    import_weights(tmp_path / "weights.pt", family, tmp_path / "run", **options)  # type: ignore[arg-type]
    return tmp_path / "run"


def cells_of(count: int, low: int) -> np.ndarray:
    """(N, 3) cells with several points in each, within SIDE cells from `low` on."""
    rng = np.random.default_rng(count)
    cells = rng.integers(low + 1, low + SIDE, (count, 3))
    return rng.permutation(np.concatenate([cells, cells[: count // 3]]))


def dense_logits(
    network: PublishedNetwork, cells: np.ndarray, values: np.ndarray, low: np.ndarray
) -> torch.Tensor:
    """(N, C) features of the points from their cells and published inputs; the first point wins."""
    index = torch.from_numpy(cells - low)
    grid, mask = torch.zeros(network.channels, SIDE, SIDE, SIDE), torch.zeros(1, SIDE, SIDE, SIDE)
    for (x, y, z), value in zip(index.tolist()[::-1], values[::-1], strict=True):
        grid[:, x, y, z], mask[:, x, y, z] = torch.from_numpy(value.astype(np.float32)), 1
    found = network.dense(grid, mask)
    return found[:, index[:, 0], index[:, 1], index[:, 2]].t()


def answers(run: Path, xyz: np.ndarray, intensity: np.ndarray) -> np.ndarray:
    output = run_student(loaded(run), xyz.astype(np.float32), intensity.astype(np.float32))
    return by_point(output.logits, output)


def polar(rho: np.ndarray, phi_deg: np.ndarray, z: np.ndarray) -> np.ndarray:
    phi = np.radians(phi_deg)
    return np.stack([rho * np.cos(phi), rho * np.sin(phi), z], 1)


@pytest.mark.parametrize(
    ("count", "outputs", "classes"), [(1, 17, 16), (300, 17, 16), (300, 20, 19)]
)
def test_slidr_equals_a_dense_pass(count: int, outputs: int, classes: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = slidr(outputs=outputs, planes=SMALL)
    run = imported(tmp_path, "slidr", {"model_points": network.state})
    cells = cells_of(count, -SIDE // 2)
    cells[:, 0] += SIDE // 2  # radius
    rng = np.random.default_rng(0)
    rho, phi, z = ((cells + rng.uniform(0.2, 0.8, cells.shape)) * (0.1, 1, 0.1)).T
    intensity = rng.integers(0, 256, len(cells)) / 255
    given = 255 * intensity if outputs == 17 else intensity + 1  # nuScenes, SemanticKITTI
    low = np.array([0, -SIDE // 2, -SIDE // 2])
    wanted = dense_logits(network, cells, given[:, None], low) @ network.state["final.kernel"]
    wanted = (wanted + network.state["final.bias"])[:, 1:]  # row 0 is "ignored"
    found = answers(run, polar(rho, phi, z), intensity)
    assert found.shape == (len(cells), classes)
    assert np.abs(found - wanted.numpy()).max() <= 1e-4 * max(1, wanted.abs().max())


@pytest.mark.parametrize("count", [1, 300])
def test_superflow_equals_a_dense_pass(count: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = superflow(planes=SMALL)
    state = {f"backbone.{key}": value for key, value in network.state.items()}
    network.linear("decode_head.conv_seg", 17)
    head = {k: v for k, v in network.state.items() if k.startswith("decode_head")}
    run = imported(tmp_path, "superflow", {"meta": {"epoch": 3}, "state_dict": {**state, **head}})
    cells = cells_of(count, 5)
    rng = np.random.default_rng(0)
    rho, phi, z = ((cells + rng.uniform(-0.3, 0.3, cells.shape)) * (0.1, 1, 0.1)).T  # rounded
    xyz, intensity = polar(rho, phi, z), rng.integers(0, 256, len(cells)) / 255
    given = np.concatenate([xyz, 255 * intensity[:, None]], 1)
    features = dense_logits(network, cells, given, cells.min(0))
    weight, bias = (head[f"decode_head.conv_seg.{name}"] for name in ("weight", "bias"))
    wanted = (features @ weight.t() + bias)[:, :16]  # row 16 is "ignored"
    found = answers(run, xyz, intensity)
    assert np.abs(found - wanted.numpy()).max() <= 1e-4 * max(1, wanted.abs().max())


@pytest.mark.parametrize("divisor", [8, 10])  # 10: odd widths, which are padded
def test_spvnas_equals_a_dense_pass(divisor: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = spvnas(planes=narrow(PLANES, divisor))
    run = imported(tmp_path, "spvnas", {"model": network.state})
    cells = cells_of(300, -7)
    rng = np.random.default_rng(0)
    xyz = (cells + rng.uniform(-0.3, 0.3, cells.shape)) * 0.05
    intensity = rng.random(len(cells))
    given = np.concatenate([xyz, intensity[:, None]], 1)
    features = dense_logits(network, cells, given, cells.min(0))
    weight, bias = (network.state[f"classifier.0.{name}"] for name in ("weight", "bias"))
    wanted = features @ weight.t() + bias
    found = answers(run, xyz, intensity)
    assert np.abs(found - wanted.numpy()).max() <= 1e-4 * max(1, wanted.abs().max())


def test_openscene_equals_a_dense_pass(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = openscene(512, planes=narrow((32, 64, 128, 256, 128, 128, 96, 96)))
    state = {f"module.net3d.{key}": value for key, value in network.state.items()}
    content = {"state_dict": state, "epoch": 20, "best_iou": np.float64(0.5), "optimizer": {}}
    run = imported(tmp_path, "openscene", content)
    cells = cells_of(300, 3)
    xyz = (cells + 0.5) * 0.05
    features = dense_logits(network, cells, np.ones((len(cells), 3)), cells.min(0))
    wanted = features @ network.state["final.kernel"]
    student = loaded(run)
    output = run_student(student, xyz.astype(np.float32), np.zeros(len(xyz), np.float32))
    assert output.text_head is not None
    found = by_point(output.text_head(output.features).detach(), output)
    assert np.abs(found - wanted.numpy()).max() <= 1e-4 * max(1, wanted.abs().max())


@pytest.mark.parametrize(
    ("family", "build"), [("slidr", slidr), ("superflow", superflow)], ids=["slidr", "superflow"]
)
@pytest.mark.parametrize(
    ("depth", "wrapper"),
    [(14, ""), (18, "state_dict.model."), (34, "state_dict.module.backbone_3d.")],
)
def test_every_depth_and_wrapper(
    depth: int, family: str, build: Callable[..., PublishedNetwork], wrapper: str, tmp_path: Path
) -> None:
    """Nothing is missing and nothing left over, or the import fails; and no weight is lost."""
    network = build(depth=depth, planes=SMALL)
    state = {f"{wrapper}{key}": value.contiguous() for key, value in network.state.items()}
    save_file(state, str(tmp_path / "weights.safetensors"))
    figures = import_weights(tmp_path / "weights.safetensors", family, tmp_path / "run")
    _, meta = load_checkpoint(tmp_path / "run")
    assert meta.student["depth"] == depth and meta.label_space == NO_CLASSES.to_dict()
    names = ("final.", "num_batches", "running_")
    used = sum(v.numel() for k, v in network.state.items() if not any(n in k for n in names))
    assert figures["parameters"] == used + SMALL[-1] + 1  # and a classifier of one class


def test_reordering_is_its_own_inverse() -> None:
    weight = torch.arange(125.0).reshape(125, 1, 1)
    turned = reordered(weight, 5)
    assert torch.equal(reordered(turned, 5), weight)
    assert turned[1] == 25 and turned[5] == 5 and turned[25] == 1  # z fastest: (0, 0, 1) is second
