# SPDX-License-Identifier: Apache-2.0
"""`pcseg label`: labels in the sweeps' order, interrupted and resumed, refused where it must."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from forks import end_self, run_in_child
from typer.testing import CliRunner

from pcseg_core.cli import app
from pcseg_core.data import open_recording
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.errors import InputError
from pcseg_core.evaluation.external_labels import ExternalLabels
from pcseg_core.labels import LabelSpace, truth_of
from pcseg_core.online.auto_labels import (
    AutoLabeler,
    LabelSettings,
    check_cameras,
    check_output,
    label_recording,
)
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.vision.teachers.espnetv2 import ESPNetv2Config

DRIVE = "simulated:seed=100004,sweeps=5,beams=24,columns=400,cameras=2,width=160,height=96"
STREET = LabelSpace.load("street")
CONFIG = ESPNetv2Config(weights=Path("bundled:simulation_teacher"), label_space="simulation")
SETTINGS = LabelSettings(source=DRIVE, teacher=CONFIG)
RECIPE = "teacher: {weights: 'bundled:simulation_teacher', label_space: simulation, scales: [2]}\n"


class Remembered:
    """The simulated drive, whose sweeps and images are rendered once."""

    @classmethod
    def of(cls, drive: Remembered, scenes: Sequence[str] | None = None) -> Remembered:
        """A copy, in which the sweeps of each scene are counted from 0."""
        other = copy(drive)
        other.samples, other.skipped = [replace(sample) for sample in drive.samples], Counter()
        if scenes is not None:
            other.scenes, counts = scenes, Counter[str]()
            for sample, scene in zip(other.samples, scenes):
                sample.scene, sample.name = scene, f"{scene}/{counts[scene]:06d}"
                counts[scene] += 1
        return other

    def __init__(self) -> None:
        drive = open_recording(DRIVE)
        self.name, self.label_space, self.scenes = drive.name, drive.label_space, drive.scenes
        self.pose_source, self.skipped = drive.pose_source, Counter[str]()
        self.samples = [drive[index] for index in range(len(drive))]
        for sample in self.samples:
            sample.cameras = [
                CameraFrame(f.name, f.stamp_ns, f.camera, f.T_cam_lidar, f.image, f.labels)
                for f in sample.cameras
            ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return replace(self.samples[index])


@lru_cache(maxsize=1)
def remembered() -> Remembered:
    return Remembered()


class ExactTeacher:
    """Knows the true label of every pixel; may be interrupted."""

    label_space = LabelSpace.load("simulation")

    def __init__(self, stop_after: int | None = None) -> None:
        frames = [frame for sample in remembered().samples for frame in sample.cameras]
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
    drive, out = remembered(), tmp_path / "out"
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


def test_interrupted_it_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drive, out = remembered(), tmp_path / "out"
    stopped = ExactTeacher(stop_after=8)  # in the second window, at its second sweep
    with pytest.raises(KeyboardInterrupt):
        label_recording(AutoLabeler(stopped, SETTINGS), drive, out, window=2)
    assert len(labels_in(out)) == 2
    assert "2 of 5 sweeps are labeled" in capsys.readouterr().err
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


@pytest.mark.parametrize("moment", ["settings", "label 0", "label 3", "mark", "cache", "clean"])
def test_sigkill_at_any_moment_is_resumed(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    out = tmp_path / "out"

    def killed() -> None:
        replace_file, unlink, count = Path.replace, Path.unlink, 0

        def rename(self: Path, target: Path) -> Path:
            nonlocal count
            number = count if target.suffix == ".label" else -1
            kinds = {"label.yaml": "settings", "done-2-4": "mark"}
            kind = "cache" if target.suffix == ".npz" else kinds.get(target.name, f"label {number}")
            if kind == moment:
                end_self(signal.SIGKILL)
            count += number >= 0
            return replace_file(self, target)

        def remove(self: Path, missing_ok: bool = False) -> None:
            if moment == "clean" and self.suffix == ".npz":
                end_self(signal.SIGKILL)
            unlink(self, missing_ok)

        Path.replace, Path.unlink = rename, remove  # type: ignore[method-assign, assignment]
        label_recording(AutoLabeler(ExactTeacher(), SETTINGS), remembered(), out, window=2)

    code, text = run_in_child(killed, tmp_path / "log")
    assert code == -signal.SIGKILL, text
    result = label_recording(AutoLabeler(ExactTeacher(), SETTINGS), remembered(), out, window=2)
    assert result.sweeps == 5 and result.kept == {"clean": 2, "mark": 2, "label 3": 2}.get(
        moment, 0
    )
    assert content(out) == content(whole)  # no temporary files either
    drive = remembered()
    again = label_recording(AutoLabeler(ExactTeacher(0), SETTINGS), drive, out, window=2)
    assert again.kept == 5 and (again.counts == result.counts).all()
    assert again.unlabeled == result.unlabeled


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The labels of the drive in windows of two sweeps."""
    out = tmp_path_factory.mktemp("whole") / "out"
    label_recording(AutoLabeler(ExactTeacher(), SETTINGS), remembered(), out, window=2)
    return out


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if not path.is_dir() or path.name[0] == ".")
    return {str(p.relative_to(folder)): b"" if p.is_dir() else p.read_bytes() for p in files}


def test_what_moves_is_written_beside_the_labels(tmp_path: Path) -> None:
    drive = Remembered.of(remembered())
    settings = SETTINGS.model_copy(update={"moving": True})
    label_recording(AutoLabeler(ExactTeacher(), settings), drive, tmp_path, window=3)
    labels, moving = (
        [np.fromfile(p, "<u4") for p in sorted((tmp_path / folder).glob("*.label"))]
        for folder in ("labels", "moving")
    )
    assert len(labels) == len(moving) == len(drive)
    for one, other in zip(labels, moving):
        assert len(one) == len(other) and (other[one == 0] == 0).all()
        assert set(np.unique(other)) <= {0, 9, 251} and (other == 9).any()


def test_scenes_keep_their_folders(tmp_path: Path) -> None:
    drive = Remembered.of(remembered(), scenes=["00", "00", "01", "01", "01"])
    out = tmp_path / "out"
    label_recording(AutoLabeler(ExactTeacher(), SETTINGS), drive, out, window=2)
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.label"))
    assert files == [
        *(f"00/labels/{k:06d}.label" for k in range(2)),
        *(f"01/labels/{k:06d}.label" for k in range(3)),
    ]
    labels = ExternalLabels(out, drive)
    for index in range(5):
        given = labels.of(index, drive[index])
        truth = truth_of(drive[index], STREET)
        known = (given >= 0) & (truth >= 0)
        assert known.mean() > 0.4 and (given == truth)[known].mean() > 0.93
    check_output(out, SETTINGS)  # all of it is ours


def test_without_images_nothing_is_labeled(tmp_path: Path, sequence: Callable[..., Path]) -> None:
    check_cameras(remembered())
    blind = Remembered.of(remembered())
    for sample in blind.samples:
        sample.cameras = []
    with pytest.raises(InputError, match="no image to take labels from"):
        check_cameras(blind)
    with pytest.raises(InputError, match="no point could be labeled: no camera sees"):
        label_recording(AutoLabeler(ExactTeacher(), SETTINGS), blind, tmp_path / "out")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    arguments = ["label", sequence(), "--recipe", recipe, "--out", tmp_path / "labels"]
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert "no image to take labels from" in result.output
    assert not (tmp_path / "labels").exists()


def test_the_students_labels_beside_them(tmp_path: Path) -> None:
    drive, out, student = remembered(), tmp_path / "out", Segmenter.load("bundled")
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
            self.drive = remembered()
            self.name, self.label_space = self.drive.name, self.drive.label_space
            self.pose_source, self.scenes = "none", self.drive.scenes
            self.skipped = Counter[str]()

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
    drive = remembered()
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
    recipe.write_text(RECIPE)
    arguments = ["label", DRIVE, "--recipe", recipe, "--out", tmp_path / "out"]
    arguments += ["--checkpoint", "bundled", "--format"]
    result = CliRunner().invoke(app, [*map(str, arguments), "semantic-kitti"])
    assert result.exit_code == 0, result.output
    assert "5 sweeps labeled" in result.output and "road" in result.output
    out = tmp_path / "out"
    assert len(labels_in(out)) == len(labels_in(out / "student")) == 5
    exported = labels_in(out / "semantic-kitti" / "sequences" / "00")
    assert all((a == b).all() for a, b in zip(labels_in(out), exported, strict=True))
    again = CliRunner().invoke(app, [*map(str, arguments), "semantic-kitti"])
    assert again.exit_code == 2 and "may have been corrected" in again.output
    other = CliRunner().invoke(app, [*map(str, arguments), "pcd"])
    assert "5 of them by an earlier run" in other.output
    assert len(list((out / "pcd").glob("*.pcd"))) == 5
