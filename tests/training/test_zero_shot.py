# SPDX-License-Identifier: Apache-2.0
"""Zero-shot learning: labels that never leak, own labels by hand, whole runs that resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_runs import DRIVE, tiny_recipe
from typer.testing import CliRunner

from pcseg_core.checkpoint import load_text
from pcseg_core.data import open_recording
from pcseg_core.distill.consolidation import ConsolidationConfig
from pcseg_core.distill.evidence import Evidence
from pcseg_core.distill.observation import Observation
from pcseg_core.distill.pixels import PointPixels
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE, LabelSpace, group_probabilities, grouping
from pcseg_core.learning.dataset import StepDataset, TrainingSweep, collate
from pcseg_core.learning.objectives.self_training import mix_labels, running_quantiles
from pcseg_core.learning.sectors import LabeledSectors
from pcseg_core.learning.teachers import load_split_teacher
from pcseg_core.learning.zero_shot import CosineClassifier, zero_shot
from pcseg_core.learning.zero_shot_config import SelfTrainingConfig
from pcseg_core.learning.zero_shot_labels import hold_out, label_scene, zero_shot_labels
from pcseg_core.learning.zero_shot_split import load_split
from pcseg_core.metrics.zero_shot import stacked
from pcseg_core.models.student import Points, Student, StudentConfig
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.text_table import TextTable
from pcseg_core.vision.pixel_classes import load_teacher
from pcseg_core.vision.text_classes import TextClasses
from pcseg_core.vision.text_space import GeneratedText, load_text_space

UNSEEN = np.array([False, True, False, True])
OFF = ConsolidationConfig(voxel_m=0)


def test_labels_by_hand() -> None:
    truth = np.array([0, 1, 2, IGNORE, 3, 1])
    image = np.array(
        [
            [0, 0.9, 0.1, 0],
            [0.5, 0.3, 0.1, 0.1],
            [0.1, 0.1, 0.7, 0.1],
            [0.7, 0.1, 0, 0.2],
            [0, 0, 0, 0],
            [0.9, 0, 0.1, 0],
        ]
    )
    labels, confidence = zero_shot_labels(truth, image, UNSEEN, "zero-shot")
    # Truth of seen classes; else the likeliest unseen class by its share among all classes.
    assert labels.tolist() == [0, 1, 2, 3, IGNORE, IGNORE]
    assert confidence == pytest.approx([1, 0.3, 1, 0.2, 0, 0])
    labels, confidence = zero_shot_labels(truth, image, UNSEEN, "seen")
    assert labels.tolist() == [0, IGNORE, 2, IGNORE, IGNORE, IGNORE]
    labels, confidence = zero_shot_labels(truth, image, UNSEEN, "annotation-free")
    assert labels.tolist() == [1, 0, 2, 0, IGNORE, 0] and confidence[0] == pytest.approx(0.9)


@pytest.mark.parametrize("supervision", ["seen", "zero-shot", "annotation-free"])
def test_the_truth_of_unseen_classes_is_never_looked_at(supervision: Any) -> None:
    rng = np.random.default_rng(0)
    truth, image = rng.integers(-1, 4, 500), rng.dirichlet(np.ones(4), 500)
    hidden = (truth < 0) | UNSEEN[truth]
    shuffled = np.where(hidden, rng.choice([IGNORE, 1, 3], 500), truth)
    for a, b in zip(
        zero_shot_labels(truth, image, UNSEEN, supervision),
        zero_shot_labels(shuffled, image, UNSEEN, supervision),
    ):
        assert np.array_equal(a, b)


def observed(name: str = "a", scene: str = "s", points: int = 50, seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(-9, 9, (points, 3)).astype(np.float32)
    seen = np.arange(0, points, 2, dtype=np.int32)
    sums = rng.dirichlet(np.ones(4), len(seen)).astype(np.float32)
    pixels = PointPixels(
        seen,
        image=rng.random((len(seen), 5)).astype(np.float16),
        patch=rng.integers(0, 6, len(seen)).astype(np.int32),
        patch_image=rng.random((6, 5)).astype(np.float16),
    )
    return Observation(
        name,
        scene,
        0,
        xyz,
        xyz,
        rng.random(points).astype(np.float32),
        np.eye(4),
        rng.integers(-1, 4, points).astype(np.int16),
        Evidence(seen, np.ones(len(seen), np.float32), sums),
        pixels,
    )


def labeled(count: int) -> list[TrainingSweep]:
    """Sweeps of a scene each."""
    scenes = [[observed(seed=s, scene=str(s))] for s in range(count)]
    return [sweep for scene in scenes for sweep in label_scene(scene, UNSEEN, "zero-shot", OFF)]


def test_batches_keep_points_features_and_patches_together() -> None:
    sweeps = labeled(3)
    for sweep in sweeps:  # so that every feature tells which point and which patch it is from
        pixels = sweep.pixels
        assert pixels is not None and pixels.patch is not None
        own = sweep.intensity[pixels.point].astype(np.float32)
        pixels.image = np.stack([own, pixels.patch], 1)
        pixels.patch_image = np.arange(6, dtype=np.float32)[:, None]
    recipe = tiny_recipe(augment={"intensity_gain": 0, "drop": 0.5}, optimizer={"sector_deg": 200})
    dataset = StepDataset(LabeledSectors(sweeps, recipe), 0, 5)
    for step in range(5):
        batch = dataset[step]
        assert batch.pixels is not None and batch.pixels.image is not None
        pixels = batch.pixels
        assert len(pixels.point) > 0 and len(pixels.patch_image) == 18
        shown = batch.points.intensity[pixels.point]
        assert torch.allclose(pixels.image[:, 0], shown)
        assert torch.equal(pixels.patch_image[pixels.patch, 0], pixels.image[:, 1])
        owner = batch.points.batch[pixels.point]
        assert torch.equal(pixels.patch // 6, owner)
    moved = dataset[0].to(torch.device("cpu"))
    assert torch.equal(moved.pixels.patch, dataset[0].pixels.patch)


def test_sweeps_without_cameras_join_a_batch_of_others() -> None:
    blind, seeing = labeled(2)
    none = np.zeros((0, 0), np.float16)
    rows = np.zeros(0, np.int32)
    blind.pixels = PointPixels(rows, none, None, rows, none)
    everything = tiny_recipe(augment={"drop": 0, "beam_drop": 0}, optimizer={"sector_deg": 360})
    (batch,) = LabeledSectors([blind], everything).draw(0)[:1]
    (other,) = LabeledSectors([seeing], everything).draw(0)[:1]
    joined = collate([batch, other, batch])
    assert joined.pixels is not None and seeing.pixels is not None
    assert torch.equal(joined.pixels.point, torch.from_numpy(seeing.pixels.point.astype(int) + 50))
    assert len(joined.points.xyz) == 150 and joined.pixels.patch_image.shape == (6, 5)
    alone = collate([batch, batch])
    assert alone.pixels is not None and len(alone.pixels.point) == 0


def test_whole_scenes_are_held_out() -> None:
    many = [observed(f"{s}{i}", str(s)) for s in range(10) for i in range(3)]
    kept, held = hold_out(many, 0.2)
    assert {s.scene for s in held} == {"0", "9"} and len(kept) + len(held) == 30
    assert not {s.scene for s in kept} & {s.scene for s in held}
    kept, held = hold_out(many[:3] + many[3:6], 0.01)
    assert len({s.scene for s in held}) == 1 and len(kept) == 3
    kept, held = hold_out([observed(str(i), "one") for i in range(10)], 0.2)
    assert [s.name for s in held] == ["8", "9"] and len(kept) == 8


def test_own_labels_by_hand() -> None:
    open_classes = torch.tensor([False, True, False, True])
    probabilities = torch.tensor(
        [
            [0.1, 0.9, 0.0, 0.0],  # true label: stays
            [0.1, 0.8, 0.1, 0.0],  # image says 3, drawn: replaced
            [0.1, 0.8, 0.1, 0.0],  # image says 3, not drawn: stays
            [0.2, 0.6, 0.1, 0.1],  # gap, below the quantile of its class: stays
            [0.0, 0.8, 0.2, 0.0],  # gap, sure: filled
            [0.9, 0.1, 0.0, 0.0],  # gap, but a seen class: stays
            [0.1, 0.2, 0.1, 0.6],  # gap, alone in its class: filled
        ]
    )
    labels = torch.tensor([0, 3, 3, IGNORE, IGNORE, IGNORE, IGNORE])
    confidence = torch.tensor([1.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0])
    draws = torch.tensor([0.0, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9])
    none_yet = torch.full((4,), torch.nan)
    config = SelfTrainingConfig(quantile=0.5, mix=0.5)
    thresholds, found, sure = mix_labels(
        probabilities, labels, confidence, open_classes, none_yet, config, draws
    )
    assert found.tolist() == [0, 1, 3, IGNORE, 1, IGNORE, 3]
    assert sure.tolist() == pytest.approx([1.0, 0.8, 0.5, 0.0, 0.8, 0.0, 0.6])
    assert thresholds[1].item() == pytest.approx(0.8) and torch.isnan(thresholds[[0, 2]]).all()
    shy = SelfTrainingConfig(quantile=0.5, mix=0.5, unlabeled=False)
    _, found, _ = mix_labels(probabilities, labels, confidence, open_classes, none_yet, shy, draws)
    assert found.tolist() == [0, 1, 3, IGNORE, IGNORE, IGNORE, IGNORE]
    _, found, _ = mix_labels(
        probabilities, labels, confidence, torch.ones(4, dtype=torch.bool), none_yet, config, draws
    )
    assert found[0] == 1 and found[5] == 0  # without truth every class is open


def test_quantiles_run_per_class() -> None:
    first = running_quantiles(
        torch.tensor([0.2, 0.4, 0.9]),
        torch.tensor([0, 0, 2]),
        torch.full((3,), torch.nan),
        0.5,
        0.9,
    )
    assert first[0].item() == pytest.approx(0.3) and torch.isnan(first[1])
    second = running_quantiles(torch.tensor([0.8]), torch.tensor([0]), first, 0.5, 0.9)
    assert second[0].item() == pytest.approx(0.9 * 0.3 + 0.1 * 0.8)
    assert second[2].item() == pytest.approx(0.9)


def test_folding_keeps_the_best_class_and_gamma_acts_at_the_mean_length() -> None:
    torch.manual_seed(0)
    student = Student(StudentConfig(depth=14, width=0.25, text_channels=16), 4)
    vectors = torch.nn.functional.normalize(torch.randn(4, 16), dim=1)
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-10, 10, (3000, 3)).astype(np.float32)
    classifier = CosineClassifier(student, vectors)
    cosines = classifier(xyz, xyz[:, 0] * 0 + 0.5)
    for gamma, agreement in ((0.0, 1.0), (0.1, 0.85)):
        classifier.fold(UNSEEN, gamma, 0.07)
        points = torch.from_numpy(xyz)
        with torch.no_grad():
            output = student(
                Points(points, torch.full((3000,), 0.5), torch.zeros(3000, dtype=torch.int64))
            )
        plain = output.logits[output.voxels.inverse].argmax(1).numpy()
        assert (plain == stacked(cosines, UNSEEN, gamma)).mean() >= agreement


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("zero-shot")
    recipe = tiny_recipe(labels={"consolidation": {"voxel_m": 0.4}}, self_training={"start": 0.3})
    metrics = zero_shot(
        [DRIVE.format(s, 2) for s in (1, 2)],
        [DRIVE.format(3, 0)],
        load_split("street_vehicle_pole"),
        recipe,
        folder / "run",
        folder / "cache",
        "cpu",
    )
    return folder, metrics


def test_a_run_ends_in_a_checkpoint_that_knows_words(finished: Any) -> None:
    folder, metrics = finished
    assert set(metrics["plain"]["iou"]) == set(load_split("street_vehicle_pole").space.names)
    assert metrics["sweeps"] == 2 and metrics["held_out"] == 2
    assert 0 < metrics["labels"]["labeled"] < 1
    text = load_text(folder / "run")
    assert text is not None and text.classes["vehicle"][0] == "vehicle"
    segmenter = Segmenter.load(folder / "run", "cpu")
    space = segmenter.set_prompts(["vehicle: car, truck", "everything else"])
    assert len(space) == 2
    assert segmenter.trained_on is not None and segmenter.trained_on.returns[0] > 100


def test_the_same_call_repeats_nothing_and_another_recipe_is_refused(finished: Any) -> None:
    folder, metrics = finished
    sources, split = [DRIVE.format(s, 2) for s in (1, 2)], load_split("street_vehicle_pole")
    recipe = tiny_recipe(labels={"consolidation": {"voxel_m": 0.4}}, self_training={"start": 0.3})
    again = zero_shot(
        sources, [DRIVE.format(3, 0)], split, recipe, folder / "run", folder / "cache", "cpu"
    )
    assert again["plain"] == metrics["plain"] and again["gamma"] == metrics["gamma"]
    with pytest.raises(InputError, match="another recipe"):
        zero_shot(sources, [], split, tiny_recipe(), folder / "run", folder / "cache", "cpu")


def test_labels_are_needed_unless_none_are_asked_for(tmp_path: Path) -> None:
    split = load_split("street_vehicle_pole")
    blind = DRIVE.format(4, 0)
    with pytest.raises(InputError, match="annotation-free"):
        zero_shot(
            [blind], [blind], split, tiny_recipe(supervision="annotation-free"), tmp_path / "a"
        )


def test_the_image_teacher_speaks_the_classes_of_the_split() -> None:
    split, recipe = load_split("street_vehicle_pole"), tiny_recipe()
    text = GeneratedText(64)
    teacher, features, known = load_split_teacher(
        recipe, split, text, split.class_words(text), "cpu"
    )
    image = open_recording(DRIVE.format(1, 1))[0].cameras[0].image
    probabilities = teacher.probabilities(image)
    assert teacher.label_space == split.space and probabilities.shape[0] == len(split.space)
    assert np.allclose(probabilities.sum(0), 1, atol=1e-5)
    network = load_teacher(recipe.teacher)
    grouped = group_probabilities(
        network.probabilities(image), grouping(network.label_space, split.space), len(split.space)
    )
    sky = grouped.sum(0) < 0.5  # which the split's classes do not have
    agree = probabilities.argmax(0) == grouped.argmax(0)
    assert agree[~sky].mean() > 0.9  # through words as without, but for the random directions
    assert features(image).shape[0] == 32
    spoken = tiny_recipe(image_features="text")
    _, features, other = load_split_teacher(spoken, split, text, split.class_words(text), "cpu")
    assert features(image).shape[0] == 64 and other != known


def test_dense_clip_as_the_image_teacher(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 2, "width": 24, "head_width": 8, "patch_size": 8}
    words = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": words}
    (tmp_path / "tiny-zero-shot.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-zero-shot.json")
    weights = tmp_path / "clip.safetensors"
    network = open_clip.create_model("tiny-zero-shot", pretrained=None)
    save_file({k: v.contiguous().clone() for k, v in network.state_dict().items()}, str(weights))
    clip = {"model": "tiny-zero-shot", "short_side_px": 32, "window_px": 32}
    teacher = {"name": "maskclip", "weights": weights, "label_space": "street", "clip": clip}
    text = {"space": {"source": "open_clip", "model": "tiny-zero-shot", "weights": weights}}
    recipe, split = tiny_recipe(teacher=teacher, text=text), load_split("street_vehicle_pole")
    space = load_text_space(recipe.text.space)
    groups = split.class_words(space)
    found, features, _ = load_split_teacher(recipe, split, space, groups, "cpu")
    image = np.zeros((32, 48, 3), np.uint8)
    assert found.probabilities(image).shape == (8, 4, 6) and features(image).shape == (12, 4, 6)
    elsewhere = tiny_recipe(teacher={**teacher, "label_space": "cityscapes"}, text=text)
    with pytest.raises(InputError, match="dense CLIP must know the classes of the split"):
        load_split_teacher(elsewhere, split, space, groups, "cpu")


def test_the_best_word_of_a_class_counts() -> None:
    space = LabelSpace.load("street_merged_ground")
    table = TextTable("t", ("a", "b", "c", "d", "e", "f", "g"), np.eye(7, dtype=np.float32))
    words = dict(zip(space.names, [("a", "b"), ("c",), ("d",), ("e",), ("f",), ("g",)]))

    class Pixels:
        channels, name, parameters = 7, "fake", {}

        def features(self, _image: np.ndarray) -> np.ndarray:
            values = np.zeros((7, 1, 2), np.float32)
            values[1, 0, 0] = 5.0  # the second word of the first class
            values[[2, 3], 0, 1] = 1.0  # half one class, half another
            return values

    classes = TextClasses(Pixels(), table, words, space, temperature=0.5)
    found = classes.probabilities(np.zeros((4, 4, 3), np.uint8))
    first = np.exp(2) / (np.exp(2) + 5)
    assert found[0, 0, 0] == pytest.approx(first) and found[1, 0, 1] == found[2, 0, 1]


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    from pcseg_core.cli import app

    arguments = ["simulated:seed=1", "--test", "simulated:seed=2", "--out", str(tmp_path / "run")]
    options = ["--split", "kity", "--recipe", "zero-shot-simulated"]
    bad = CliRunner().invoke(app, ["zero-shot", *arguments, *options])
    assert bad.exit_code == 2 and "no split 'kity'" in bad.output
