# SPDX-License-Identifier: Apache-2.0
"""Distillation end to end on a small simulated drive: seeds, resuming, refusals, faults."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.confidence import ConfidenceConfig
from pcseg_core.config import read_yaml
from pcseg_core.data import open_recording
from pcseg_core.data.label_files import labels_yaml, raw_ids_of
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.distill.cache import read_arrays
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.distill import distill
from pcseg_core.learning.pretrain import pretrain
from pcseg_core.learning.recipe import LossConfig, OptimizerConfig, Recipe, TextConfig, load_recipe
from pcseg_core.learning.run_folder import claim
from pcseg_core.learning.zero_shot import zero_shot
from pcseg_core.learning.zero_shot_split import load_split
from pcseg_core.models.student import StudentConfig
from pcseg_core.online.prompts import class_vectors
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.vision.encoder_kinds import ESPNetv2FeaturesConfig
from pcseg_core.vision.espnetv2 import ESPNetv2
from pcseg_core.vision.teachers.espnetv2 import ESPNetv2Config
from pcseg_core.vision.text_space import TextSpaceConfig

STREET = LabelSpace.load("street")
SOURCE = "simulated:seed=5,sweeps=3,beams=16,columns=256,cameras=1,width=96,height=64"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("weights") / "teacher.safetensors"
    save_file(ESPNetv2(20, 0.5).state_dict(), str(weights))
    return Recipe(
        teacher=ESPNetv2Config(weights=weights, scales=(1.0,), flip=False),
        student=StudentConfig(depth=14, width=0.25, voxel_size_m=0.5),
        optimizer=OptimizerConfig(steps=6, batch_size=1),
        loss=LossConfig(min_confidence=0.0),
    )


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pcseg_core.learning.module.STEPS_PER_EPOCH", 2)
        distill([SOURCE], recipe, out, device="cpu")
    return out


def test_a_run_stores_the_distribution_of_its_data(whole: Path) -> None:
    inputs = load_checkpoint(whole)[1].inputs
    assert inputs is not None and inputs.intensity_scale is None  # simulated, no bag


def test_training_stops_when_the_loss_is_lost(recipe: Recipe, tmp_path: Path) -> None:
    wild = recipe.optimizer.model_copy(update={"learning_rate": 1e30, "warmup": 0.0})
    with pytest.raises(PcsegError, match=r"diverged: the loss is (nan|inf) at step [1-5]; lower"):
        distill(
            [SOURCE], recipe.model_copy(update={"optimizer": wild}), tmp_path / "run", device="cpu"
        )
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_a_run_leaves_a_segmenter_and_what_it_was_taught(whole: Path) -> None:
    metrics = load_checkpoint(whole)[1].metrics
    assert metrics["sweeps"] == 3 and metrics["steps"] == 6
    assert sum(metrics["class_shares"].values()) == pytest.approx(1, abs=1e-3)
    sample = open_recording(SOURCE)[0]
    result = Segmenter.load(whole, device="cpu", precision="fp32").segment(sample.cloud)
    near = np.linalg.norm(sample.cloud.xyz, axis=1) < 80
    assert near.any() and (result.labels[near] >= 0).all()
    taught = [read_arrays(path) for path in sorted((whole / "pseudo_labels").glob("*.npz"))]
    assert len(taught) == 3 and all((t["label"] >= 0).any() for t in taught)
    assert set(taught[0]) == {"xyz", "intensity", "label", "confidence", "scene"}


def test_the_confidence_is_calibrated_on_sweeps_that_are_held_out(
    recipe: Recipe, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcseg_core.learning.confidence._FEWEST_SWEEPS", 1)
    monkeypatch.setattr("pcseg_core.learning.confidence._FEWEST_POINTS", 100)
    short = {
        "confidence": ConfidenceConfig(held_out=0.34),
        "optimizer": OptimizerConfig(steps=1, batch_size=1),
    }
    found = distill(
        [SOURCE], recipe.model_copy(update=short), tmp_path / "run", whole / "cache", "cpu"
    )
    assert (found["sweeps"], found["held_out"]) == (2, 1)
    scaling = load_checkpoint(tmp_path / "run")[1].confidence
    assert scaling is not None and (scaling.sweeps, scaling.held_out) == (1, True)
    assert load_checkpoint(whole)[1].metrics["held_out"] == 0  # of three sweeps


def test_corrected_labels_are_taught(recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    points = len(open_recording(SOURCE)[1].cloud)
    file = tmp_path / "corrected" / "000001.label"
    file.parent.mkdir()
    (file.parent / "labels.yaml").write_text(labels_yaml(STREET, raw_ids_of(STREET)))
    file.write_bytes(np.full(points, 1 + STREET.index("terrain"), "<u4").tobytes())
    short = recipe.model_copy(update={"optimizer": OptimizerConfig(steps=1, batch_size=1)})

    def run() -> dict[str, object]:
        where = (tmp_path / "run", whole / "cache", "cpu")
        return distill([SOURCE], short, *where, corrected=file.parent)

    figures = run()["corrected"]
    assert figures["sweeps"] == 1 and figures["carried"] > 0
    taught = [read_arrays(path) for path in sorted((tmp_path / "run/pseudo_labels").glob("*.npz"))]
    assert set(taught[1]["label"].tolist()) == {STREET.index("terrain")}
    assert (taught[1]["confidence"] == 1).all()
    assert len(set(taught[0]["label"].tolist())) > 1
    shutil.rmtree(tmp_path / "run")
    file.write_bytes(b"\0" * 40)
    with pytest.raises(InputError, match=r"000001\.label: 10 labels for a sweep of"):
        run()
    assert not (tmp_path / "run").exists()


def test_all_files_of_a_run_follow_the_umask_and_are_known(whole: Path, tmp_path: Path) -> None:
    mask = os.umask(0o022)
    os.umask(mask)
    files = [path for path in whole.rglob("*") if path.is_file()]
    assert {"last.ckpt", "checkpoint.safetensors", "metrics.json"} <= {p.name for p in files}
    for path in files:
        assert path.stat().st_mode & 0o666 == 0o666 & ~mask, path
    copy = shutil.copytree(whole, tmp_path / "run")
    content = read_yaml(copy / "recipe.yaml")
    changed = Recipe.model_validate({**content["recipe"], "seed": 7})
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="did not write .notes.txt."):
        claim(copy, changed, [SOURCE], fresh=True)
    assert len([path for path in copy.rglob("*") if path.is_file()]) == len(files) + 1
    (copy / "notes.txt").unlink()
    claim(copy, changed, [SOURCE], fresh=True)
    assert [path.name for path in copy.rglob("*")] == ["recipe.yaml"]
    claim(copy, Recipe.model_validate({**content["recipe"], "seed": 8}), [SOURCE])  # no results yet
    (copy / "last.ckpt").write_bytes(b"a training has started")
    with pytest.raises(InputError, match="another recipe"):
        claim(copy, Recipe.model_validate(content["recipe"]), [SOURCE])


class _KilledError(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_result(
    whole: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pcseg_core.learning.module as module

    monkeypatch.setattr(module, "STEPS_PER_EPOCH", 2)
    real, steps = module.TrainingModule.training_step, []

    def fragile(self: object, batch: object, index: int) -> torch.Tensor:
        steps.append(index)
        if len(steps) == 4:
            raise _KilledError
        return real(self, batch, index)

    monkeypatch.setattr(module.TrainingModule, "training_step", fragile)
    out = tmp_path / "killed"
    with pytest.raises(_KilledError):
        distill([SOURCE], recipe, out, device="cpu")
    assert not (out / "checkpoint.safetensors").exists()
    monkeypatch.setattr(module.TrainingModule, "training_step", real)
    distill([SOURCE], recipe, out, device="cpu")
    resumed, expected = load_checkpoint(out)[0], load_checkpoint(whole)[0]
    assert resumed.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(resumed[name], tensor, atol=1e-6), name


def test_a_run_directory_belongs_to_one_recipe(whole: Path, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another recipe"):
        distill([SOURCE], recipe.model_copy(update={"seed": 1}), whole, device="cpu")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not a run directory"):
        distill([SOURCE], recipe, tmp_path, device="cpu")


class _Poisoned:
    """A drive with an image that does not decode, a cloud of NaN and a camera that sees nothing."""

    name, label_space, pose_source = "poisoned", None, "none"
    scenes = ("a", "a", "a", "a")
    skipped: Counter[str] = Counter()

    def __init__(self) -> None:
        self.samples = [open_recording(SOURCE)[i % 3] for i in range(4)]

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        if index == 1:
            frame = sample.cameras[0]

            def broken() -> np.ndarray:
                raise InputError("camera_0 at 3: the image does not decode")

            sample.cameras = [
                CameraFrame(frame.name, frame.stamp_ns, frame.camera, frame.T_cam_lidar, broken)
            ]
        if index == 2:
            sample.cloud.xyz = np.full_like(sample.cloud.xyz, np.nan)
        if index == 3:
            sample.cameras = []
        return sample


def test_poisoned_sweeps_are_counted_and_skipped(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pcseg_core.learning.runs.open_recording", lambda _, **__: _Poisoned())
    short = recipe.model_copy(update={"optimizer": OptimizerConfig(steps=1, batch_size=1)})
    metrics = distill(["poisoned"], short, tmp_path / "run", device="cpu")
    assert "1 street, 2 m, 1 place: expect a segmenter for this street" in capsys.readouterr().err
    assert metrics["sweeps"] == 1
    assert sum(metrics["skipped"].values()) == 3
    reasons = " ".join(metrics["skipped"])
    assert "does not decode" in reasons and "no finite points" in reasons and "no camera" in reasons


def test_features_can_be_regressed(recipe: Recipe, tmp_path: Path) -> None:
    loss = LossConfig(cross_entropy=0, lovasz=0, regression=1)
    optimizer = OptimizerConfig(steps=2, batch_size=1, sector_deg=360)
    wanted = recipe.model_copy(update={"loss": loss, "optimizer": optimizer})
    metrics = distill([SOURCE], wanted, tmp_path / "run", device="cpu")
    assert 0 < metrics["final"]["regression"] < 2
    assert Segmenter.load(tmp_path / "run", device="cpu").student.config.feature_channels == 32


def test_alignment_and_self_training_are_parts_like_others(recipe: Recipe, tmp_path: Path) -> None:
    wanted = Recipe.model_validate(
        {
            **recipe.model_dump(),
            "optimizer": {"steps": 4, "batch_size": 1},
            "alignment": {"patch_px": 4, "channels": 8, "min_points": 1},
            "self_training": {"start": 0.5, "quantile": 0.0},
        }
    )
    final = distill([SOURCE], wanted, tmp_path / "run", device="cpu")["final"]
    assert {"cross_entropy", "lovasz", "global", "local", "agreement"} <= set(final)
    assert final["local"] > 0
    kept = load_checkpoint(tmp_path / "run")[0]
    assert all(name.startswith("network.") for name in kept)  # projections are not the result


def test_recipes_of_other_commands_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    other = Recipe(encoder=ESPNetv2FeaturesConfig(name="espnetv2"))
    with pytest.raises(InputError, match="needs a recipe with 'teacher'"):
        distill([SOURCE], other, tmp_path / "a")
    with pytest.raises(InputError, match="needs a recipe with 'encoder'"):
        pretrain([SOURCE], recipe, tmp_path / "b")
    with pytest.raises(InputError, match="needs a recipe with 'supervision'"):
        zero_shot([SOURCE], [], load_split("street_vehicle_pole"), recipe, tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_recipes_name_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("teacher: {weights: w.safetensors}\noptimizer: {stepps: 5}\n")
    with pytest.raises(InputError, match=r"optimizer\.stepps.*steps"):
        load_recipe(path)
    path.write_text("teacher: {weights: w.safetensors}\nloss: {cross_entropy: 0, lovasz: 0}\n")
    with pytest.raises(InputError, match="nothing would be learned"):
        load_recipe(path)
    path.write_text("teacher: {weights: w.safetensors}\n")
    with pytest.raises(InputError, match=r"recipe\.yaml: w\.safetensors: no such file"):
        load_recipe(path)
    (tmp_path / "w.safetensors").touch()
    assert load_recipe(path).teacher.weights == tmp_path / "w.safetensors"


@pytest.mark.parametrize("regression", [0.0, 1.0])
def test_a_text_head_learns_words(recipe: Recipe, tmp_path: Path, regression: float) -> None:
    text = TextConfig(
        space=TextSpaceConfig(channels=40), classes={"sky": ()}, words=("minivan",), temperature=0.1
    )
    changes = {"text": text, "loss": recipe.loss.model_copy(update={"regression": regression})}
    words = recipe.model_copy(update=changes)
    distill([SOURCE], words, tmp_path / "run", device="cpu")
    segmenter = Segmenter.load(tmp_path / "run", device="cpu", precision="fp32")
    assert segmenter.text is not None and segmenter.text.temperature == 0.1
    assert segmenter.student.config.text_channels == 40
    assert bool(segmenter.student.config.feature_channels) == (regression > 0)
    assert "sky" not in segmenter.text.classes and "car" in segmenter.text.classes
    assert segmenter.set_prompts(["minivan", "car", "*"]).names[1] == "car"
    sample = open_recording(SOURCE)[0]
    assert (segmenter.segment(sample.cloud).labels < 3).all()
    figures = load_checkpoint(tmp_path / "run")[1].metrics["final"]
    assert figures["text_distance"] > 0 and figures["text_classes"] > 0


def test_text_that_cannot_be_learned_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    space = TextSpaceConfig()
    with pytest.raises(ValueError, match="needs space.source 'open_clip'"):
        TextConfig(space=space, source="maskclip")
    wrong = recipe.model_copy(update={"text": TextConfig(space=space, classes={"moon": ("x",)})})
    with pytest.raises(InputError, match="no class 'moon'"):
        distill([SOURCE], wrong, tmp_path / "run", device="cpu")


def test_heads_are_trained_on_from_a_finished_run(
    recipe: Recipe, whole: Path, tmp_path: Path
) -> None:
    """Words are added; what the student labels with its own classes stays the same."""
    text = TextConfig(space=TextSpaceConfig(channels=40))
    heads = recipe.optimizer.model_copy(update={"heads_only": True})
    words = recipe.model_copy(update={"text": text, "optimizer": heads})
    distill([SOURCE], words, tmp_path / "run", device="cpu", start=whole)
    before, after = load_checkpoint(whole)[0], load_checkpoint(tmp_path / "run")[0]
    assert all(torch.equal(after[k], before[k]) for k in before if k.startswith("network."))
    assert after["text_head.weight"].shape[0] == 40
    segmenter = Segmenter.load(tmp_path / "run", device="cpu", precision="fp32")
    assert segmenter.text is not None
    # The head stays within the span of the class vectors, so every class can be told apart.
    vectors = class_vectors(segmenter.text)
    span = np.linalg.svd(vectors)[2][: len(vectors)]
    weight = after["text_head.weight"].numpy()
    outside = weight - span.T @ (span @ weight)
    assert np.abs(outside).max() < 2e-2 * np.abs(weight).max()
    segmenter.set_prompts(["car", "*"])


def test_starts_that_do_not_fit_are_refused(recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    heads = recipe.optimizer.model_copy(update={"heads_only": True})
    with pytest.raises(InputError, match="give --start RUN"):
        distill([SOURCE], recipe.model_copy(update={"optimizer": heads}), tmp_path / "a")
    wide = recipe.student.model_copy(update={"width": 0.5})
    with pytest.raises(InputError, match="is another network"):
        distill([SOURCE], recipe.model_copy(update={"student": wide}), tmp_path / "b", start=whole)
    assert not (tmp_path / "b" / "checkpoint.safetensors").exists()
