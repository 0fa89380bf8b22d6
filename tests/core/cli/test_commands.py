# SPDX-License-Identifier: Apache-2.0
"""`pcseg segment`, `view`, `distill` and `doctor` as a user runs them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from pcseg_core.checkpoint import load_checkpoint, save_checkpoint
from pcseg_core.cli import app, doctor
from pcseg_core.cli.doctor import findings
from pcseg_core.cloud import PointCloud, encode_cloud
from pcseg_core.data import open_recording
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.errors import InputError, MissingDependency
from pcseg_core.input_check import InputStatistics
from pcseg_core.labels import NO_CLASSES, LabelSpace
from pcseg_core.learning.run_folder import claim

Sequence = Callable[..., Path]


def pcseg(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# --- segment ---------------------------------------------------------------------------------


def test_segment_writes_label_files(tiny_run: Path, sequence: Sequence, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = pcseg(
        "segment", f"semantic-kitti:{sequence()}", "--checkpoint", tiny_run, "--out", out
    )
    assert result.exit_code == 0, result.output
    assert "2 sweeps labeled" in result.output
    assert len(np.fromfile(out / "labels" / "000001.label", "<u4")) == 637
    assert LabelSpace.load(out / "labels.yaml").names[0] == "road"


def test_segment_makes_a_bag_and_labels_a_bag(
    tiny_run: Path, sequence: Sequence, tmp_path: Path
) -> None:
    source = f"semantic-kitti:{sequence()}"
    first = pcseg("segment", source, "--checkpoint", tiny_run, "--out", tmp_path / "a", "--bag")
    assert first.exit_code == 0, first.output
    second = pcseg("segment", tmp_path / "a", "--checkpoint", tiny_run, "--out", tmp_path / "b")
    assert second.exit_code == 0, second.output
    a, b = (open_recording(str(tmp_path / name)) for name in "ab")
    assert np.array_equal(a[1].labels, b[1].labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no such recording"),
        (["bag:nowhere"], "nowhere: no such bag"),
        (["FOLDER", "--cloud-topic", "/x"], "are for bags"),
        (["FOLDER", "--backend", "quantum"], "sparse backend 'quantum'"),
        (["FOLDER", "--device", "cuda:99"], "device 'cuda:99'"),
    ],
)
def test_segment_refuses(
    tiny_run: Path, sequence: Sequence, tmp_path: Path, arguments: list[str], message: str
) -> None:
    folder = str(sequence())
    arguments = [folder if argument == "FOLDER" else argument for argument in arguments]
    result = pcseg("segment", *arguments, "--checkpoint", tiny_run, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["segment", "evaluate", "prompt", "view"])
def test_a_pretrained_network_labels_nothing(
    tiny_run: Path, sequence: Sequence, tmp_path: Path, command: str
) -> None:
    state, meta = load_checkpoint(tiny_run)
    run, folder, out = tmp_path / "pretrained.safetensors", sequence(), tmp_path / "out.png"
    classes = {"label_space": NO_CLASSES.to_dict(), "student": meta.student}
    save_checkpoint(run, state, meta.model_copy(update=classes))
    arguments = {
        "segment": [folder, "--checkpoint", run, "--out", out],
        "evaluate": [run, "--semantic-kitti", folder],
        "prompt": [run, folder, "--picture", out],
        "view": [folder, "--checkpoint", run, "--picture", out],
    }
    result = pcseg(command, *arguments[command])
    assert result.exit_code == 2, result.output
    assert "is pretrained and has no classes" in " ".join(result.output.split())
    assert not out.exists()


@pytest.mark.parametrize("command", ["segment", "label", "view", "prompt", "evaluate", "boxes"])
def test_recordings_are_read_with_the_scale_of_the_checkpoint(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    state, meta = load_checkpoint(tiny_run)
    inputs = InputStatistics.measure([PointCloud(np.ones((9, 3)))], intensity_scale=1 / 512)
    run, drive, out = tmp_path / "run.safetensors", tmp_path / "drive", tmp_path / "out.png"
    save_checkpoint(run, state, meta.model_copy(update={"inputs": inputs}))
    with BagWriter(drive) as writer:
        cloud = encode_cloud({axis: np.ones(3, np.float32) for axis in (*"xyz", "intensity")})
        writer.write_cloud("/points", cloud, "lidar", 1)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    opened = []

    def spy(*arguments: Any, **options: Any) -> None:
        opened.append(open_recording(*arguments, **options))
        raise InputError("that is enough")

    for module in ("pcseg_core.data", "pcseg_core.online.replay", "pcseg_core.cluster.label"):
        monkeypatch.setattr(f"{module}.open_recording", spy)
    arguments = {
        "segment": [drive, "--checkpoint", run, "--out", out],
        "label": [drive, "--recipe", tmp_path / "recipe.yaml", "--checkpoint", run, "--out", out],
        "view": [drive, "--checkpoint", run, "--picture", out],
        "prompt": [run, drive, "--picture", out],
        "evaluate": [run, "--source", drive],
        "boxes": [run, "--boxes", drive],
    }
    result = pcseg(command.replace("boxes", "evaluate"), *arguments[command])
    assert "that is enough" in result.output, result.output
    assert [drive.intensity_scale for drive in opened] == [1 / 512]


@pytest.mark.parametrize("command", ["info", "evaluate", "replay", "prompt"])
def test_json_on_the_standard_output_is_alone_there(
    tiny_run: Path, sequence: Sequence, command: str
) -> None:
    pcseg_bag = ["segment", sequence(), "--checkpoint", tiny_run, "--bag", "--out"]
    bag = sequence("more").parent / "bag"
    arguments = {
        "info": ["bag", "info", bag],
        "evaluate": ["evaluate", tiny_run, "--source", bag, "--no-baselines"],
        "replay": ["evaluate", bag, "--checkpoint", tiny_run],
        "prompt": ["prompt", tiny_run, bag],
    }
    assert pcseg(*pcseg_bag, bag).exit_code == 0
    result = pcseg(*arguments[command], "--json", "-")
    assert isinstance(json.loads(result.stdout), dict), result.output
    assert result.stderr


def test_a_recording_without_labels_is_refused_before_the_work(
    tiny_run: Path, sequence: Sequence, tmp_path: Path
) -> None:
    folder = sequence()
    with BagWriter(tmp_path / "bag") as writer:
        cloud = encode_cloud({axis: np.ones(3, np.float32) for axis in "xyz"})
        writer.write_cloud("/points", cloud, "lidar", 1)
    result = pcseg("evaluate", tiny_run, "--source", tmp_path / "bag")
    assert result.exit_code == 2
    assert "has no labels to measure against" in " ".join(result.output.split())
    empty = pcseg("bag", "info", folder)
    assert "no metadata.yaml, .mcap" in " ".join(empty.output.split())


# --- view ------------------------------------------------------------------------------------


def test_view_draws_a_sweep_of_a_recording(
    tiny_run: Path, sequence: Sequence, tmp_path: Path
) -> None:
    picture = tmp_path / "sweep.png"
    result = pcseg(
        "view", f"semantic-kitti:{sequence()}", "--checkpoint", tiny_run, "--picture", picture
    )
    assert result.exit_code == 0, result.output
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[1] == 1600
    wrong = (pixels == np.round(255 * np.array([0.84, 0.12, 0.14])).astype(int)).all(axis=2)
    assert wrong.sum() > 100  # a random network is wrong somewhere


def test_view_draws_what_a_run_was_trained_on(tiny_run: Path, tmp_path: Path) -> None:
    one = tiny_run / "pseudo_labels" / "00001.npz"
    for source, name in ((tiny_run, "run.png"), (one, "one.png")):
        result = pcseg("view", source, "--picture", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert Image.open(tmp_path / name).size[0] == 1600


def test_view_shows_an_unfinished_run(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "pseudo_labels", tmp_path / "run" / "pseudo_labels")
    result = pcseg("view", tmp_path / "run", "--picture", tmp_path / "run.png")
    assert result.exit_code == 0, result.output


def test_view_saves_a_recording(tiny_run: Path, sequence: Sequence, tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    saved = tmp_path / "drive.rrd"
    result = pcseg(
        "view",
        f"semantic-kitti:{sequence(scans=3)}",
        "--checkpoint",
        tiny_run,
        "--save",
        saved,
        "--every",
        2,
    )
    assert result.exit_code == 0, result.output
    assert "2 sweeps" in result.output
    assert saved.read_bytes().startswith(b"RRF")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--picture", "x.gif"], "cannot write '.gif'"),
        (["--save", "x.mcap"], "cannot write '.mcap'"),
        (["--picture", "x.png", "--sweep", "2"], "has 2 sweeps"),
        (["--picture", "x.png", "--sweep", "-3"], "has 2 sweeps"),
    ],
)
def test_view_refuses(sequence: Sequence, arguments: list[str], message: str) -> None:
    result = pcseg("view", f"semantic-kitti:{sequence()}", *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_view_without_a_display_says_what_to_do(
    sequence: Sequence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    result = pcseg("view", f"semantic-kitti:{sequence()}")
    assert result.exit_code == 2
    assert "--out" in result.output


def test_view_without_rerun_names_the_package(
    tiny_run: Path, sequence: Sequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    result = pcseg("view", f"semantic-kitti:{sequence()}", "--save", tmp_path / "x.rrd")
    assert result.exit_code == 2
    assert "viewer" in result.output
    assert not list(tmp_path.glob("*.rrd"))
    assert issubclass(MissingDependency, ImportError)


# --- distill ---------------------------------------------------------------------------------

RECIPE = "teacher: {weights: bundled:simulation_teacher}\nseed: 4\n"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What the command asks the training for, which claims its run directory and does not run."""
    calls: list[Any] = []
    monkeypatch.chdir(tmp_path)
    for folder in ("drive", "x"):
        (tmp_path / folder).mkdir()
    (tmp_path / "drive" / "metadata.yaml").touch()

    def distill(
        sources: Any, recipe: Any, out: Path, *arguments: Any, **options: Any
    ) -> dict[str, Any]:
        calls.append((sources, recipe, out, *arguments, options))
        claim(out, recipe, sources, fresh=options["fresh"])
        shares = {"road": 0.75, "person": 0.25}
        times = {"labeling_s": 1.0, "training_s": 2.0}
        return {"sweeps": 3, "steps": 9, "class_shares": shares, **times}

    monkeypatch.setattr("pcseg_core.learning.distill.distill", distill)
    return calls


def test_distill_passes_on_what_was_asked(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    result = pcseg(
        "distill",
        "drive",
        "kitti-raw:x",
        "--recipe",
        tmp_path / "recipe.yaml",
        "--out",
        tmp_path / "run",
        "--seed",
        11,
    )
    assert result.exit_code == 0, result.output
    sources, recipe, out, *_ = asked[0]
    assert (sources, out, recipe.seed) == (["drive", "kitti-raw:x"], tmp_path / "run", 11)
    assert "road 75.0 %" in result.output


def test_distill_starts_over_only_a_run(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run, other = tmp_path / "run", tmp_path / "photos"
    for folder in (run, other):
        folder.mkdir()
        (folder / "metrics.json").write_text("x")
    (run / "recipe.yaml").write_text("{recipe: {}, sources: []}")
    start = ["distill", "drive", "--recipe", tmp_path / "recipe.yaml", "--fresh", "--out"]
    refused = pcseg(*start, other)
    assert refused.exit_code == 2
    assert "is not a run directory" in refused.output
    assert (other / "metrics.json").exists()
    assert pcseg(*start, run).exit_code == 0
    assert not (run / "metrics.json").exists()
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (None, "no recipe"),
        ("teacher: [", "not valid YAML"),
        (RECIPE + "optimizr: {}\n", "unknown key 'optimizr'"),
        (RECIPE + "optimizer: {steps: -1}\n", "optimizer.steps"),
    ],
)
def test_distill_refuses_bad_recipes(
    asked: list[Any], tmp_path: Path, recipe: str | None, message: str
) -> None:
    if recipe is not None:
        (tmp_path / "r.yaml").write_text(recipe)
    result = pcseg("distill", "drive", "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert message in result.output
    assert not asked


# --- doctor ----------------------------------------------------------------------------------


def test_doctor_tells_and_succeeds() -> None:
    result = pcseg("doctor")
    assert result.exit_code == 0
    for subject in ("python", "torch", "sparse backend torch", "rosbags", "ROS 2"):
        assert subject in result.output


def test_doctor_as_json_names_optional_packages_and_how_to_install_them() -> None:
    found = {f["subject"]: f for f in json.loads(pcseg("doctor", "--json", "-").stdout)["findings"]}
    assert {"huggingface_hub", "tensorboard", "mlflow", "wandb"} <= set(found)
    assert all(f["state"] == "ok" or f["detail"] for f in found.values())
    absent = [f for f in found.values() if f["state"] == "optional"]
    assert all("pip install 'pcseg_ros[" in f["detail"] for f in absent)


def test_doctor_names_requirements_that_are_missing_or_too_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = ["numpy>=999", "nowhere", "torch>=1", "alsonowhere; extra == 'x'"]
    monkeypatch.setattr(doctor, "requires", lambda name: needed)
    found = {finding.subject: finding for finding in findings()}["requirements"]
    assert found.state == "missing"
    assert "numpy is " in found.detail and "nowhere is missing" in found.detail
    assert "torch" not in found.detail and "alsonowhere" not in found.detail


def test_doctor_survives_what_is_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Any]:
        raise RuntimeError("the native library is of another machine")

    monkeypatch.setattr("pcseg_core.sparse.backends_report", broken)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    found = {finding.subject: finding for finding in findings()}
    assert found["sparse backends"].state == "missing"
    assert "another machine" in found["sparse backends"].detail
    assert found["ROS 2 (rclpy)"].state == "missing"
    assert "pip install 'pcseg_ros[viewer]'" in found["rerun"].detail
