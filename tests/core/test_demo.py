# SPDX-License-Identifier: Apache-2.0
"""The demo in miniature, without DDS, and its measuring by answers that are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from pcseg_core.cli import app
from pcseg_core.demo import run as demo
from pcseg_core.demo.measure import ALL, SEEN, UNSEEN, measure
from pcseg_core.demo.run import DemoSettings, run_demo
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.evaluation.live import ReplayResult
from pcseg_core.labels import LabelSpace, truth_of
from pcseg_core.online.pipeline import Pipeline
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.vision.pixel_classes import load_teacher

TINY = DemoSettings(
    training_drives=1,
    training_sweeps=2,
    replay_sweeps=2,
    beams=16,
    columns=128,
    width=160,
    height=96,
    voxel_size_m=0.5,
    steps=2,
    use_ros=False,
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    run_demo(TINY, out)
    return out


def test_it_leaves_report_picture_and_bags(done: Path) -> None:
    report = json.loads((done / "report.json").read_text())
    for key in ("student_miou", "teacher_miou", "bundled_miou", "student_miou_unseen"):
        assert 0 <= report[key] <= 1
    assert (report["transport"], report["sweeps_answered"]) == ("in process", 2)
    assert report["drops"] == {}
    assert report["stages_ms"]["inference"]["p95"] >= report["stages_ms"]["inference"]["p50"] > 0
    assert 0.1 < report["seen_share"] < 0.9  # two cameras of 90 degrees
    seen, unseen = (report["classes"]["student"][part]["points"] for part in (SEEN, UNSEEN))
    assert report["classes"]["student"][ALL]["points"] == seen + unseen
    assert report["classes"]["teacher"][SEEN]["points"] == seen
    assert (done / "picture.png").stat().st_size > 20_000
    assert {p.name for p in (done / "bags").iterdir()} == {"training_0", "live"}


def test_the_recording_is_there_where_rerun_is(done: Path) -> None:
    pytest.importorskip("rerun", reason="needs rerun-sdk")
    assert (done / "drive.rrd").stat().st_size > 10_000


def test_the_same_call_goes_on_and_another_starts_over(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    with monkeypatch.context() as patched:
        patched.setattr(demo, "write_simulated_bag", fail)
        patched.setattr(demo, "distill", fail)
        run_demo(TINY, done)
        other = TINY.model_copy(update={"seed": 1})
        with pytest.raises(InputError, match="--fresh"):
            run_demo(other, done)
        assert (done / "report.json").is_file()
        with pytest.raises(AssertionError, match="done again"):
            run_demo(other, done, fresh=True)
    assert [path.name for path in done.iterdir()] == ["settings.yaml"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(InputError, match="not a demo"):
            run_demo(TINY, tmp_path, fresh=fresh)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("settings", ["theme: dark", "seed: 1\neditor: vim", "[1, 2]"])
def test_settings_of_another_program_do_not_make_a_folder_ours(
    tmp_path: Path, settings: str
) -> None:
    (tmp_path / "settings.yaml").write_text(settings)
    (tmp_path / "bags").mkdir()
    (tmp_path / "bags" / "thesis.tex").write_text("years of work")
    result = CliRunner().invoke(app, ["demo", "--fresh", "--no-ros", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "not a demo" in result.output
    assert (tmp_path / "bags" / "thesis.tex").is_file()
    assert (tmp_path / "settings.yaml").read_text() == settings


def test_files_of_others_in_a_demo_keep_it_whole(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(TINY.model_dump()))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("by hand")
    with pytest.raises(InputError, match=r"did not write .run/notes\.txt"):
        run_demo(TINY, tmp_path, fresh=True)
    assert (tmp_path / "run" / "notes.txt").is_file()


def test_answers_that_are_the_truth_score_one() -> None:
    drive = SimulatedDrive(8, sweeps=2, beams=16, columns=128, width=160, height=96)
    street = LabelSpace.load("street")
    sample = drive[0]
    answers = ReplayResult("test", 2, {sample.cloud.stamp_ns: truth_of(sample, street)})
    teacher = load_teacher(TINY.recipe().teacher)
    arguments = (street, teacher, Pipeline(Segmenter.load("bundled")), PseudoLabelConfig())
    scores = measure(drive, answers, *arguments)
    assert scores.sweeps == 1  # the other one was not answered
    assert [scores.miou("student", part) for part in (SEEN, UNSEEN, ALL)] == [1, 1, 1]
    assert 0 < scores.miou("teacher", SEEN) < 1
    assert scores.confusions["teacher", UNSEEN].matrix.sum() == 0
    assert scores.confusions["student", ALL].points == np.sum(truth_of(sample, street) >= 0)
    with pytest.raises(PcsegError, match="none of its 2 sweeps"):
        measure(drive, ReplayResult("test", 2), *arguments)
