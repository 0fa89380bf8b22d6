# SPDX-License-Identifier: Apache-2.0
"""Run directories: claimed once everything is checked, known by recipe and sources."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import STREET, semantic_kitti, write_run, write_word_run

from pcseg_core.bundled import FILE_NAME, bundled_file
from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.config import read_yaml
from pcseg_core.data import open_recording
from pcseg_core.distill.cache import read_arrays
from pcseg_core.errors import InputError
from pcseg_core.learning.distill import distill
from pcseg_core.learning.pretrain import pretrain
from pcseg_core.learning.recipe import Recipe, load_recipe
from pcseg_core.learning.run_folder import check_claim, claim, finished, identity, named
from pcseg_core.learning.runs import input_statistics
from pcseg_core.learning.zero_shot import zero_shot
from pcseg_core.learning.zero_shot_split import load_split
from pcseg_core.simulation import to_bag
from pcseg_core.simulation.recording import SimulatedDrive

SOURCE = "simulated:seed=5,sweeps=2,beams=16,columns=256,cameras=1,width=96,height=64"
NAME = "bundled:simulation_teacher"
TEACHER = {"weights": NAME, "label_space": "simulation", "scales": [1.0]}
STUDENT = {"depth": 14, "width": 0.25, "voxel_size_m": 0.5}


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "teacher": TEACHER,
        "student": STUDENT,
        "optimizer": {"steps": 2, "batch_size": 1},
        "loss": {"min_confidence": 0.0},
    }
    return Recipe.model_validate({**values, **changes})


def contrast(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "encoder": {"name": "espnetv2", "weights": bundled_file(NAME)},
        "superpixels": {"name": "slic", "segments": 20},
        "student": STUDENT,
        "optimizer": {"steps": 1, "batch_size": 1},
    }
    return Recipe.model_validate({**values, **changes})


def drive(path: Path, seed: int, cameras: int = 1) -> Path:
    """A small bag."""
    simulated = SimulatedDrive(
        seed, sweeps=2, beams=16, columns=256, cameras=cameras, width=96, height=64
    )
    to_bag.write_simulated_bag(simulated, path, workers=1)
    return path


def started(out: Path) -> Path:
    """Make a claimed run directory one whose training has started."""
    (out / "last.ckpt").write_bytes(b"state")
    return out


def test_nothing_is_claimed_before_everything_is_checked(tmp_path: Path) -> None:
    out = tmp_path / "run"
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    for wrong, message in (
        (recipe(teacher={**TEACHER, "weights": str(broken)}), "broken.safetensors: not readable"),
        (recipe(teacher={**TEACHER, "label_space": "cityscape"}), "cityscape"),
        (recipe(labels={"label_space": "strret"}), "strret"),
        (recipe(text={"space": {}, "classes": {"moon": ["x"]}}), "moon"),
    ):
        with pytest.raises(InputError, match=message):
            distill([SOURCE], wrong, out, device="cpu")
    with pytest.raises(InputError, match="no such file"):
        distill([str(tmp_path / "driv")], recipe(), out, device="cpu")
    encoder = {"name": "espnetv2", "weights": str(broken)}
    with pytest.raises(InputError, match="broken.safetensors: not readable"):
        pretrain([SOURCE], contrast(encoder=encoder), out, device="cpu")
    words = recipe(text={"space": {"channels": 16}}, supervision="zero-shot")
    with pytest.raises(InputError, match="no such file"):
        zero_shot([str(tmp_path / "driv")], [], load_split("street_vehicle_pole"), words, out)
    assert not out.exists()


def test_the_difference_between_runs_is_named(tmp_path: Path) -> None:
    out = tmp_path / "run"
    claim(out, recipe(), [SOURCE, "every 1"])
    claim(out, recipe(seed=3), [SOURCE, "every 1"])  # nothing but a claim
    started(out)
    check_claim(out, recipe(seed=3), [SOURCE, "every 1"])
    longer = recipe(seed=4, optimizer={"steps": 150, "batch_size": 1})
    with pytest.raises(InputError, match="another recipe, seed or sources") as told:
        check_claim(out, longer, [SOURCE, "every 2", "start x"])
    for part in (
        "optimizer.steps: 2 there, 150 here",
        "seed: 3 there, 4 here",
        "sources.2: every 1 there, every 2 here",
        "sources.3: nothing there, start x here",
        "--fresh",
    ):
        assert part in str(told.value)
    claim(out, longer, [SOURCE], fresh=True)
    assert [path.name for path in out.iterdir()] == ["recipe.yaml"]


def test_a_claim_that_was_cut_short_is_no_obstacle(tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / ".recipe.yaml.x1y2").mkdir(parents=True)
    claim(out, recipe(), [SOURCE])
    assert read_yaml(out / "recipe.yaml")["sources"] == [SOURCE] and finished(out) is None
    (out / ".notes").touch()
    with pytest.raises(InputError, match="did not write .*notes"):
        claim(out, recipe(), [SOURCE], fresh=True)


def test_a_source_is_known_by_its_place_options_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = semantic_kitti(tmp_path / "00", 1)
    (tmp_path / "poses.txt").write_text("0 0 0 0 0 0 0 1")
    monkeypatch.chdir(tmp_path)
    first = identity("00")
    assert first.startswith(f"semantic-kitti:{folder} (files ") and first == identity(str(folder))
    assert identity(SOURCE) == SOURCE and identity("missing") == "missing"
    assert identity("bag:00?poses=poses.txt").startswith(f"bag:{folder}?poses=poses.txt (files ")
    before = identity("bag:00?poses=poses.txt")
    (tmp_path / "poses.txt").write_text("0 1 0 0 0 0 0 1\n")
    assert identity("bag:00?poses=poses.txt") != before
    (folder / "out" / "cache").mkdir(parents=True)
    (folder / "out" / "cache" / "a.npz").touch()
    assert identity("00", [folder / "out"]) == first != identity("00")
    run = write_run(tmp_path / "run")
    known = named("start", run)
    (run / "picture.png").touch()
    assert named("start", run) == known and named("start", None) == []
    (run / FILE_NAME).write_bytes(b"another checkpoint")
    assert named("start", run) != known
    labels = tmp_path / "labels"
    labels.mkdir()
    unlabeled = named("labels", labels)
    (labels / "000000.label").write_bytes(bytes(4))
    assert named("labels", labels) != unlabeled


def test_another_recording_at_the_same_path_is_another_run(tmp_path: Path) -> None:
    path, cache = drive(tmp_path / "drive", 5), tmp_path / "cache"
    metrics = distill([str(path)], recipe(), tmp_path / "a", cache, "cpu")
    assert metrics["poses"] == {f"bag:{path}": "tf"}
    (tmp_path / "a" / "metrics.json").unlink()
    (path / "notes.txt").touch()  # no file of the bag
    distill([str(path)], recipe(), tmp_path / "a", cache, "cpu")
    shutil.rmtree(path)
    drive(path, 6)
    with pytest.raises(InputError, match="sources.1: .* there, .* here"):
        distill([str(path)], recipe(), tmp_path / "a", cache, "cpu")
    distill([str(path)], recipe(), tmp_path / "b", cache, "cpu")
    labels = sorted((tmp_path / "b" / "pseudo_labels").glob("*.npz"))
    cloud = open_recording(path)[0].cloud
    assert np.array_equal(read_arrays(labels[0])["xyz"], cloud.xyz[cloud.finite])
    before = len(list(tmp_path.glob("views/superpixels-*/*/*.npz")))
    pretrain([str(path)], contrast(), tmp_path / "c", tmp_path / "views", "cpu")
    shutil.rmtree(path)
    drive(path, 5)
    pretrain([str(path)], contrast(), tmp_path / "d", tmp_path / "views", "cpu")
    folders = list((tmp_path / "views").glob("superpixels-*/drive-*"))
    assert before == 0 and len(folders) == 2


@pytest.mark.parametrize(
    "part, told",
    [("_write_static", "tf_static"), ("write_camera_info", "CameraInfo"), ("", "image")],
)
def test_a_bag_that_cannot_train_says_what_bag_info_knows(
    part: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place: Any = to_bag if part == "_write_static" else to_bag.BagWriter
    if part:
        monkeypatch.setattr(place, part, lambda *_: None)
    bag = drive(tmp_path / "drive", 5, cameras=1 if part else 0)
    with pytest.raises(InputError, match=f"cannot train a segmenter: .*{told}") as error:
        distill([str(bag)], recipe(), tmp_path / "run", device="cpu")
    assert f"pcseg bag info {bag}" in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("named_by", ["command", "recipe"])
def test_a_pretrained_backbone_is_taken_over(
    named_by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = write_run(tmp_path / "pretrained")
    before = load_checkpoint(pretrained)[0]
    still = {"steps": 1, "batch_size": 1, "learning_rate": 1e-12, "average": 0.0}
    if named_by == "command":  # which replaces that of the recipe
        chosen, start = recipe(optimizer=still, start="nowhere"), pretrained
    else:
        chosen, start = recipe(optimizer=still, start=pretrained), None
    distill([SOURCE], chosen, tmp_path / "run", device="cpu", start=start)
    after = load_checkpoint(tmp_path / "run")[0]
    backbone = [name for name in before if not name.startswith("network.classifier.")]
    weights = [n for n in backbone if "running" not in n and "tracked" not in n]
    assert all(np.allclose(after[n], before[n], atol=1e-6) for n in weights)
    assert after["network.classifier.weight"].shape[0] == len(STREET)
    told = capsys.readouterr().err
    assert f"{len(backbone)} tensors of {pretrained} (backbone); new: classifier" in told


def test_starts_of_another_architecture_are_named(tmp_path: Path) -> None:
    pretrained = write_run(tmp_path / "pretrained")
    other = recipe(student={**STUDENT, "width": 0.5, "inputs": ["z"]})
    with pytest.raises(InputError, match="is another network") as error:
        distill([SOURCE], other, tmp_path / "run", device="cpu", start=pretrained)
    assert "student.width: 0.25 there, 0.5 here" in str(error.value)
    assert "student.inputs: ('z', 'intensity') there, ('z',) here" in str(error.value)
    heads = recipe(optimizer={"heads_only": True}, text={"space": {"channels": 16}})
    with pytest.raises(InputError, match="knows none"):
        distill([SOURCE], heads, tmp_path / "run", device="cpu", start=pretrained)
    (tmp_path / "words").mkdir()
    words = write_word_run(tmp_path / "words")
    with pytest.raises(InputError, match="same label space"):
        distill(
            [SOURCE],
            recipe(labels={"label_space": "simulation"}),
            tmp_path / "run",
            device="cpu",
            start=words,
        )
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_knows_how_its_bags_were_read(tmp_path: Path) -> None:
    bag = drive(tmp_path / "drive", 5)
    other = open_recording(bag)
    ends = open_recording(f"bag:{bag}?time_field=time&stamp_reference=end&intensity_scale=0.5")
    cloud = ends[0].cloud
    found = input_statistics([cloud], [ends, ends])
    assert (found.time_field, found.stamp_reference) == ("time", "end")
    assert found.intensity_scale == 0.5
    mixed = input_statistics([cloud], [ends, other])
    assert (mixed.time_field, mixed.stamp_reference, mixed.intensity_scale) == (None, None, None)
    again = open_recording(bag, trained=found)[0].cloud
    assert np.array_equal(again.time, cloud.time) and again.time.max() <= 0
    assert open_recording(bag, trained=found, stamp_reference="start")[0].cloud.time.min() >= 0


class _OneBadImage:
    """A drive with two cameras; the first image of one does not decode."""

    name, label_space, pose_source = "bad", None, "none"
    scenes = ("a", "a")

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.samples = open_recording(SOURCE.replace("cameras=1", "cameras=2"))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        sample = self.samples[index]
        if index == 0:

            def broken() -> np.ndarray:
                raise InputError("image 17 does not decode")

            sample.cameras[0]._image = broken
        return sample


def test_a_bad_image_costs_that_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcseg_core.learning.runs.open_recording", lambda _, **__: _OneBadImage())
    metrics = distill(["bad"], recipe(), tmp_path / "run", device="cpu")
    camera = open_recording(SOURCE)[0].cameras[0].name
    assert metrics["sweeps"] == 2
    assert metrics["skipped"] == {f"image of {camera}: image 17 does not decode": 1}
    labels = [read_arrays(p)["label"] for p in sorted((tmp_path / "run").glob("pseudo_labels/*"))]
    assert (labels[0] >= 0).any()


@pytest.mark.parametrize(
    "line",
    ["optimizer: {learning_rate: .nan}", "loss: {lovasz: .inf}", "labels: {priors: {car: .inf}}"],
)
def test_recipes_hold_finite_numbers(line: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"teacher: {{weights: 'bundled:simulation_teacher'}}\n{line}\n")
    with pytest.raises(InputError, match="finite number"):
        load_recipe(path)
