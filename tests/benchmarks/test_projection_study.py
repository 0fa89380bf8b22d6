# SPDX-License-Identifier: Apache-2.0
"""Projection study: known points, labels under faults, counts by group, rows that resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_runs import SMALL, STREET
from typer.testing import CliRunner

from benchmarks.studies import projection
from benchmarks.studies.projection_faults import (
    DARK,
    EXACT,
    STILL,
    Condition,
    KnownPoints,
    conditions,
    projected,
    title,
)
from benchmarks.studies.projection_labels import METHODS, OWN, VOTES, Tally, all_pixels, observed
from benchmarks.studies.projection_views import View, pixel_classes, views_of
from pcseg_core.camera import CameraModel
from pcseg_core.cloud import PointCloud
from pcseg_core.data.sample import Sample
from pcseg_core.distill.evidence import PixelEvidence
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig, gather_evidence
from pcseg_core.labels import IGNORE
from pcseg_core.simulation.faults import Faults
from pcseg_core.simulation.recording import SimulatedDrive

OPTIONS = "seed=100,town=center,sweeps=2,stride=3,cameras=1,width=96,height=64,beams=16,columns=128"
DRIVE = f"simulated:{OPTIONS}"


@pytest.fixture(scope="module")
def views() -> list[View]:
    return views_of([DRIVE], STREET)


@pytest.mark.parametrize("lens", ["pinhole", "fisheye"])
def test_known_points_come_back_to_their_pixels(lens: str) -> None:
    drive = SimulatedDrive(3, cameras=2, lens=lens, sweeps=1, beams=1, columns=16)
    found = projected([drive[0]], Condition(), seed=0)
    # Pixels and points of a sweep are float32.
    assert found["all"]["px_95"] < 1e-3 and found["distance"]["80"]["m"] < 1e-3
    still = projected([drive[0]], Condition(moving=False), seed=0)
    assert still["distance"]["5"]["px"] > 0.3  # the vehicle drives 8 m/s


def test_errors_of_known_points_are_those_of_the_faults() -> None:
    sample = SimulatedDrive(3, cameras=1, sweeps=1, beams=1, columns=16)[0]
    turned = projected([sample], Condition(Faults(camera_rotation_deg=1.0)), seed=5)
    chord = 2 * np.sin(np.radians(0.5))  # of a turn by one degree, across the axis
    for distance, figures in turned["distance"].items():
        assert 0 < figures["m"] <= float(distance) * chord * 1.01
    moved = projected([sample], Condition(Faults(camera_translation_m=0.1)), seed=5)
    far, near = moved["distance"]["40"], moved["distance"]["5"]
    assert far["m"] <= 0.101 and near["m"] <= 0.101
    assert near["px"] == pytest.approx(8 * far["px"], rel=0.15)


def test_points_beyond_the_image_are_not_known() -> None:
    narrow = KnownPoints.of(CameraModel.pinhole(100, 100, 49.5, 49.5, 100, 100))
    assert set(narrow.angle) == {0, 1, 2, 3}  # up to 30 degrees; the corner is at 35
    assert narrow.uv[narrow.angle == 0] == pytest.approx(49.5)


def test_without_the_occlusion_test_hidden_points_take_the_pixels_before_them() -> None:
    camera = CameraModel.pinhole(80, 80, 15.5, 15.5, 32, 32)
    classes = np.zeros((2, 32, 32), np.float32)
    classes[1] = 1
    image = PixelEvidence(classes, camera, np.eye(4))
    xyz = np.array([[0, 0, 2], [0.01, 0, 20], [0, 0, -2]], np.float32)
    config = PseudoLabelConfig()
    assert gather_evidence(xyz, [image], 2, config).index.tolist() == [0]
    every = all_pixels(xyz, [image], 2, config)
    assert every.index.tolist() == [0, 1] and every.sums.argmax(1).tolist() == [1, 1]


def test_tally_counts_by_group_and_class() -> None:
    groups = {
        "distance": np.array([0, 0, 1, 1, 3]),
        "border": np.array([0, IGNORE, 1, 1, 1]),
        "occlusion": np.zeros(5, int),
        "motion": np.array([2, 2, 0, 0, 0]),
    }
    truth = np.array([0, 0, 1, 1, IGNORE])
    view = View(0, Sample(PointCloud(np.ones((5, 3), np.float32))), [], truth, groups)
    tally = Tally(STREET)
    tally.add(view, np.array([0, 1, 1, IGNORE, 1]))
    found = tally.figures()
    assert (found["points"], found["labeled"], found["accuracy"]) == (4, 0.75, 2 / 3)
    assert found["by"]["distance"]["0-10 m"] == {"points": 2, "labeled": 1.0, "accuracy": 0.5}
    assert found["by"]["distance"]["40+ m"] == {"points": 0, "labeled": None, "accuracy": None}
    assert found["by"]["border"]["0-5 px"]["points"] == 1
    assert found["by"]["motion"]["moving"]["accuracy"] == 0.5
    sidewalk = found["class"][STREET.names[1]]
    assert sidewalk == {"points": 2, "labeled": 0.5, "accuracy": 1.0, "precision": 0.5}


def test_views_know_what_cameras_see(views: list[View]) -> None:
    for view in views:
        assert view.classes[0].shape == (len(STREET), 64, 96)
        assert set(np.unique(view.classes[0])) <= {0.0, 1.0}
        outside = view.groups["occlusion"] == 2
        np.testing.assert_array_equal(outside, view.groups["border"] == IGNORE)
        assert 0.5 < outside.mean() < 0.9  # one camera of 90 degrees


def test_classes_of_a_teacher_take_the_place_of_exact_ones(views: list[View]) -> None:
    drive = SimulatedDrive.from_text(OPTIONS)

    class Road:
        label_space = drive.label_space

        def probabilities(self, image: np.ndarray) -> np.ndarray:
            found = np.zeros((len(self.label_space), 2, 3), np.float32)
            found[self.label_space.index("road")] = 1
            return found

        def features(self, image: np.ndarray) -> np.ndarray:
            raise NotImplementedError

    frame = views[0].sample.cameras[0].decoded()
    found = pixel_classes(frame, drive.label_space, STREET, Road())
    assert found.shape == (len(STREET), 2, 3) and (found.argmax(0) == STREET.index("road")).all()


def test_the_last_camera_is_missing_or_dark(views: list[View]) -> None:
    drive, view = SimulatedDrive.from_text(OPTIONS), views[0]

    class Bright:
        label_space = drive.label_space

        def probabilities(self, image: np.ndarray) -> np.ndarray:
            found = np.zeros((len(self.label_space), 1, 1), np.float32)
            found[self.label_space.index("road" if image.mean() > 20 else "person")] = 1
            return found

        def features(self, image: np.ndarray) -> np.ndarray:
            raise NotImplementedError

    (tried,) = views_of(
        [f"simulated:{OPTIONS},sweeps=1".replace("sweeps=2,", "")], STREET, Bright()
    )
    kinds = {kind: tried.seen(kind) for kind in ("right", "missing", "dark")}
    assert [classes.argmax() for classes in kinds["right"]] == [STREET.index("road")]
    assert [classes.argmax() for classes in kinds["dark"]] == [STREET.index("person")]
    assert kinds["missing"] == []
    whole, none = (
        observed(view, condition, 0, True, PseudoLabelConfig())
        for condition in (Condition(), Condition(last_camera="missing"))
    )
    assert whole.evidence is not None and none.evidence is not None
    assert len(whole.evidence.index) > 100 > len(none.evidence.index) == 0


def run(*words: str) -> object:
    done = CliRunner().invoke(projection.app, words, catch_exceptions=False)
    return done.exit_code, done.output


def test_a_study_measures_conditions_and_students_and_resumes(
    views: list[View], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[object] = []
    monkeypatch.setattr(projection, "views_of", lambda *given: rendered.append(given) or views)
    recipe = {
        "teacher": {"weights": "bundled:simulation_teacher", "label_space": "simulation"},
        "student": SMALL.model_dump(mode="json"),
        "optimizer": {"batch_size": 1},
        "loss": {"min_confidence": 0.5},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe))
    out, worst = tmp_path / "rows.json", title("rotation", 2.0)
    words = ["--json", str(out), "--recipe", str(tmp_path / "own.yaml"), "--device", "cpu"]
    words += ["--data", DRIVE, "--test", DRIVE, "--steps", "1", "--condition", worst]
    words += ["--condition", EXACT, "--picture", str(tmp_path / "rows.png")]
    code, told = run(*words)
    assert code == 0 and (tmp_path / "rows.png").is_file()
    rows = {row["row"]: row for row in json.loads(out.read_text())["rows"]}
    clean, wrong = rows[EXACT]["labels"], rows[worst]["labels"]
    assert set(clean) == {method.name for method in METHODS}
    assert clean[OWN]["accuracy"] > 0.9 > wrong[OWN]["accuracy"] + 0.02
    assert clean[VOTES]["labeled"] >= clean[OWN]["labeled"]
    seen, hidden = (clean[OWN]["by"]["occlusion"][name] for name in ("seen", "hidden"))
    assert hidden["accuracy"] < seen["accuracy"] > 0.9
    assert rows[EXACT]["unseen"][OWN]["accuracy"] > 0.8
    # Students are added to the rows that are there.
    code, told = run(*words, "--students")
    names = [row["row"] for row in json.loads(out.read_text())["rows"]]
    assert code == 0 and names[:2] == [worst, EXACT] and len(rendered) == 2
    assert sorted(names[2:]) == sorted([f"student: {EXACT}", f"student: {worst}"])
    assert f"| student: {EXACT} |" in str(told)


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    json_ = ("--json", str(tmp_path / "rows.json"))
    for words, expected in (
        (("--pixels", "none"), "expected exact or teacher"),
        (("--data", "kitti-raw:DIR"), "expected a simulated drive"),
        (("--condition", "fog"), "no condition fog"),
        (("--condition", DARK), "no condition a camera dark"),
        (("--split", "semantic_kitti"), "give a split of the latter"),
    ):
        code, told = run(*json_, *words)
        assert code == 2 and expected in str(told)


def test_conditions_name_their_faults() -> None:
    found = conditions()
    assert found["position 0.2 m"].faults.camera_translation_m == 0.2
    assert found[EXACT].faults == Faults() and not found[STILL].moving
