# SPDX-License-Identifier: Apache-2.0
"""WaffleIron: planes by hand, neighbors, sweeps apart from each other, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import SMALL_WAFFLEIRON, STREET, scan, sweep, write_run
from torch import Tensor, nn

from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.cloud import PointCloud
from pcseg_core.config import parse_section
from pcseg_core.errors import InputError
from pcseg_core.learning.finetune import FinetuneRecipe, finetune
from pcseg_core.learning.module import OptimizerConfig
from pcseg_core.models.neighbors import _brute_force, nearest, neighborhoods
from pcseg_core.models.student import Points, Student, StudentConfig
from pcseg_core.models.waffleiron import Plane, SpatialMix, WaffleIron, _window
from pcseg_core.online.segmenter import Segmenter

CONFIG = SMALL_WAFFLEIRON.waffleiron


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    made = Student(SMALL_WAFFLEIRON, 8).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return made


def points(seed: int = 0, count: int = 400, reach_m: float = 10.0) -> Points:
    generator = torch.Generator().manual_seed(seed)
    xyz = (torch.rand(count, 3, generator=generator) - 0.5) * 2 * reach_m
    xyz[:, 2] /= 4
    return Points(xyz, torch.rand(count, generator=generator), torch.zeros(count, dtype=torch.long))


def features(student: Student, given: Points) -> Tensor:
    """Features (N, C) of the points, by their voxels."""
    with torch.no_grad():
        output = student(given)
    return output.features[output.voxels.inverse]


def test_a_plane_holds_the_mean_of_the_points_of_a_cell() -> None:
    """Against a product with the dense matrix of cells and points."""
    generator = torch.Generator().manual_seed(0)
    shape, x = (2, 3, 5), torch.randn(40, 4, generator=generator)
    cell = torch.randint(0, 30, (40,), generator=generator)
    member = (cell[None] == torch.arange(30)[:, None]).float()
    dense = member @ x / member.sum(1, keepdim=True).clamp(min=1)
    plane = Plane.of(cell, shape, x.dtype)
    torch.testing.assert_close(plane.flatten(x).permute(0, 2, 3, 1).reshape(30, 4), dense)
    torch.testing.assert_close(plane.inflate(plane.flatten(x)), dense[cell])


def test_planes_are_seen_along_z_then_y_then_x(student: Student) -> None:
    """Cells of 1 m from (-16, -16, -4); the second point is of a second sweep."""
    network = student.network
    assert isinstance(network, WaffleIron)
    xyz = torch.tensor([[-15.5, -14.5, -1.5], [15.9, 15.9, 3.9]])
    assert network.places(xyz).tolist() == [[0, 1, 2], [31, 31, 7]]
    both = torch.cat([xyz, xyz])
    planes = network.planes(both, torch.tensor([0, 0, 1, 1]), torch.float32)
    assert [p.shape for p in planes] == [(2, 32, 32), (2, 32, 7), (2, 32, 7)]  # z from cell 1 on
    assert [p.cell[0].item() for p in planes] == [0 * 32 + 1, 0 * 7 + 1, 1 * 7 + 1]
    assert [p.cell[3].item() for p in planes] == [2 * 32 * 32 - 1, 2 * 32 * 7 - 1, 2 * 32 * 7 - 1]


def test_the_needed_part_of_a_plane_gives_what_the_whole_gives() -> None:
    """Points in the middle, at both borders, and of two sizes of sweeps."""
    torch.manual_seed(0)
    mix, x = SpatialMix(CONFIG).eval(), torch.randn(24, CONFIG.channels)
    place = torch.tensor([[5, 9], [0, 3], [31, 7], [20, 0]]).repeat_interleave(6, 0)
    place[::2] += torch.tensor([0, 1])
    for batch in (torch.arange(4).repeat_interleave(6), torch.arange(2).repeat_interleave(12)):
        sweeps = int(batch[-1]) + 1
        (row, height), (column, width) = (
            _window(place[:, axis], batch, sweeps, cells) for axis, cells in ((0, 32), (1, 12))
        )
        assert height * width < 32 * 12
        part = Plane.of((batch * height + row) * width + column, (sweeps, height, width), x.dtype)
        cell = (batch * 32 + place[:, 0]) * 12 + place[:, 1]
        with torch.no_grad():
            whole = mix(x, Plane.of(cell, (sweeps, 32, 12), x.dtype))
            torch.testing.assert_close(mix(x, part), whole)


def test_neighbors_are_the_nearest_of_the_same_sweep() -> None:
    both = torch.cat([points(1, 60).xyz, points(2, 40).xyz])
    found = neighborhoods(both, torch.tensor([0] * 60 + [1] * 40), 5)
    apart = torch.cdist(both, both)
    apart[:60, 60:] = apart[60:, :60] = torch.inf
    apart.fill_diagonal_(torch.inf)
    assert torch.equal(found, apart.topk(5, largest=False).indices)
    assert torch.equal(nearest(both, both, 6), _brute_force(both, both, 6))
    few = neighborhoods(both[:3], torch.tensor([0, 0, 1]), 4)
    assert few.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [2, 2, 2, 2]]


def test_order_of_points_does_not_matter(student: Student) -> None:
    network, given = student.network, points()
    assert isinstance(network, WaffleIron)
    voxels = student.voxelize(given)
    x = student.sparse_input(given, voxels)
    xyz, batch = x.feats[:, [1, 2, 3]] * torch.tensor([30, 30, 2]), x.coords[:, 0].long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        straight = network._inside(x.feats, xyz, batch)
        shuffled = network._inside(x.feats[order], xyz[order], batch)
    torch.testing.assert_close(shuffled, straight[order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network.features(x), straight)


def test_sweeps_of_a_batch_do_not_see_each_other(student: Student) -> None:
    first, second = points(1), points(2, 300)
    both = Points(
        torch.cat([first.xyz, second.xyz]),
        torch.cat([first.intensity, second.intensity]),
        torch.tensor([0] * 400 + [1] * 300),
    )
    alone = torch.cat([features(student, first), features(student, second)])
    torch.testing.assert_close(features(student, both), alone, atol=1e-5, rtol=1e-5)


def test_voxels_outside_of_the_box_take_the_nearest_answer(student: Student) -> None:
    inside = points()
    far = torch.tensor([[0.0, 0.0, 9.0], [0.0, -40.0, 0.0]])
    more = Points(
        torch.cat([inside.xyz, far, torch.tensor([[30.0, 0.0, 0.0]])]),
        torch.cat([inside.intensity, torch.zeros(3)]),
        torch.tensor([0] * 402 + [1]),
    )
    given = features(student, more)
    torch.testing.assert_close(given[:400], features(student, inside))
    voxels = student.voxelize(inside)
    centers = student.sparse_input(inside, voxels).feats[:, 1:4] * torch.tensor([30, 30, 2])
    for row, point in zip(given[400:402], far, strict=True):
        voxel = torch.cdist(point[None], centers).argmin()
        member = int((voxels.inverse == voxel).nonzero()[0])
        torch.testing.assert_close(row, given[member])
    assert not given[402].any()  # its sweep has no voxel in the box


def test_every_parameter_gets_a_gradient(student: Student) -> None:
    student.train()
    student(points()).logits.square().mean().backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().max() > 0), name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 34}, "depth: of the network 'minkunet', but 'network' is 'waffleiron'"),
        ({"network": "minkunet"}, "waffleiron: of the network 'waffleiron'"),
        ({"inputs": ["z", "intensity"]}, "expected x, y and z among them"),
        ({"waffleiron": {"box_max_m": [-70, 16, 16]}}, "expected less than box_max_m"),
        ({"waffleiron": {"cells": [32, 32, 0]}}, "cells .*expected 1 to 2048"),
        ({"waffleiron": {"layer": 3}}, "unknown key 'waffleiron.layer' .*'layers'"),
        ({"network": "waffle"}, "'network' is 'waffle'"),
    ],
)
def test_options_that_do_not_fit_are_refused(values: dict[str, object], message: str) -> None:
    described = SMALL_WAFFLEIRON.model_dump(mode="json")
    with pytest.raises(InputError, match=message):
        parse_section({**described, **values}, StudentConfig)


def test_a_run_is_trained_saved_and_segments(tmp_path: Path) -> None:
    """Classes follow from the height; a few steps must learn something of it."""
    pretrained = write_run(tmp_path / "start", **dict(SMALL_WAFFLEIRON))
    optimizer = OptimizerConfig(steps=60, batch_size=1)
    sweeps, test = [sweep("a", seed=3), sweep("b", seed=4)], [scan(9)]
    recipe = FinetuneRecipe(optimizer=optimizer, trunk_learning_rate=0.01)
    out = tmp_path / "run"
    metrics = finetune(pretrained, sweeps, test, STREET, recipe, out, "cpu")
    assert metrics["test"]["accuracy"] > 0.7  # half is chance
    _, meta = load_checkpoint(out)
    assert StudentConfig.model_validate(meta.student) == SMALL_WAFFLEIRON
    segmenter = Segmenter.load(out, "cpu")
    labels = segmenter.segment(PointCloud(test[0].xyz, test[0].intensity)).labels
    known = test[0].truth >= 0
    right = int((labels[known] == test[0].truth[known]).sum())
    assert right == np.trace(metrics["test"]["confusion"])
