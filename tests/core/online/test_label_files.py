# SPDX-License-Identifier: Apache-2.0
"""Label files of recordings: names, ids, folders that belong to others."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from pcseg_core.cloud import PointCloud
from pcseg_core.data import Recording, Sample, open_recording
from pcseg_core.data.label_files import label_paths, raw_ids_of
from pcseg_core.errors import InputError
from pcseg_core.evaluation.external_labels import ExternalLabels
from pcseg_core.labels import LabelSpace
from pcseg_core.online import replay
from pcseg_core.online.moving import with_moving
from pcseg_core.online.pipeline import Pipeline, Sweep


def test_label_files_follow_the_sweeps(
    pipeline: Pipeline, sequence: Callable[..., Path], tmp_path: Path
) -> None:
    drive = open_recording(f"semantic-kitti:{sequence(scans=2)}")
    out = tmp_path / "labels_of_drive"
    result = replay.segment_recording(pipeline, drive, out)
    space = LabelSpace.load(out / "labels.yaml")
    assert space.names == pipeline.label_space.names
    files = sorted((out / "labels").iterdir())
    assert [file.name for file in files] == ["000000.label", "000001.label"]
    for index, file in enumerate(files):
        raw = np.fromfile(file, "<u4")
        expected = pipeline.process(Sweep(drive[index].cloud)).labels
        assert np.array_equal(space.from_raw(raw), expected)
    assert result.sweeps == 2


def test_what_moves_is_written_for_recordings_with_poses(
    pipeline: Pipeline, sequence: Callable[..., Path], tmp_path: Path
) -> None:
    drive = open_recording("simulated:seed=100004,sweeps=3,cameras=0,beams=16,columns=300")
    replay.segment_recording(pipeline, drive, tmp_path / "files", moving=True)
    replay.segment_recording_to_bag(pipeline, drive, tmp_path / "bag", moving=True)
    files = sorted((tmp_path / "files" / "moving").iterdir())
    bag = open_recording(str(tmp_path / "bag"))
    placed = [
        (k, replay.placed(s, pipeline.process(Sweep.of(s)).labels, pipeline.label_space))
        for k, s in enumerate(drive)
    ]
    for (index, expected), file in zip(with_moving(placed), files):
        raw = np.fromfile(file, "<u4")
        np.testing.assert_array_equal(raw, np.array([0, 9, 251])[expected])
        np.testing.assert_array_equal(bag[index].cloud.extra["moving"], expected)
    assert len(files) == len(drive) and placed[0][1].pose is not None
    still = open_recording(f"semantic-kitti:{sequence(scans=2)}")
    with pytest.raises(InputError, match="what moves is found by poses, and it has none"):
        replay.segment_recording(pipeline, still, tmp_path / "none", moving=True)
    assert not (tmp_path / "none").exists()


def test_sequences_keep_their_folders(
    pipeline: Pipeline, sequence: Callable[..., Path], tmp_path: Path
) -> None:
    for name, scans in (("set/sequences/00", 2), ("set/sequences/01", 3)):
        sequence(name, scans=scans)
    drives, out = open_recording(f"semantic-kitti:{tmp_path / 'set'}"), tmp_path / "out"
    assert replay.segment_recording(pipeline, drives, out).sweeps == 5
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.label"))
    assert files == [
        f"{s}/labels/{k:06d}.label" for s, n in (("00", 2), ("01", 3)) for k in range(n)
    ]
    labels = ExternalLabels(out, drives)
    for index in range(5):
        expected = pipeline.process(Sweep(drives[index].cloud)).labels
        assert np.array_equal(labels.of(index, drives[index]), expected)
    one = open_recording(f"semantic-kitti:{tmp_path / 'set' / 'sequences' / '01'}")
    shutil.copy(out / "labels.yaml", out / "01" / "labels.yaml")
    for folder in (out, out / "01"):  # of all sequences, and of this one
        assert ExternalLabels(folder, one).of(2, one[2]) is not None
    assert replay.segment_recording(pipeline, one, tmp_path / "one").sweeps == 3
    flat = ExternalLabels(tmp_path / "one", drives)  # whose are they?
    assert all(flat.of(index, drives[index]) is None for index in range(5))
    with pytest.raises(InputError, match="did not write"):
        replay.segment_recording(pipeline, drives, out, force=True)


@pytest.mark.parametrize(
    ("name", "scene", "path"),
    [
        ("00/000007", "00", "00/labels/000007.label"),
        ("a/00/000007", "a/00", "a/00/labels/000007.label"),
        ("../../x/7", "../../x", "%2E%2E/%2E%2E/x/labels/7.label"),
        ("s/a b", "s", "s/labels/a%20b.label"),
        ("s/a_b", "s", "s/labels/a_b.label"),
        ("s/", "s", "s/labels/000003.label"),
        ("kitti-object/7", "kitti-object/7", "labels/7.label"),
    ],
)
def test_paths_of_label_files(name: str, scene: str, path: str) -> None:
    sample = Sample(PointCloud(np.zeros((1, 3))), name=name, scene=scene)
    several = cast(Recording, SimpleNamespace(scenes=["one", scene]))
    assert label_paths(several)(sample, 3) == path
    alone = label_paths(cast(Recording, SimpleNamespace(scenes=[scene])))
    assert alone(sample, 3) == path[path.index("labels/") :]


def test_label_files_of_a_data_set_use_its_own_ids(tiny_run: Path) -> None:
    space = LabelSpace.load("semantic_kitti")
    raw = raw_ids_of(space)
    assert raw[space.index("car")] == 10
    assert raw[space.index("road")] == 40
    assert np.array_equal(space.from_raw(raw), np.arange(len(space)))


def test_a_folder_that_holds_something_else_is_never_replaced(
    pipeline: Pipeline, sequence: Callable[..., Path], tmp_path: Path
) -> None:
    drive = open_recording(f"semantic-kitti:{sequence()}")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not a folder of label files"):
        replay.segment_recording(pipeline, drive, mine, force=True)
    assert (mine / "thesis.tex").read_text() == "years of work"
    replay.segment_recording(pipeline, drive, tmp_path / "out")
    with pytest.raises(InputError, match="--force"):
        replay.segment_recording(pipeline, drive, tmp_path / "out")
    assert replay.segment_recording(pipeline, drive, tmp_path / "out", force=True).sweeps == 2


@pytest.mark.parametrize(
    "labels", ["cat: 1", "name: pets\nclasses: [{name: cat, color: [1, 2, 3]}]"]
)
def test_a_labels_file_of_another_program_does_not_make_a_folder_ours(
    pipeline: Pipeline, sequence: Callable[..., Path], tmp_path: Path, labels: str
) -> None:
    drive = open_recording(f"semantic-kitti:{sequence()}")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "labels.yaml").write_text(labels)
    (theirs / "cats.csv").write_text("years of work")
    with pytest.raises(InputError, match="not a folder of label files"):
        replay.segment_recording(pipeline, drive, theirs, force=True)
    assert sorted(path.name for path in theirs.iterdir()) == ["cats.csv", "labels.yaml"]


def test_files_of_others_in_a_result_keep_it_whole(
    pipeline: Pipeline, sequence: Callable[..., Path], tmp_path: Path
) -> None:
    drive, out = open_recording(f"semantic-kitti:{sequence()}"), tmp_path / "out"
    replay.segment_recording(pipeline, drive, out)
    (out / "labels" / "corrections.txt").write_text("by hand")
    before = sorted(path.name for path in out.rglob("*"))
    with pytest.raises(InputError, match=r"did not write .labels/corrections\.txt"):
        replay.segment_recording(pipeline, drive, out, force=True)
    assert sorted(path.name for path in out.rglob("*")) == before
    (out / "labels" / "corrections.txt").unlink()
    with pytest.raises(RuntimeError):
        replay.segment_recording(pipeline, drive, out, force=True, progress=fail)
    assert len(list((out / "labels").iterdir())) == 2  # the earlier result stays


def fail(_done: int, _total: int) -> None:
    raise RuntimeError


def test_a_drive_of_unreadable_sweeps_is_an_error_and_leaves_nothing(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    class Broken:
        name, label_space, pose_source = "broken", None, "none"
        scenes = ("a",)

        def __init__(self) -> None:
            self.skipped: Counter[str] = Counter()

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> object:
            raise InputError("sweep 0 is truncated")

    for write in (replay.segment_recording, replay.segment_recording_to_bag):
        with pytest.raises(InputError, match="sweep 0 is truncated"):
            write(pipeline, Broken(), tmp_path / "out")  # type: ignore[arg-type, operator]
    assert not list(tmp_path.iterdir())
