# SPDX-License-Identifier: Apache-2.0
"""A 3D teacher: its targets, what is learned from them, resuming, and what cannot teach."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import SMALL, STREET, semantic_kitti
from typer.testing import CliRunner

from pcseg_core.checkpoint import FILE_NAME, CheckpointMeta, load_checkpoint, save_checkpoint
from pcseg_core.cli import app
from pcseg_core.cloud import PointCloud
from pcseg_core.data import open_recording
from pcseg_core.distill.cache import read_arrays
from pcseg_core.distill.lidar_teacher import (
    LidarTargets,
    LidarTeacher,
    LidarTeacherConfig,
    grouped_log_probabilities,
    load_lidar_teacher,
)
from pcseg_core.distill.losses import soft_divergence
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE, NO_CLASSES, LabelSpace
from pcseg_core.learning.augment import AugmentConfig
from pcseg_core.learning.dataset import StepDataset, TrainingSweep
from pcseg_core.learning.distill import distill
from pcseg_core.learning.objectives.lidar_teacher import LidarDistillation
from pcseg_core.learning.recipe import Recipe, load_recipe
from pcseg_core.learning.sectors import LabeledSectors
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.online.segmenter import Segmenter

SEEING = "simulated:seed=5,sweeps=1,beams=8,columns=128,cameras=1,width=96,height=64"
COARSE = StudentConfig(depth=14, width=0.25, voxel_size_m=0.8, max_range_m=20)
CAMERA = {"weights": "bundled:simulation_teacher", "label_space": "simulation", "flip": False}
OTHER = {
    "name": "mine",
    "classes": [
        {"name": "asphalt", "color": [1, 2, 3]},
        {"name": "Car", "color": [4, 5, 6]},
        {"name": "cow", "color": [7, 8, 9]},
    ],
}

COWS = {**OTHER, "classes": OTHER["classes"][2:]}


def write(folder: Path, space: LabelSpace = STREET, config: StudentConfig = COARSE) -> Path:
    """A run with random weights."""
    torch.manual_seed(3)
    student = Student(config, len(space))
    meta = CheckpointMeta(student=config.model_dump(mode="json"), label_space=space.to_dict())
    save_checkpoint(folder / FILE_NAME, student.state_dict(), meta)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A recording without cameras and poses."""
    return f"semantic-kitti:{semantic_kitti(tmp_path_factory.mktemp('drive') / '00', 2)}"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Camera labels that several tests share."""
    return tmp_path_factory.mktemp("cache")


def recipe(teacher_3d: dict[str, Any], **values: Any) -> Recipe:
    small = {"student": SMALL, "optimizer": {"steps": 4, "batch_size": 1}}
    loss = {"min_confidence": 0.0}
    return Recipe.model_validate({"teacher_3d": teacher_3d, "loss": loss, **small, **values})


def load(run: Path, space: LabelSpace = STREET, **values: Any) -> LidarTeacher:
    return load_lidar_teacher(LidarTeacherConfig(run=run, **values), space)


def test_targets_are_the_teachers_own_answers_at_all_points_within_its_range(
    run: Path, blind: str
) -> None:
    cloud = open_recording(blind)[0].cloud
    xyz = np.concatenate([cloud.xyz, [[200.0, 0, 0]]]).astype(np.float32)
    intensity = np.append(cloud.intensity, 0.5).astype(np.float32)
    segmenter = Segmenter.load(run, device="cpu", precision="fp32")
    expected = segmenter.segment(PointCloud(xyz, intensity), probabilities=True)
    found = load(run, features=1.0).targets(xyz, intensity)
    inside = np.linalg.norm(xyz, axis=1) <= 20
    assert 100 < inside.sum() < len(xyz) and (found.voxel[~inside] == IGNORE).all()
    rows = found.voxel[inside]
    assert found.features.shape == (rows.max() + 1, segmenter.student.network.feature_channels)
    likely = np.exp(found.log_probabilities[rows].astype(np.float32))
    assert np.allclose(likely, expected.probabilities[inside], atol=2e-3)
    label, confidence = found.labels()
    assert (label[~inside] == IGNORE).all() and (confidence[~inside] == 0).all()
    sure = expected.confidence > np.sort(expected.probabilities, 1)[:, -2] + 0.01
    assert (label == expected.labels)[inside & sure].all()
    assert np.allclose(confidence, expected.confidence, atol=2e-3)


def test_voxels_of_the_student_take_the_mean_of_their_points(run: Path) -> None:
    """Teacher voxels of 0.8 m, student voxels of 0.5 m; the loss by hand."""
    teacher = load(run, temperature=2.0, logits=0.5)
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-4, 4, (300, 3)).astype(np.float32)
    intensity = rng.random(300).astype(np.float32)
    targets = teacher.targets(xyz, intensity)
    label, confidence = targets.labels()
    sweep = TrainingSweep(xyz, intensity, label, confidence, "a", lidar=targets)
    settings = recipe(
        {"run": run},
        augment=dict.fromkeys(AugmentConfig.model_fields, 0) | {"beam_deg": 1, "corrupt": {}},
        optimizer={"batch_size": 2, "sector_deg": 360},
    )
    batch = StepDataset(LabeledSectors([sweep], settings), 0, 1)[0]
    assert batch.lidar is not None and len(batch.lidar.point) == len(batch.points.xyz) == 600
    student = Student(SMALL, len(STREET))
    output = student(batch.points)
    counts = np.ones(len(STREET), np.int64)
    every = np.ones(len(STREET), bool)
    found = LidarDistillation(teacher, every, counts, 0.0, 96).losses(output, batch)
    assert set(found) == {"teacher_3d"}
    likely = np.exp(targets.log_probabilities[targets.voxel].astype(np.float64))
    likely = np.concatenate([likely, likely])  # two sectors with all points
    inverse, losses, weights = output.voxels.inverse.numpy(), [], []
    logits = output.logits.detach().numpy().astype(np.float64)
    for voxel in np.unique(inverse):
        q = likely[inverse == voxel].mean(0)
        soft = np.sqrt(q) / np.sqrt(q).sum()
        own = np.exp(logits[voxel] / 2) / np.exp(logits[voxel] / 2).sum()
        losses.append(4 * (soft * np.log(soft / own)).sum())
        weights.append(q.sum())
    expected = 0.5 * np.average(losses, weights=weights)
    assert found["teacher_3d"].item() == pytest.approx(expected, rel=1e-4)


def test_the_divergence_is_zero_at_the_teacher_and_weighs_voxels() -> None:
    likely = torch.tensor([[0.9, 0.1], [0.2, 0.2]])
    own = torch.stack([likely[0].log(), torch.zeros(2)])
    weight = likely.sum(1)
    assert float(soft_divergence(own, likely, weight, 3.0)) == pytest.approx(0, abs=1e-6)
    wrong = torch.tensor([[0.0, 0.0], [2.0, 0.0]], requires_grad=True)
    a, b = np.array([0.9, 0.1]), 1 / (1 + np.exp(-np.array([2.0, -2.0])))
    first, second = (a * np.log(a / 0.5)).sum(), (0.5 * np.log(0.5 / b)).sum()
    loss = soft_divergence(wrong, likely, weight, 1.0)
    assert float(loss.detach()) == pytest.approx((first + 0.4 * second) / 1.4, rel=1e-5)
    loss.backward()
    assert wrong.grad is not None and bool(torch.isfinite(wrong.grad).all())


def test_classes_are_added_up_by_group() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    found = grouped_log_probabilities(logits, np.array([1, 1, IGNORE, 0]), 3)
    p = np.exp([0, 1, 2, 3.0]) / np.exp([0, 1, 2, 3.0]).sum()
    assert np.allclose(np.exp(found[0].astype(float)), [p[3], p[0] + p[1], 0], atol=1e-3)


def test_names_of_the_teacher_map_as_those_of_a_camera_teacher(tmp_path: Path) -> None:
    other = write(tmp_path / "other", LabelSpace.from_dict(OTHER))
    with pytest.raises(InputError, match=r"1 of 3 classes.*'cow'.*under 'mapping'"):
        load(other)
    found = load(other, ignore=("cow",))
    assert found.mapped == {"asphalt": "road", "Car": "vehicle", "cow": None}
    assert found.knows.nonzero()[0].tolist() == [STREET.index("road"), STREET.index("vehicle")]
    moved = load(other, mapping={"person": ("cow",)}).mapped
    assert moved == {"asphalt": "road", "Car": "vehicle", "cow": "person"}
    cows = write(tmp_path / "cows", LabelSpace.from_dict(COWS))
    with pytest.raises(InputError, match=r"none of its classes \(cow\) is in label space 'street'"):
        load(cows, ignore=("*",))
    kitti = write(tmp_path / "kitti", LabelSpace.load("semantic_kitti"))
    assert load(kitti).mapped["truck"] == "vehicle"


def test_recordings_without_cameras_teach_and_runs_resume_bit_for_bit(
    run: Path, blind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pcseg_core.learning.module as module

    monkeypatch.setattr(module, "STEPS_PER_EPOCH", 2)
    chosen = recipe({"run": run, "features": 0.5})
    whole = distill([blind], chosen, tmp_path / "whole", device="cpu")
    assert whole["sweeps"] == 2 and {"teacher_3d", "features_3d"} <= set(whole["final"])
    taught = [read_arrays(p) for p in (tmp_path / "whole" / "pseudo_labels").glob("*.npz")]
    near = [np.linalg.norm(t["xyz"], axis=1) <= 20 for t in taught]
    assert all(((t["label"] >= 0) == n).all() for t, n in zip(taught, near))
    real, calls = module.TrainingModule.training_step, []

    def fragile(self: object, batch: object, index: int) -> torch.Tensor:
        calls.append(index)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, batch, index)

    monkeypatch.setattr(module.TrainingModule, "training_step", fragile)
    with pytest.raises(BaseException):  # noqa: B017  Lightning's own exit
        distill([blind], chosen, tmp_path / "cut", device="cpu")
    assert not (tmp_path / "cut" / FILE_NAME).exists()
    monkeypatch.setattr(module.TrainingModule, "training_step", real)
    with monkeypatch.context() as patch:
        patch.setattr(LidarTeacher, "targets", None)  # stored targets are not made again
        distill([blind], chosen, tmp_path / "cut", device="cpu")
    one, two = (load_checkpoint(tmp_path / name)[0] for name in ("whole", "cut"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert all(name.startswith("network.") for name in one)  # the layer to its features is gone


def test_cameras_and_a_3d_teacher_teach_together(blind: str, cache: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", LabelSpace.from_dict(OTHER))
    both = recipe({"run": other, "ignore": ["cow"]}, teacher=CAMERA)
    cameras = Recipe.model_validate({**dict(both), "teacher_3d": None})
    figures = {}
    for name, chosen in (("both", both), ("cameras", cameras)):
        figures[name] = distill([SEEING], chosen, tmp_path / name, cache, "cpu")
    assert {"cross_entropy", "teacher_3d"} <= set(figures["both"]["final"])
    two = [read_arrays(p) for p in sorted((tmp_path / "both" / "pseudo_labels").glob("*.npz"))]
    one = [read_arrays(p) for p in sorted((tmp_path / "cameras" / "pseudo_labels").glob("*.npz"))]
    for mine, theirs in zip(two, one):
        seen = theirs["label"] != IGNORE
        assert (mine["label"][seen] == theirs["label"][seen]).all()
        assert (mine["label"][~seen] != IGNORE).sum() > 50
    unseen = distill([blind], both, tmp_path / "unseen", device="cpu")
    assert unseen["sweeps"] == 2 and not unseen["skipped"]


def test_a_pretrained_run_teaches_its_features_to_a_network_without_classes(
    blind: str, cache: Path, tmp_path: Path
) -> None:
    large = write(tmp_path / "large", NO_CLASSES)
    state, meta = load_checkpoint(large)
    licensed = meta.model_copy(update={"license": "CC BY-NC 4.0"})
    save_checkpoint(large / FILE_NAME, state, licensed)
    metrics = distill([blind], recipe({"run": large}), tmp_path / "run", device="cpu")
    assert set(metrics["final"]) == {"features_3d", "loss"}
    state, meta = load_checkpoint(tmp_path / "run")
    assert meta.label_space["name"] == NO_CLASSES.name
    assert meta.license == "CC BY-NC 4.0"  # of what taught it
    assert not np.allclose(state["network.stem.0.weight"], 0)
    labeled = recipe({"run": large}, teacher=CAMERA, optimizer={"steps": 1, "batch_size": 1})
    with_cameras = distill([SEEING], labeled, tmp_path / "seen", cache, "cpu")
    assert {"features_3d", "cross_entropy"} <= set(with_cameras["final"])
    with pytest.raises(InputError, match=r"has no classes; give teacher_3d\.features"):
        load(large, features=0.0)


def test_what_cannot_teach_is_refused_before_the_work(
    run: Path, blind: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no run; give --teacher-3d RUN"):
        distill([blind], recipe({}), tmp_path / "a")
    with pytest.raises(InputError, match="no checkpoint at .*expected a run directory"):
        distill([blind], recipe({"run": tmp_path / "none"}), tmp_path / "a")
    own = shutil.copytree(run, tmp_path / "own")
    with pytest.raises(InputError, match="is the run that would be trained; choose another --out"):
        distill([blind], recipe({"run": own}), own)
    assert not (tmp_path / "a").exists()
    for changes in ({"supervision": "seen"}, {"optimizer": {"heads_only": True}}):
        with pytest.raises(ValueError, match="'teacher_3d' trains all of the student"):
            recipe({"run": run}, **changes)
    with pytest.raises(ValueError, match=r"loss\.regression needs image features"):
        recipe({"run": run}, loss={"regression": 1.0})
    wild = load(run)
    with torch.no_grad():
        wild.student.network.classifier.weight[0, 0] = torch.inf
    with pytest.raises(InputError, match="not finite numbers for sweep a-3; .* another run"):
        wild.targets(np.ones((5, 3), np.float32), np.ones(5, np.float32), "a-3")


def test_recipes_and_the_command_name_the_run(run: Path, blind: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"teacher-3d: {run.name}\nstudent: {{depth: 14}}\n")
    shutil.copytree(run, tmp_path / run.name)
    assert load_recipe(tmp_path / "recipe.yaml").teacher_3d.run == tmp_path / run.name
    words = ["distill", blind, "--teacher-3d", str(run), "--steps", "1", "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert f"recipe small; no camera teacher; 3D teacher {run}" in done.output
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored["teacher_3d"]["run"] == str(run)
    same = CliRunner().invoke(app, [*words, "--out", str(run)])
    assert same.exit_code == 2 and "is the run of --teacher-3d" in same.output


def test_targets_of_no_point_are_empty(run: Path) -> None:
    found = load(run).targets(np.full((3, 3), 99, np.float32), np.ones(3, np.float32))
    assert isinstance(found, LidarTargets) and (found.labels()[0] == IGNORE).all()
