# SPDX-License-Identifier: Apache-2.0
"""Rounds: the student labels all points of its own training data, a new one learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.distill.cache import read_arrays
from pcseg_core.distill.evidence import Evidence
from pcseg_core.distill.labeling import joined, split
from pcseg_core.distill.lidar_teacher import LidarTeacher, LidarTeacherConfig
from pcseg_core.distill.observation import Observation
from pcseg_core.labels import LabelSpace
from pcseg_core.learning import distill as distilling
from pcseg_core.learning.augment import thinned
from pcseg_core.learning.distill import distill
from pcseg_core.learning.module import TrainingModule
from pcseg_core.learning.recipe import Recipe
from pcseg_core.learning.self_labels import RoundsConfig, SelfLabeler
from pcseg_core.models.student import Student
from pcseg_core.sparse.tensor import SparseTensor
from pcseg_core.vision.espnetv2 import ESPNetv2
from tests.small_runs import SMALL

SOURCE = "simulated:seed=5,sweeps=2,beams=16,columns=256,cameras=1,width=96,height=64"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("weights") / "teacher.safetensors"
    save_file(ESPNetv2(20, 0.5).state_dict(), str(weights))
    return Recipe.model_validate(
        {
            "teacher": {"name": "espnetv2", "weights": weights, "scales": [1.0], "flip": False},
            "student": SMALL.model_dump(),
            "optimizer": {"steps": 2, "batch_size": 1},
            "loss": {"min_confidence": 0.0},
            "rounds": {"count": 1, "views": 1, "beside": "bundled", "split_ground": True},
        }
    )


def sweep_of(xyz: np.ndarray) -> Observation:
    return Observation("a", "a", 0, xyz, xyz, np.zeros(len(xyz), np.float32), np.eye(4))


def test_rounds_have_corruptions_of_their_own(recipe: Recipe) -> None:
    first = recipe.augment.model_copy(update={"corrupt": {"fog": 0.1}})
    for own, expected in ((None, {"fog": 0.1}), ({"snow": 0.2}, {"snow": 0.2}), ({}, {})):
        rounds = recipe.rounds.model_copy(update={"corrupt": own})
        each = recipe.model_copy(update={"augment": first, "rounds": rounds})
        assert each.augment.corrupt == {"fog": 0.1}
        assert each.of_round().augment.corrupt == expected


def test_near_surfaces_are_thinned_to_the_density_of_a_range() -> None:
    rng = np.random.default_rng(0)
    direction = rng.standard_normal((80_000, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    distance = np.repeat([2.0, 5.0, 10.0, 40.0], 20_000)
    kept = thinned((direction * distance[:, None]).astype(np.float32), 10.0, rng)
    shares = kept.reshape(4, -1).mean(1)
    assert shares == pytest.approx([0.04, 0.25, 1, 1], abs=0.01)


def test_cameras_and_the_student_add_up() -> None:
    seen = Evidence(np.array([1], np.int32), np.array([1], np.float32), np.array([[0.9, 0.1]]))
    student = 0.5 * np.array([[0.2, 0.8], [0.2, 0.8], [0, 0]], np.float32)
    found = joined(seen, student)
    assert found.index.tolist() == [0, 1]  # the third is out of the student's range
    assert found.weights == pytest.approx([0.5, 1.5])
    np.testing.assert_allclose(found.sums, [[0.1, 0.4], [1.0, 0.5]], atol=1e-6)


def test_the_student_splits_what_cameras_take_for_each_other() -> None:
    # Classes road, sidewalk, wall. Points 0, 2 and 3 are seen; the student does not know point 3.
    sums = np.array([[0.7, 0.2, 0.1], [0.6, 0.4, 0.0], [0.5, 0.5, 1.0]], np.float32)
    seen = Evidence(np.array([0, 2, 3]), np.array([1, 1, 2], np.float32), sums)
    student = np.array([[0.1, 0.8, 0.1], [1, 0, 0], [0.5, 0.5, 0.0], [0, 0, 0]], np.float32)
    found = split(seen, 0.3 * student, [0, 1])
    # 0.7 * 0.1 against 0.2 * 0.8, with the total 0.9 of both
    expected = [[0.9 * 7 / 23, 0.9 * 16 / 23, 0.1], [0.6, 0.4, 0.0], [0.5, 0.5, 1.0]]
    np.testing.assert_allclose(found.sums, expected, rtol=1e-6)
    np.testing.assert_array_equal(found.weights, seen.weights)
    assert split(seen, student, []) is seen
    np.testing.assert_allclose(seen.sums, sums)  # is not changed


def test_a_student_labels_every_point_in_range_the_same_way_each_time() -> None:
    torch.manual_seed(0)
    student = Student(SMALL, 8)
    rng = np.random.default_rng(1)
    xyz = rng.uniform(-12, 12, (3000, 3)).astype(np.float32) * [1, 1, 0.1]
    xyz = np.concatenate([xyz, [[500, 0, 0]]]).astype(np.float32)
    labeler = SelfLabeler(student, RoundsConfig(views=2, thin_m=(8, 12)), 0)
    sweep = sweep_of(xyz)
    (found,) = labeler.scene([sweep])
    assert found[:-1].sum(1) == pytest.approx(1, abs=1e-4) and not found[-1].any()
    np.testing.assert_array_equal(labeler.scene([sweep])[0], found)


class Fixed(torch.nn.Module):
    """A network that gives every voxel the same probabilities."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(probabilities).log()

    def forward(self, x: SparseTensor) -> SparseTensor:
        return x.replace(self.logits.expand(len(x.feats), -1))


def test_a_network_beside_the_student_has_a_say_in_the_classes_that_it_knows() -> None:
    space = LabelSpace.from_dict(
        {"name": "own", "classes": [{"name": n, "color": [0, 0, 0]} for n in "abc"]}
    )
    student, other = Student(SMALL, 3), Student(SMALL, 2)
    config = LidarTeacherConfig()
    beside = LidarTeacher(other, space, np.array([0, 2]), space, config, "other")
    labeler = SelfLabeler(student, RoundsConfig(views=1, thin_m=(1, 1)), 0, beside)
    labeler._student.network = Fixed([0.5, 0.4, 0.1])
    labeler._beside.network = Fixed([0.2, 0.8])  # type: ignore[union-attr]
    xyz = np.random.default_rng(0).uniform(-5, 5, (50, 3)).astype(np.float32)
    (found,) = labeler.scene([sweep_of(xyz)])
    expected = np.array([(0.5 + 0.2) / 2, 0.4, (0.1 + 0.8) / 2])
    np.testing.assert_allclose(found, np.tile(expected / expected.sum(), (50, 1)), atol=1e-5)


def test_a_round_labels_points_that_no_camera_saw_and_resumes(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill([SOURCE], recipe, tmp_path / "whole", device="cpu")
    whole, metrics = load_checkpoint(tmp_path / "whole")[0], load_checkpoint(tmp_path / "whole")[1]
    assert metrics.metrics["training_s"] > 0
    shares = []
    for folder in ("pseudo_labels", "round-1/pseudo_labels"):
        files = sorted((tmp_path / "whole" / folder).glob("*.npz"))
        shares.append(np.mean([(read_arrays(path)["label"] >= 0).mean() for path in files]))
    assert shares[0] < 0.9 < shares[1]

    real, calls = distilling.train, []

    def killed(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(distilling, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        distill([SOURCE], recipe, tmp_path / "killed", device="cpu")
    monkeypatch.setattr(distilling, "train", real)
    distill([SOURCE], recipe, tmp_path / "killed", device="cpu")
    for name, tensor in load_checkpoint(tmp_path / "killed")[0].items():
        assert torch.allclose(whole[name], tensor, atol=1e-6), name
    distill([SOURCE], recipe, tmp_path / "killed", device="cpu", fresh=True)  # knows its files


def test_a_round_trains_the_student_further_for_steps_of_its_own(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, begun, ended, steps = distilling.train, [], [], []

    def state(module: TrainingModule) -> dict[str, torch.Tensor]:
        return {k: v.clone() for k, v in module.student.state_dict().items()}

    def recorded(
        module: TrainingModule, out: Path, device: str, log: Sequence[str]
    ) -> dict[str, Any]:
        begun.append(state(module))
        figures = real(module, out, device, log)
        ended.append(state(module))
        steps.append(figures["steps"])
        return figures

    monkeypatch.setattr(distilling, "train", recorded)
    rounds = recipe.rounds.model_copy(update={"further": True, "steps": 1, "beside": None})
    distill([SOURCE], recipe.model_copy(update={"rounds": rounds}), tmp_path / "run", device="cpu")
    assert steps == [2, 1]
    for name, tensor in ended[0].items():
        assert torch.equal(begun[1][name], tensor), name
    assert any(not torch.equal(ended[1][name], tensor) for name, tensor in ended[0].items())
