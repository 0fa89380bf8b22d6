# SPDX-License-Identifier: Apache-2.0
"""Data sets on disk with faults: each costs one item, and the rest is accounted for."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from recordings import bag, kitti_object, kitti_raw, nuscenes, picture, png, put, semantic_kitti

from pcseg_core.data import account, fingerprint, open_recording, readable
from pcseg_core.data.kitti import KittiObjectRecording, KittiRawRecording
from pcseg_core.data.nuscenes import NuScenesRecording
from pcseg_core.data.odometry import cached_trajectory
from pcseg_core.data.semantic_kitti import SemanticKittiRecording
from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory


def _explained(recording) -> dict:
    entries = account(recording).entries()
    assert not any(entry.unexplained for entry in entries.values()), entries
    return entries


@pytest.mark.parametrize("kind", ["raw", "object", "semantic"])
def test_a_link_to_nothing_costs_one_sweep(tmp_path, kind: str) -> None:
    make, reader, where = {
        "raw": (kitti_raw, KittiRawRecording, "velodyne_points/data"),
        "object": (kitti_object, KittiObjectRecording, "velodyne"),
        "semantic": (semantic_kitti, SemanticKittiRecording, "velodyne"),
    }[kind]
    path = make(tmp_path)
    first = sorted((path / where).glob("*.bin"))[0]
    count = len(reader(path))
    first.unlink()
    first.symlink_to(tmp_path / "gone")
    drive = reader(path)
    assert len(drive) == count - 1 and "cannot be read" in str(drive.skipped)
    assert _explained(drive)["sweeps"].held == count


def test_images_of_kitti_are_accounted_for(tmp_path) -> None:
    path = kitti_raw(tmp_path)
    (path / "image_02" / "data" / f"{1:010d}.png").unlink()
    (path / "velodyne_points" / "data" / f"{3:010d}.bin").write_bytes(b"0")
    entries = _explained(KittiRawRecording(path))
    assert (entries["sweeps"].held, entries["sweeps"].used) == (4, 3)
    assert (entries["image_02"].held, entries["image_02"].used) == (3, 2)
    assert entries["image_02"].left_out == {"image that is missing": 1}


def test_a_singular_projection_is_named(tmp_path) -> None:
    sequence = semantic_kitti(tmp_path)
    lines = (sequence / "calib.txt").read_text().splitlines()
    put(sequence / "calib.txt", "\n".join(["P0: " + "0 " * 12, *lines[1:]]))
    drive = SemanticKittiRecording(sequence)
    with pytest.raises(InputError, match=r"calib\.txt, P0: the projection .* is singular"):
        drive[0]
    assert list(readable(drive)) == []
    assert _explained(drive)["sweeps"].failed


def test_an_image_above_the_limit_costs_one_sample(tmp_path, monkeypatch) -> None:
    sequence = semantic_kitti(tmp_path)
    put(sequence / "image_0" / "000001.png", png(picture(0, (200, 200))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    drive = SemanticKittiRecording(sequence)
    assert [index for index, _ in readable(drive)] == [0, 2]


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("sample_data", "filename", 7),
        ("sample_data", "timestamp", "soon"),
        ("ego_pose", "rotation", "left"),
        ("ego_pose", "translation", None),
        ("calibrated_sensor", "rotation", [0, 0, 0, 0]),
        ("scene", "token", ["a"]),
        ("sample", "timestamp", None),
    ],
)
def test_wrong_types_in_the_tables_of_nuscenes(tmp_path, table, column, value) -> None:
    path = nuscenes(tmp_path) / "v1.0-mini" / f"{table}.json"
    rows = json.loads(path.read_text())
    rows[0][column] = value
    path.write_text(json.dumps(rows))
    try:
        drive = NuScenesRecording(tmp_path)
    except InputError:
        return
    assert len(list(readable(drive))) == 1  # one of two key frames
    _explained(drive)


@pytest.mark.parametrize("content", ["{}", "3", "[1, 2]", '"text"'])
def test_tables_of_nuscenes_that_are_no_tables(tmp_path, content: str) -> None:
    path = nuscenes(tmp_path) / "v1.0-mini" / "sample_data.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"sample_data\.json: not a nuScenes table"):
        NuScenesRecording(tmp_path)


def test_one_wrong_key_frame_of_nuscenes_costs_one(tmp_path) -> None:
    path = nuscenes(tmp_path) / "v1.0-mini" / "sample_data.json"
    rows = json.loads(path.read_text())
    next(row for row in rows if row["token"] == "cam1")["filename"] = None
    path.write_text(json.dumps(rows))
    drive = NuScenesRecording(tmp_path)
    assert len(drive) == 1 and "wrong entry" in str(drive.skipped)
    assert _explained(drive)["sweeps"].held == 2


def test_too_long_names_of_nuscenes_are_missing_files(tmp_path) -> None:
    path = nuscenes(tmp_path) / "v1.0-mini" / "sample_data.json"
    rows = json.loads(path.read_text())
    for token in ("cam0", "lidar1"):
        next(row for row in rows if row["token"] == token)["filename"] = "x" * 300
    path.write_text(json.dumps(rows))
    entries = _explained(NuScenesRecording(tmp_path))
    assert (entries["sweeps"].held, entries["sweeps"].used) == (2, 1)
    assert entries["images"].used < entries["images"].held


def test_missing_files_of_nuscenes_are_accounted_for(tmp_path) -> None:
    root = nuscenes(tmp_path)
    (root / "samples/lidar/0.pcd.bin").unlink()
    (root / "samples/cam/1.png").unlink()
    entries = _explained(NuScenesRecording(root))
    assert (entries["sweeps"].held, entries["sweeps"].used) == (2, 1)
    assert (entries["images"].held, entries["images"].used) == (2, 0)


def test_sequences_of_one_name_in_several_folders_stay_apart(tmp_path) -> None:
    for robot in ("a", "b"):
        shutil.copytree(semantic_kitti(tmp_path / "made" / robot), tmp_path / "all" / robot / "00")
    drive = SemanticKittiRecording(tmp_path / "all")
    names = [drive[index].name for index in range(len(drive))]
    assert len(set(names)) == 6 and names[0] == "a/00/000000"
    assert set(drive.scenes) == {"a/00", "b/00"}


def test_accounts_of_readers_without_their_own(tmp_path) -> None:
    drive = open_recording("simulated:seed=3,sweeps=2")
    drive.skipped["no image of front near a sweep"] += 3
    entries = _explained(drive)
    assert (entries["sweeps"].held, entries["sweeps"].used) == (2, 2)
    assert entries["other items"].left_out == {"no image of front near a sweep": 3}


def test_the_fingerprint_changes_with_the_files(tmp_path) -> None:
    path = bag(tmp_path / "drive")
    first = fingerprint(path)
    assert fingerprint(path) == first
    os.utime(path / "drive.mcap", ns=(1, 1))
    second = fingerprint(path)
    with (path / "drive.mcap").open("ab") as file:
        file.write(b"0")
    os.utime(path / "drive.mcap", ns=(1, 1))
    assert len({first, second, fingerprint(path)}) == 3


def test_links_that_lead_back_are_followed_once(tmp_path) -> None:
    put(tmp_path / "velodyne" / "0.bin", b"1")
    before = fingerprint(tmp_path)
    for name in ("loop", "knot"):
        (tmp_path / "velodyne" / name).symlink_to(tmp_path)
    assert fingerprint(tmp_path) == before


def test_a_user_without_home_still_has_a_cache(tmp_path, monkeypatch) -> None:
    def nobody(*_args: object) -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", nobody)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(
        "pcseg_core.data.odometry.estimate_trajectory",
        lambda sweeps: Trajectory(np.array([1]), np.eye(4)[None]),
    )
    assert len(cached_trajectory("key", iter(()))) == 1
    assert len(list(tmp_path.glob("pcseg-*/pcseg/odometry/*.npz"))) == 1
