# SPDX-License-Identifier: Apache-2.0
"""Linear probe, few-shot fine-tuning and ablation: right by construction, resumable, honest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.studies import contrast as ablation
from pcseg_core.checkpoint import CheckpointMeta, load_checkpoint, save_checkpoint
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE, LabelSpace
from pcseg_core.learning import finetune as few
from pcseg_core.learning import probe as protocol
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.pretrain import NO_CLASSES
from pcseg_core.learning.pretrain_recipe import (
    PretrainRecipe,
    SuperpixelConfig,
    load_pretrain_recipe,
)
from pcseg_core.learning.probe import Scan, fit_linear, probe_features
from pcseg_core.learning.recipe import OptimizerConfig
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.vision.encoders import EncoderConfig
from pcseg_core.vision.pixel_classes import TeacherConfig

SMALL = StudentConfig(depth=14, width=0.25, voxel_size_m=0.5)
STREET = LabelSpace.load("street")


def scan(seed: int, points: int = 600, truth_of_height: bool = True) -> Scan:
    """Points whose class follows from their height; every tenth has no label."""
    rng = np.random.default_rng(seed)
    xyz = rng.uniform((-10, -10, -2), (10, 10, 2), (points, 3)).astype(np.float32)
    truth = (np.floor(xyz[:, 2] / 2) + 1).astype(np.int64)  # 0 below, 1 above the sensor
    truth[::10] = IGNORE
    return Scan(
        f"scan{seed}", xyz, rng.random(points).astype(np.float32), truth, np.array([3, 0] + [0] * 6)
    )


def height(xyz: np.ndarray, _intensity: np.ndarray) -> np.ndarray:
    return xyz[:, 2:]


def strength(_xyz: np.ndarray, intensity: np.ndarray) -> np.ndarray:
    return intensity[:, None]


def write_run(folder: Path, seed: int = 0) -> Path:
    """A run directory as `pcseg pretrain` leaves it."""
    torch.manual_seed(seed)
    student = Student(SMALL, 1)
    meta = CheckpointMeta(
        format_version=1,
        student=SMALL.model_dump(mode="json"),
        label_space=NO_CLASSES.to_dict(),
        pcseg_version="0",
    )
    save_checkpoint(folder / "checkpoint.safetensors", student.state_dict(), meta)
    return folder


def test_a_separable_probe_is_perfect_and_points_out_of_range_are_missed() -> None:
    found = probe_features(height, [scan(0), scan(1)], [scan(2)], 8)
    assert found.confusion.matrix[:2, :2].trace() >= 0.99 * found.confusion.matrix.sum()
    assert found.confusion.unpredicted[0] == 3 and found.points == 2 * 540
    assert found.curve[-1]["loss"] < found.curve[0]["loss"]
    assert found.curve[-1]["held_out_miou"] > 0.95
    assert probe_features(strength, [scan(0)], [scan(2)], 8).confusion.miou < 0.6


def test_the_fit_is_a_logistic_regression_of_features_as_they_come() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal((50.0, -3.0, 7.0), (9.0, 0.1, 0.0), (400, 3))  # the last is constant
    targets = (inputs[:, 0] > 50).astype(np.int64)
    weight, bias, _ = fit_linear(inputs, targets, 2)
    assert ((inputs @ weight + bias).argmax(1) == targets).mean() > 0.98
    again = fit_linear(inputs, targets, 2)
    assert np.array_equal(weight, again[0]) and np.array_equal(bias, again[1])


def test_drawing_keeps_an_even_share() -> None:
    inputs, targets = protocol.gather(height, [scan(0), scan(1)], 540, 0)
    assert len(inputs) == len(targets) == 540
    with pytest.raises(InputError, match="no labeled point"):
        empty = scan(0)
        empty.truth[:] = IGNORE
        protocol.gather(height, [empty], 10, 0)


def test_the_probe_reports_the_untrained_network_and_the_raw_inputs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", 0), write_run(tmp_path / "b", 1)]
    results = protocol.probe(runs, [scan(0)], [scan(1)], STREET)
    assert {name: len(found) for name, found in results.items()} == {
        "pretrained": 2,
        "untrained": 2,
        "raw": 1,
    }
    content = protocol.summary(results, STREET)
    mean = np.mean([seed["miou"] for seed in content["methods"]["pretrained"]["seeds"]])
    assert content["methods"]["pretrained"]["miou"] == pytest.approx(mean)
    gain = mean - content["methods"]["raw"]["miou"]
    assert content["gain_over_raw"] == pytest.approx(gain)
    protocol.draw(json.loads(json.dumps(content)), STREET, tmp_path / "probe.png")
    assert (tmp_path / "probe.png").stat().st_size > 10_000


def test_probing_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    network = protocol.FrozenNetwork.load(run)
    before = {k: v.clone() for k, v in network.student.state_dict().items()}
    probe_features(network, [scan(0)], [scan(1)], 8)
    assert all(torch.equal(before[k], v) for k, v in network.student.state_dict().items())


def semantic_kitti(folder: Path, scans: int) -> Path:
    """A folder in SemanticKITTI layout: a road and walls."""
    rng = np.random.default_rng(len(folder.name))
    for k in range(scans):
        xyz = rng.uniform((-20, -20, -2), (20, 20, 2), (2000, 3))
        raw = np.where(xyz[:, 2] < 0, 40, 50).astype("<u4")
        points = np.column_stack([xyz, rng.random(2000)]).astype("<f4")
        for name, data in (("velodyne", points), ("labels", raw)):
            path = folder / name / f"{k:06d}.{'bin' if name == 'velodyne' else 'label'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.tobytes())
    return folder


def test_the_probe_command_takes_folders(tmp_path: Path) -> None:
    from pcseg_core.cli import app

    fit, test = semantic_kitti(tmp_path / "00", 2), semantic_kitti(tmp_path / "0100", 1)
    out, picture = tmp_path / "probe.json", tmp_path / "probe.png"
    arguments = [
        "probe",
        str(write_run(tmp_path / "run")),
        "--fit",
        str(fit),
        "--test",
        str(test),
        "--json",
        str(out),
        "--picture",
        str(picture),
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    content = json.loads(out.read_text())
    assert content["fit_scans"] == 2 and content["test_scans"] == 1
    assert content["methods"]["raw"]["miou"] > 0.9  # height alone tells the two classes
    assert set(content) >= {"gain_over_untrained", "gain_over_raw", "classes"}
    missing = CliRunner().invoke(
        app, [*arguments[:2], "--fit", str(tmp_path / "no"), "--test", str(test)]
    )
    assert missing.exit_code == 2 and str(tmp_path / "no") in missing.output


@pytest.mark.parametrize(
    ("percent", "seed", "expected"),
    [
        (100, 0, list("abcdefgh")),
        (25, 0, ["a", "e"]),
        (25, 1, ["b", "f"]),
        (25, 5, ["b", "f"]),
        (50, 1, list("bdfh")),
        (1, 0, ["a"]),
        (1, 3, ["d"]),
        (1, 9, ["b"]),
    ],
)
def test_splits_are_by_scene(percent: float, seed: int, expected: list[str]) -> None:
    scenes = [name for name in "abcdefgh" for _ in range(3)]
    assert few.few_scenes(scenes, percent, seed) == expected


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="share of 0"):
        few.few_scenes(["a"], 0)


def test_head_and_trunk_have_their_own_rates_and_the_trunk_is_the_runs(tmp_path: Path) -> None:
    run = write_run(tmp_path, seed=5)
    student = few.start(run, SMALL, 8, seed=0)
    state, _ = load_checkpoint(run)
    for name, value in student.state_dict().items():
        if not name.startswith("network.classifier."):
            assert torch.equal(value, state[name]), name
    assert student.network.classifier.out_features == 8
    recipe = few.FinetuneRecipe(head_learning_rate=0.5, trunk_learning_rate=0.1)
    for pretrained, rates in ((True, [0.5, 0.1]), (False, [0.004, 0.004])):
        module = few.FinetuneModule(student, [sweep("a")], recipe, pretrained)
        groups = module.configure_optimizers()["optimizer"].param_groups
        assert [g["initial_lr"] for g in groups] == rates
        assert [len(groups[0]["params"])] == [2]
        assert sum(len(g["params"]) for g in groups) == len(list(student.parameters()))
    with pytest.raises(InputError, match="lacks or adds"):
        few.start(run, SMALL.model_copy(update={"depth": 18}), 8, seed=0)


def sweep(scene: str, seed: int = 0) -> TrainingSweep:
    found = scan(seed)
    labels = found.truth.astype(np.int16)
    confidence = np.ones(len(labels), np.float32)
    return TrainingSweep(found.xyz, found.intensity, labels, confidence, scene)


def test_few_shot_rows_are_kept_and_learn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    sweeps = [(name, sweep(name, k)) for k, name in enumerate("abcd")]
    optimizer = OptimizerConfig(steps=25, batch_size=2, sector_deg=360, average=0)
    recipe = few.FinetuneRecipe(optimizer=optimizer)

    def protocol_of(found: few.FinetuneRecipe) -> few.FewShot:
        return few.FewShot(run, sweeps, [scan(9)], STREET, found, tmp_path / "out", "cpu")

    content = protocol_of(recipe).all_rows([25, 100], 1, scratch=False, tell=lambda _: None)
    assert [(r["start"], r["percent"], r["scenes"]) for r in content["rows"]] == [
        ("pretrained", 25, 1),
        ("pretrained", 100, 4),
    ]
    assert content["rows"][1]["accuracy"] > 0.6  # chance is 0.5
    assert load_checkpoint(tmp_path / "out" / "pretrained-100-0")[1].label_space == STREET.to_dict()
    told: list[str] = []
    again = protocol_of(recipe).all_rows([25, 100], 1, scratch=False, tell=told.append)
    assert again == content and not told
    few.draw(content, tmp_path / "few.png")
    with pytest.raises(InputError, match="other settings"):
        protocol_of(recipe.model_copy(update={"head_learning_rate": 0.1}))


def recipe() -> PretrainRecipe:
    weights = Path("w.safetensors")
    return PretrainRecipe(
        encoder=EncoderConfig(name="espnetv2", weights=weights),
        student=SMALL,
        superpixels=SuperpixelConfig(name="semantic", teacher=TeacherConfig(weights=weights)),
    )


def test_methods_differ_in_what_they_are_named_for() -> None:
    loss = {m: ablation.method_recipe(recipe(), m, 3).loss for m in ablation.METHODS}
    assert ablation.method_recipe(recipe(), "slic contrast", 3).superpixels.name == "slic"
    assert ablation.method_recipe(recipe(), "semantic contrast", 3).superpixels.name == "semantic"
    assert ablation.method_recipe(recipe(), "regression", 3).seed == 3
    assert loss["semantic contrast"] == loss["slic contrast"]
    assert loss["+ temporal"].temporal > 0 == loss["+ temporal"].point_to_segment
    assert loss["+ point-to-segment"].point_to_segment > 0
    assert loss["regression"].superpixel == 0 < loss["regression"].regression
    assert {m: r.temperature for m, r in loss.items()} == dict.fromkeys(loss, 0.07)


def test_an_ablation_goes_on_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def pretrain(_drives: Any, found: PretrainRecipe, out: Path, *_: Any) -> None:
        calls.append(f"{out.name}/{found.seed}")
        if len(calls) == 3:
            raise KeyboardInterrupt
        write_run(out, found.seed)

    monkeypatch.setattr(ablation, "pretrain", pretrain)
    data = ablation.AblationData(
        [],
        [f"semantic-kitti:{semantic_kitti(tmp_path / '00', 1)}"],
        [f"semantic-kitti:{semantic_kitti(tmp_path / '01x', 1)}"],
    )
    methods = ["raw inputs", "random", "slic contrast", "regression"]

    def run(base: PretrainRecipe) -> ablation.Ablation:
        return ablation.Ablation(
            base, data, tmp_path / "rows.json", tmp_path / "work", STREET, "cpu", methods
        )

    with pytest.raises(KeyboardInterrupt):
        run(recipe()).run(2, lambda _: None)
    kept = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(r["method"], r["seed"]) for r in kept] == [
        ("raw inputs", 0),
        ("random", 0),
        ("slic contrast", 0),
        ("regression", 0),
        ("random", 1),
    ]
    content = run(recipe()).run(2, lambda _: None)
    assert content["rows"][:5] == kept and len(content["rows"]) == 7
    assert calls == [
        "slic_contrast-0/0",
        "regression-0/0",
        "slic_contrast-1/1",
        "slic_contrast-1/1",
        "regression-1/1",
    ]
    assert {r["method"]: r["seeds"] for r in content["summary"]} == {
        "raw inputs": 1,
        "random": 2,
        "slic contrast": 2,
        "regression": 2,
    }
    ablation.draw(content, tmp_path / "rows.png")
    with pytest.raises(InputError, match="other settings"):
        run(recipe().model_copy(update={"student": SMALL.model_copy(update={"width": 0.5})}))
    with pytest.raises(InputError, match="no method nonsense"):
        ablation.Ablation(recipe(), data, tmp_path / "n", tmp_path, STREET, "cpu", ["nonsense"])


def test_test_and_training_towns_differ() -> None:
    data = ablation.simulated_data()

    def town(source: str) -> str:
        return source.split("town=")[1].split(",")[0]

    assert not set(map(town, data.test)) & set(map(town, data.train + data.fit))
    seeds = [source.split("seed=")[1].split(",")[0] for source in data.train + data.fit + data.test]
    assert len(set(seeds)) == len(seeds)


def test_a_folder_is_searched_for_recordings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="to train on"):
        ablation.folder_data(tmp_path, [], [])
    for name in (
        "raw/d_sync/velodyne_points",
        "object/training/velodyne",
        "object/training/image_2",
        "object/training/calib",
    ):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(InputError, match="labeled"):
        ablation.folder_data(tmp_path, [], [])
    semantic_kitti(tmp_path / "labeled" / "00", 1)
    data = ablation.folder_data(tmp_path, [], [])
    assert [s.split(":")[0] for s in data.train] == ["kitti-raw", "kitti-object"]
    assert data.split and data.fit == data.test
    assert not ablation.folder_data(tmp_path, ["a"], ["b"]).split


@pytest.mark.parametrize("name", ["ablate_contrast", "ablate_contrast_kitti", "pretrain_kitti"])
def test_recipes_that_come_along_are_in_order(name: str) -> None:
    folder = Path(__file__).resolve().parents[2] / "training" / "recipes"
    found = load_pretrain_recipe(folder / f"{name}.yaml")
    assert found.encoder.weights is not None and found.encoder.weights.is_absolute()
    assert found.superpixels.teacher is not None
    assert found.superpixels.teacher.weights == found.encoder.weights


def test_confusions_add_up() -> None:
    total = sum([Confusion(2), Confusion(2)], Confusion(2))
    assert total.points == 0
