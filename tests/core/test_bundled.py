# SPDX-License-Identifier: Apache-2.0
"""Networks shipped with the package, and the search for model weights."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from pcseg_core.bundled import bundled_file, find_file
from pcseg_core.checkpoint import CheckpointMeta, load_checkpoint
from pcseg_core.errors import InputError
from pcseg_core.evaluation.evaluator import evaluate
from pcseg_core.labels import LabelSpace
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.online.pipeline import Pipeline
from pcseg_core.online.pipeline_config import PipelineConfig
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.online.sweep import UNLIKE_TRAINING, Sweep
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.vision.pixel_classes import load_teacher
from pcseg_core.vision.teachers.espnetv2 import ESPNetv2Config

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "training" / "street.py"
TEACHER = "bundled:simulation_teacher"


def test_sizes() -> None:
    checkpoint, teacher = bundled_file("bundled"), bundled_file(TEACHER)
    assert checkpoint is not None and checkpoint.stat().st_size < 5_000_000
    assert teacher is not None and teacher.stat().st_size < 500_000


def test_the_checkpoint_was_made_from_simulated_drives_by_its_script() -> None:
    _, meta = load_checkpoint(Path("bundled"))
    sources = list(meta.metrics["poses"])
    assert all(source.startswith("simulated:") for source in sources)
    recipe = runpy.run_path(str(SCRIPT))["StreetRecipe"]
    assert recipe.model_validate(meta.recipe) == recipe()
    assert sources == recipe().sources
    assert meta.label_space["name"] == "street"


def test_the_checkpoint_knows_the_sweeps_of_its_training() -> None:
    segmenter = Segmenter.load("bundled")
    assert segmenter.trained_on is not None and segmenter.trained_on.rings == (16, 128)
    drive = SimulatedDrive(7001, sweeps=1, beams=64, columns=1024, cameras=0)
    sweep = Sweep.of(drive[0])
    pipeline = Pipeline(segmenter)
    exact = pipeline.process(sweep)
    assert not exact.problems
    assert sweep.cloud.intensity is not None
    sweep.cloud.intensity = 1 - 0.1 * np.exp(-20 * sweep.cloud.intensity)  # as no sensor of it
    unmapped = Pipeline(segmenter, PipelineConfig(match_intensity=False))
    ((event, reason),) = unmapped.process(sweep).problems
    assert event == UNLIKE_TRAINING and "another sensor" in reason
    mapped = Pipeline(segmenter)
    result = mapped.process(sweep)
    assert not result.problems and "by rank" in str(mapped.intensities)
    agreement = np.mean(result.labels == exact.labels)
    assert agreement > 0.8
    assert agreement > np.mean(unmapped.process(sweep).labels == exact.labels) + 0.2


def test_loading_warns_with_the_figures_of_the_documents(caplog: pytest.LogCaptureFixture) -> None:
    meta = Segmenter.load("bundled").meta
    (warning,) = caplog.messages
    assert warning == f"checkpoint 'bundled': {meta.caution}"
    assert warning.startswith("checkpoint 'bundled': trained on simulated drives; it reaches ")
    real = meta.measured
    assert real is not None and f"{real}; distill" in warning
    results = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    exact = f"{100 * real.miou:.1f} % mIoU and {100 * real.accuracy:.1f} % accuracy"
    assert f"On real sweeps it reaches {exact}" in results
    rounded = f"{100 * real.miou:.0f} % mIoU on real sweeps"
    for name in ("README.md", "docs/node.md"):
        assert rounded in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "sources", [[], ["bag:drive"], ["simulated:seed=1", "bag:drive"], ["simulated_town"]]
)
def test_checkpoints_of_real_recordings_load_without_a_warning(sources: list[str]) -> None:
    metrics = {"poses": dict.fromkeys(sources, "exact")}
    assert CheckpointMeta(student={}, label_space={}, metrics=metrics).caution == ""
    assert CheckpointMeta(student={}, label_space={}, metrics={"poses": 3}).caution == ""


def test_the_teacher_says_that_it_saw_simulated_drives_alone() -> None:
    with safe_open(str(bundled_file(TEACHER)), framework="pt") as file:
        about = json.loads(file.metadata()["pcseg_teacher"])
    assert about["sources"].startswith("simulated drives")
    assert about["metrics"]["street_accuracy"] > 0.8
    held_out = range(about["recipe"]["held_out_seed"], about["recipe"]["held_out_seed"] + 5)
    first, towns = about["recipe"]["first_seed"], about["recipe"]["towns"]
    assert not set(held_out) & set(range(first, first + towns))


def test_both_know_a_town_that_they_never_saw() -> None:
    drive = SimulatedDrive(7004, sweeps=1, beams=64, columns=1024, width=320, height=192)
    report = evaluate(Pipeline(Segmenter.load("bundled")), drive)
    assert report.accuracy is not None and report.accuracy > 0.7
    config = ESPNetv2Config(weights=TEACHER, label_space="simulation", scales=(1.0,), flip=False)
    teacher, frame = load_teacher(config), drive[0].cameras[0]
    labels = teacher.probabilities(frame.image).argmax(0)
    confusion = Confusion(len(LabelSpace.load("simulation")))
    confusion.update(labels, frame.labels[::2, ::2])
    assert confusion.accuracy > 0.6


def test_unknown_names_list_what_there_is() -> None:
    assert bundled_file("runs/first") is None
    with pytest.raises(InputError, match="bundled:simulation_teacher, bundled:street"):
        bundled_file("bundled:nothing")


def test_weights_are_searched_in_a_documented_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, current, first, second = (tmp_path / name for name in ("base", "here", "one", "two"))
    for folder in (base, current, first, second):
        folder.mkdir()
        (folder / "net.safetensors").touch()
    monkeypatch.chdir(current)
    monkeypatch.setenv("PCSEG_WEIGHTS", os.pathsep.join(["", str(first), str(second)]))
    for folder in (base, current, first, second):
        assert find_file("net.safetensors", base) == folder / "net.safetensors"
        (folder / "net.safetensors").unlink()
    monkeypatch.setenv("PCSEG_WEIGHTS", str(first))
    with pytest.raises(InputError, match="net.safetensors: no such file.*PCSEG_WEIGHTS") as error:
        find_file("net.safetensors", base)
    assert all(str(folder) in str(error.value) for folder in (base, current, first))
    assert str(second) not in str(error.value)


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-this-name/net"])
def test_paths_that_can_be_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be the path of a file"):
        find_file(name, tmp_path)


def test_absolute_and_bundled_weights_need_no_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "net.safetensors").touch()
    assert find_file(tmp_path / "net.safetensors", Path("/")) == tmp_path / "net.safetensors"
    assert find_file("~/net.safetensors", Path("/")) == tmp_path / "net.safetensors"
    assert find_file(TEACHER, tmp_path) == bundled_file(TEACHER)
    with pytest.raises(InputError) as error:
        find_file("/nowhere/net.safetensors", tmp_path)
    assert str(error.value).count("/nowhere/net.safetensors") == 2  # the input and one place
