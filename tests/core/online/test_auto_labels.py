# SPDX-License-Identifier: Apache-2.0
"""`pcseg label`: labels in the sweeps' order, interrupted and resumed, refused where it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pcseg_core.cli import app
from pcseg_core.data import open_recording
from pcseg_core.data.sample import Sample
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace, truth_of
from pcseg_core.online.auto_labels import AutoLabeler, LabelSettings, label_recording
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.vision.teachers.espnetv2 import ESPNetv2Config

DRIVE = "simulated:seed=100004,sweeps=5,beams=24,columns=400,cameras=2,width=160,height=96"
STREET = LabelSpace.load("street")
CONFIG = ESPNetv2Config(weights=Path("bundled:simulation_teacher"), label_space="simulation")
SETTINGS = LabelSettings(source=DRIVE, teacher=CONFIG)


class ExactTeacher:
    """Knows the true label of every pixel; may be interrupted."""

    label_space = LabelSpace.load("simulation")

    def __init__(self, stop_after: int | None = None) -> None:
        drive = open_recording(DRIVE)
        frames = [frame for index in range(len(drive)) for frame in drive[index].cameras]
        self.known = {frame.image.tobytes(): frame.labels for frame in frames}
        self.calls, self.stop_after = 0, stop_after

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        labels = self.known[image.tobytes()]
        return (labels == np.arange(len(self.label_space))[:, None, None]).astype(np.float32)

    def features(self, image: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def labels_in(folder: Path) -> list[np.ndarray]:
    return [np.fromfile(path, "<u4") for path in sorted((folder / "labels").glob("*.label"))]


def test_the_teachers_labels_are_those_of_the_points(tmp_path: Path) -> None:
    drive, out = open_recording(DRIVE), tmp_path / "out"
    settings = SETTINGS.model_copy(update={"min_confidence": 0.5})
    result = label_recording(AutoLabeler(ExactTeacher(), settings), drive, out, window=3)
    files = labels_in(out)
    assert result.sweeps == len(files) == 5
    for index, raw in enumerate(files):
        truth = truth_of(drive[index], STREET)
        assert len(raw) == len(truth)
        given = raw.astype(np.int64) - 1
        known = (given >= 0) & (truth >= 0)
        assert known.mean() > 0.4
        assert (given == truth)[known].mean() > 0.93
    space = LabelSpace.load(str(out / "labels.yaml"))
    assert space.names == STREET.names and space.raw_to_id[1] == 0 and space.raw_to_id[0] == -1
    assert result.counts.sum() + result.unlabeled == sum(map(len, files))


def test_interrupted_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    drive, out = open_recording(DRIVE), tmp_path / "out"
    stopped = ExactTeacher(stop_after=8)  # in the second window, at its second sweep
    with pytest.raises(KeyboardInterrupt):
        label_recording(AutoLabeler(stopped, SETTINGS), drive, out, window=2)
    assert len(labels_in(out)) == 2
    teacher = ExactTeacher()
    labeler = AutoLabeler(teacher, SETTINGS)
    steps: list[tuple[int, int]] = []
    result = label_recording(
        labeler, drive, out, window=2, progress=lambda *step: steps.append(step)
    )
    assert (result.sweeps, result.kept) == (5, 2)
    assert teacher.calls == 4  # one sweep of the second window was cached
    assert steps[-1] == (5, 5)
    resumed = labels_in(out)
    whole = tmp_path / "whole"
    label_recording(labeler, drive, whole, window=2)
    assert all((a == b).all() for a, b in zip(resumed, labels_in(whole)))
    before = teacher.calls
    again = label_recording(labeler, drive, out, window=2)
    assert (again.kept, teacher.calls) == (5, before)
    assert not list(out.glob("cache/*.npz"))


def test_the_students_labels_beside_them(tmp_path: Path) -> None:
    drive, out, student = open_recording(DRIVE), tmp_path / "out", Segmenter.load("bundled")
    settings = SETTINGS.model_copy(update={"checkpoint": "bundled"})
    label_recording(AutoLabeler(ExactTeacher(), settings, Pipeline(student)), drive, out)
    given = labels_in(out / "student")
    expected = Pipeline(student).process(Sweep(drive[3].cloud)).labels
    assert (given[3].astype(np.int64) - 1 == expected).all()
    assert LabelSpace.load(str(out / "student" / "labels.yaml")).names == STREET.names


def test_sweeps_that_no_camera_sees_are_unlabeled(tmp_path: Path) -> None:
    class Blind:
        """The first sweep has no image, the last cannot be read."""

        def __init__(self) -> None:
            self.drive = open_recording(DRIVE)
            self.name, self.label_space = self.drive.name, self.drive.label_space
            self.pose_source, self.scenes = "none", self.drive.scenes
            self.skipped = self.drive.skipped

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Sample:
            if index == 2:
                raise InputError("sweep is broken")
            sample = self.drive[index]
            sample.trajectory = None
            if index == 0:
                sample.cameras = []
            return sample

    drive = Blind()
    result = label_recording(AutoLabeler(ExactTeacher(), SETTINGS), drive, tmp_path / "out")
    first, second = labels_in(tmp_path / "out")
    assert (first == 0).all() and (second > 0).any()
    assert result.sweeps == 2 and any("broken" in reason for reason in result.skipped)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    drive = open_recording(DRIVE)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    labeler = AutoLabeler(ExactTeacher(), SETTINGS)
    with pytest.raises(InputError, match="not a folder of automatic labels"):
        label_recording(labeler, drive, tmp_path / "taken")
    (tmp_path / "taken" / "label.yaml").write_text("printer: zebra")
    with pytest.raises(InputError, match="not a folder of automatic labels"):
        label_recording(labeler, drive, tmp_path / "taken")
    assert {path.name for path in (tmp_path / "taken").iterdir()} == {"file", "label.yaml"}
    label_recording(labeler, drive, tmp_path / "out")
    other = AutoLabeler(ExactTeacher(), SETTINGS.model_copy(update={"min_confidence": 0.9}))
    with pytest.raises(InputError, match="other settings"):
        label_recording(other, drive, tmp_path / "out")


def test_the_command(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "teacher: {weights: 'bundled:simulation_teacher', label_space: simulation, scales: [2]}\n"
    )
    arguments = ["label", DRIVE, "--recipe", recipe, "--out", tmp_path / "out"]
    result = CliRunner().invoke(app, [*map(str, arguments), "--checkpoint", "bundled"])
    assert result.exit_code == 0, result.output
    assert "5 sweeps labeled" in result.output and "road" in result.output
    assert len(labels_in(tmp_path / "out")) == len(labels_in(tmp_path / "out" / "student")) == 5
