# SPDX-License-Identifier: Apache-2.0
"""Linear probe and fine-tuning: exact cases, the commands, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import SMALL, STREET, scan, semantic_kitti, sweep, write_run
from typer.testing import CliRunner

from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.cli.probe import draw
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE
from pcseg_core.learning import finetune as few
from pcseg_core.learning import probe as protocol
from pcseg_core.learning.module import TrainingModule
from pcseg_core.learning.objectives.segmentation import Segmentation, label_counts
from pcseg_core.learning.probe import fit_linear, probe_features
from pcseg_core.learning.sectors import LabeledSectors
from pcseg_core.metrics.confusion import Confusion


def height(xyz: np.ndarray, _intensity: np.ndarray) -> np.ndarray:
    return xyz[:, 2:]


def strength(_xyz: np.ndarray, intensity: np.ndarray) -> np.ndarray:
    return intensity[:, None]


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
    draw(json.loads(json.dumps(content)), STREET, tmp_path / "probe.png")
    assert (tmp_path / "probe.png").stat().st_size > 10_000


def test_probing_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    network = protocol.FrozenNetwork.load(run)
    before = {k: v.clone() for k, v in network.student.state_dict().items()}
    probe_features(network, [scan(0)], [scan(1)], 8)
    assert all(torch.equal(before[k], v) for k, v in network.student.state_dict().items())


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


def test_head_and_trunk_have_their_own_rates_and_the_trunk_is_the_runs(tmp_path: Path) -> None:
    run = write_run(tmp_path, seed=5)
    student = few.start(run, SMALL, STREET, seed=0)
    state, _ = load_checkpoint(run)
    for name, value in student.state_dict().items():
        if not name.startswith("network.classifier."):
            assert torch.equal(value, state[name]), name
    assert student.network.classifier.out_features == 8
    recipe = few.FinetuneRecipe(head_learning_rate=0.5, trunk_learning_rate=0.1)
    for pretrained, rates in ((True, [0.5, 0.1]), (False, [0.004, 0.004])):
        sectors = LabeledSectors([sweep("a")], recipe)
        segmentation = Segmentation(recipe.loss, label_counts([sweep("a")], 8, 0.5))
        groups = few.rate_groups(student, recipe, pretrained)
        module = TrainingModule(student, [segmentation], sectors, recipe.optimizer, groups=groups)
        groups = module.configure_optimizers()["optimizer"].param_groups
        assert [g["initial_lr"] for g in groups] == rates
        assert [len(groups[0]["params"])] == [2]
        assert sum(len(g["params"]) for g in groups) == len(list(student.parameters()))
    with pytest.raises(InputError, match="lacks or adds"):
        few.start(run, SMALL.model_copy(update={"depth": 18}), STREET, seed=0)


def test_confusions_add_up() -> None:
    total = sum([Confusion(2), Confusion(2)], Confusion(2))
    assert total.points == 0
