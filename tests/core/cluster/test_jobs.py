# SPDX-License-Identifier: Apache-2.0
"""Jobs on several recordings give each what it gets alone; run again, they do what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from recordings import bag
from typer.testing import CliRunner, Result

from pcseg_core.cli import app
from pcseg_core.cluster import label as label_job
from pcseg_core.cluster import run
from pcseg_core.cluster.estimate import Estimate, Times, hours
from pcseg_core.cluster.job import Job, check_place
from pcseg_core.cluster.label import label_folders
from pcseg_core.cluster.run import RayOptions, run_here
from pcseg_core.cluster.schedule import Outcome
from pcseg_core.distill.observation import Observer
from pcseg_core.errors import InputError
from pcseg_core.learning import distill

RECIPE = "teacher: {weights: 'bundled:simulation_teacher', label_space: simulation, scales: [1]}\n"
STUDENT = "student: {depth: 14, width: 0.25, voxel_size_m: 0.5}\n"


def pcseg(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def files(folder: Path) -> dict[str, bytes]:
    """Results, without notes of what is done."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in found
        if not path.name.startswith("done") and path.parent.name != "done"
    }


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three bags, the second of which is damaged."""
    folder = tmp_path_factory.mktemp("drives")
    made = [bag(folder / f"drive{k}", 3, image_delay_ns=10_000_000 * k) for k in range(3)]
    shutil.rmtree(made[1])
    made[1].mkdir()
    (made[1] / "metadata.yaml").write_text("rosbag2_bagfile_information: {}\n")
    return made


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_labels_of_many_are_those_of_each(
    drives: list[Path], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "all", ("--recipe", recipe, "--window", 2)
    command = ("label", f"{drives[0].parent}/drive*", "--out", out, *options)
    result = pcseg(*command)
    assert result.exit_code == 2, result.output
    assert "6 sweeps of 2 recordings labeled" in result.output
    assert f"left out: {drives[1]}" in result.output and "1 of 3 recordings" in result.output
    alone = tmp_path / "alone"
    assert pcseg("label", drives[2], "--out", alone, *options).exit_code == 0
    assert files(alone) == files(out / "drive2") and len(files(alone)) > 4

    def no_teacher(*args: object) -> None:
        raise AssertionError("nothing is left to do")

    (out / "drive0" / "labels").rename(tmp_path / "taken")
    again = pcseg(*command)
    assert "6 sweeps of 2 recordings labeled, 3 of them by an earlier run" in again.output
    assert (out / "drive0" / "labels").is_dir()
    monkeypatch.setattr(label_job, "load_teacher", no_teacher)
    assert "6 of them by an earlier run" in pcseg(*command).output


def test_superpixels_of_many(drives: list[Path], tmp_path: Path) -> None:
    out, options = tmp_path / "all", ("--segments", 5)
    command = ("superpixels", drives[0], drives[2], "--out", out, *options)
    result = pcseg(*command)
    assert result.exit_code == 0, result.output
    assert "6 images done, 0 kept, of 2 recordings" in result.output
    alone = tmp_path / "alone"
    assert pcseg("superpixels", drives[2], "--out", alone, *options).exit_code == 0
    assert {n: b for n, b in files(out).items() if not n.startswith("drive0")} == files(alone)
    twin = tmp_path / "twin" / "drive0"
    shutil.copytree(drives[0], twin)
    other = pcseg("superpixels", drives[0], twin, "--out", out, *options)
    assert other.exit_code == 2 and "its results would go to drive0" in other.output


def test_folders_are_named_after_their_recordings() -> None:
    out = Path("out")
    assert label_folders(["a/drive"], out) == {"a/drive": out}
    found = label_folders(["a/drive", "b/drive", "s3://c/bag-2?poses=none"], out)
    assert found["s3://c/bag-2?poses=none"] == out / "bag-2"
    assert len(set(found.values())) == 3
    assert all(found[f"{x}/drive"].name.startswith("drive-") for x in "ab")


def test_what_cannot_work_is_refused_before_the_work(
    drives: list[Path], recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="s3:/bucket/out: results are written to a folder"):
        check_place(Path("s3://bucket/out"))
    check_place(tmp_path)
    out = ("--recipe", recipe, "--out", tmp_path / "out")
    assert "give --ray" in pcseg("label", drives[0], *out, "--workers", 2).output
    missing = pcseg("label", drives[0], tmp_path / "none", *out)
    assert missing.exit_code == 2 and "no such recording" in missing.output
    one = pcseg("label", *drives[::2], *out, "--format", "pcd", "--only", tmp_path / "list")
    assert "give one source" in one.output
    assert not (tmp_path / "out").exists()


def test_a_training_takes_what_the_workers_prepared(
    drives: list[Path], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[Path] = []

    def on_workers(job: Job, sources: list[str], options: RayOptions) -> Outcome:
        outcome = run_here(job, sources)
        prepared.extend(job.out.glob("*.npz"))
        return outcome

    def without_teachers(observer: Observer, recordings: object, *args: object) -> object:
        assert observer.evidence is not None
        monkeypatch.setattr(observer.evidence, "evidence", None)
        return observe(observer, recordings, *args)

    observe = distill.observe
    monkeypatch.setattr(run, "run_on_ray", on_workers)
    monkeypatch.setattr(distill, "observe", without_teachers)
    (tmp_path / "recipe.yaml").write_text(recipe.read_text() + STUDENT)
    command = ("distill", drives[0], "--recipe", tmp_path / "recipe.yaml", "--steps", 1)
    command += ("--out", tmp_path / "run", "--device", "cpu", "--ray", "local")
    result = pcseg(*command)
    assert result.exit_code == 0, result.output
    assert len(prepared) == 3
    monkeypatch.setattr(run, "run_on_ray", lambda *_: Outcome(left_out={"drive": "silent"}))
    bad = pcseg(*command[:-4], "--fresh", *command[-4:])
    assert bad.exit_code == 2 and "1 of 1 recordings were left out" in bad.output
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_figures_of_many(
    sequence: Callable[..., Path], tiny_run: Path, drives: list[Path], tmp_path: Path
) -> None:
    labeled = [sequence("one", 2), sequence("two", 3)]
    out = tmp_path / "all.json"
    command = ("evaluate", tiny_run, "--source", labeled[0], "--source", labeled[1], "--json", out)
    result = pcseg(*command, "--source", drives[0])
    assert result.exit_code == 2 and "drive0 has no labels to measure against" in result.output
    found = json.loads(out.read_text())
    assert found["scans"] == 5 and list(found["left_out"]) == [str(drives[0])]
    reports = []
    for source in labeled:
        alone = tmp_path / "alone.json"
        pcseg("evaluate", tiny_run, "--source", source, "--json", alone, "--no-baselines")
        reports.append(json.loads(alone.read_text()))
        assert found["recordings"][str(source)]["miou"] == reports[-1]["miou"]
    total = np.sum([report["confusion"] for report in reports], axis=0)
    assert found["confusion"] == total.tolist() and found["points"] == int(total.sum())
    again = pcseg(*command)
    assert again.exit_code == 0 and "2 recordings: 5 scans" in again.output
    refused = pcseg(*command[:-2])
    assert refused.exit_code == 2 and "need --json FILE" in refused.output


def test_an_estimate_follows_its_formula(drives: list[Path], recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "estimate.json"
    options = ("--sweeps", 1, "--json", out, "--device", "cpu")
    (tmp_path / "recipe.yaml").write_text(recipe.read_text() + STUDENT)
    result = pcseg("estimate", *drives, "--recipe", tmp_path / "recipe.yaml", *options)
    assert result.exit_code == 0, result.output
    assert f"left out: {drives[1]}" in result.output and "hours of the whole" in result.output
    found = Estimate.model_validate_json(out.read_text())
    assert (found.recordings, found.opened, found.sweeps, found.measured) == (3, 2, 9, 2)
    assert found.cameras == 1 and found.times.labels == 4 * 200
    assert found.times.recording == pytest.approx(
        np.mean([sum(f.stat().st_size for f in drive.iterdir()) for drive in drives[::2]])
    )
    times = Times(
        loading=0,
        opening=360,
        reading=1,
        teachers=2,
        fusing=0.5,
        step=36,
        cache=1,
        labels=1,
        recording=1,
    )
    one, ten = (hours(times, 10, 3600, 100, workers, gpu=True) for workers in (1, 10))
    assert one.teachers_h == pytest.approx(1 + 3) and ten.teachers_h == pytest.approx(0.4)
    assert one.rest_h == ten.rest_h == pytest.approx(0.5 + 1)
    assert hours(times, 10, 3600, 100, 1, gpu=True, rounds=2).rest_h == pytest.approx(1.5 + 1)
    assert one.label_h == pytest.approx(4.5) and one.gpu_h == ten.gpu_h == pytest.approx(5)
