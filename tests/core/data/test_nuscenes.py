# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from recordings import nuscenes, picture, points

from pcseg_core.data import open_recording
from pcseg_core.data.nuscenes import NuScenesRecording
from pcseg_core.errors import InputError


def test_tables(tmp_path) -> None:
    drive = NuScenesRecording(nuscenes(tmp_path))
    sample = drive[1]
    assert len(drive) == 2 and set(drive.scenes) == {"scene-0001"}
    np.testing.assert_allclose(sample.cloud.intensity, points(100, seed=1)[:, 3], atol=1e-6)
    assert sample.cloud.ring.dtype == np.uint16 and sample.cloud.ring[33] == 1
    assert sample.stamp_ns == 1_532_402_927_500_000_000
    assert sample.cameras[0].stamp_ns - sample.stamp_ns == -40_000_000
    np.testing.assert_array_equal(sample.cameras[0].image, picture(1))
    # The LiDAR is 1 m ahead of the vehicle's origin and 2 m up; 10 m/s for half a second.
    np.testing.assert_allclose(sample.T_world_lidar[:3, 3], [106.0, 0.0, 2.0], atol=1e-9)


def test_only_the_named_scenes_are_read(tmp_path) -> None:
    root, listed = nuscenes(tmp_path / "data"), tmp_path / "val.txt"
    listed.write_text("scene-0001\n")
    assert len(open_recording(f"nuscenes:{root}?scenes={listed}")) == 2
    for content, message in (("scene-0001\nscene-9999\n", "scene-9999"), ("", "names none")):
        listed.write_text(content)
        with pytest.raises(InputError, match=message):
            NuScenesRecording(root, scenes=listed)
    with pytest.raises(InputError, match="not readable"):
        NuScenesRecording(root, scenes=tmp_path / "absent.txt")


def test_extrinsics_and_motion_by_hand(tmp_path) -> None:
    sample = NuScenesRecording(nuscenes(tmp_path))[0]
    # LiDAR (0, 0, 0) is 0.5 m behind and 0.5 m above the camera; optical y points down.
    static = sample.cameras[0].T_cam_lidar @ [0.0, 0.0, 0.0, 1.0]
    np.testing.assert_allclose(static, [0.0, -0.5, -0.5, 1.0], atol=1e-12)
    # The image was taken 40 ms earlier, when the vehicle was 0.4 m further back.
    moved = sample.T_cam_lidar(0) @ [0.0, 0.0, 0.0, 1.0]
    np.testing.assert_allclose(moved, [0.0, -0.5, -0.1, 1.0], atol=1e-9)


def test_boxes_by_hand(tmp_path) -> None:
    (box,) = NuScenesRecording(nuscenes(tmp_path))[0].boxes
    np.testing.assert_allclose(box.center, [10.0, 2.0, -1.0], atol=1e-9)  # LiDAR at 101, 0, 2
    np.testing.assert_allclose(box.size, [4.0, 2.0, 1.5])  # length, width, height
    assert box.yaw == pytest.approx(0.5) and box.label == "vehicle.car"


def test_lidarseg_labels(tmp_path) -> None:
    drive = NuScenesRecording(nuscenes(tmp_path))
    assert drive.label_space.names[drive[0].labels[0]] == "car"  # raw id 17
    (tmp_path / "lidarseg" / "0.bin").write_bytes(b"\x11" * 99)
    with pytest.raises(InputError, match="99 labels for a sweep of 100 points"):
        drive[0]
    unlabeled = NuScenesRecording(nuscenes(tmp_path / "bare", lidarseg=False))
    assert unlabeled.label_space is None and unlabeled[0].labels is None


def test_missing_files_are_counted(tmp_path) -> None:
    root = nuscenes(tmp_path)
    (root / "samples/lidar/0.pcd.bin").unlink()
    (root / "samples/cam/1.png").unlink()
    drive = NuScenesRecording(root / "v1.0-mini")
    assert len(drive) == 1 and drive[0].cameras == []
    assert drive.skipped["sweep whose file is missing"] == 1
    assert drive.skipped["image whose file is missing"] == 1


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("ego_pose", "[", "not readable as a nuScenes table"),
        ("ego_pose", "[]", "lacks or misuses 'p-cam0'"),
        ("sensor", None, "not readable as a nuScenes table"),
    ],
)
def test_broken_tables(tmp_path, table: str, content: str | None, message: str) -> None:
    path = nuscenes(tmp_path) / "v1.0-mini" / f"{table}.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match=message):
        NuScenesRecording(tmp_path)


def test_versions_and_other_folders(tmp_path) -> None:
    with pytest.raises(InputError, match=r"neither v1\.0-\*"):
        NuScenesRecording(tmp_path)
    nuscenes(tmp_path)
    (tmp_path / "v1.0-test").mkdir()
    with pytest.raises(InputError, match="several versions"):
        NuScenesRecording(tmp_path)


def test_broken_sample_json(tmp_path) -> None:
    (tmp_path / "sample.json").write_text("{}")
    with pytest.raises(InputError, match="lacks or misuses 'timestamp'"):
        NuScenesRecording(tmp_path)
    (tmp_path / "sample.json").write_text("{")
    with pytest.raises(InputError, match="not readable as JSON"):
        NuScenesRecording(tmp_path)
    mirror = np.diag([1.0, -1.0, 1.0, 1.0]).tolist()
    described = {"timestamp": 1.0, "lidar": {"lidar2ego": mirror}, "ego2global": mirror}
    (tmp_path / "sample.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match="sample.json: 'lidar2ego' is no rotation"):
        NuScenesRecording(tmp_path)


def test_real_sample(shared_data) -> None:
    """Transforms with motion and points in boxes agree with what the file says itself."""
    folder = shared_data / "nuscenes_sample"
    described = json.loads((folder / "sample.json").read_text())
    sample = NuScenesRecording(folder)[0]
    assert len(sample.cloud) == 34_688 and len(sample.cameras) == 6
    assert sample.cloud.intensity.max() <= 1.0
    for k, frame in enumerate(sample.cameras):
        expected = described["cameras"][frame.name]["lidar2cam"]
        np.testing.assert_allclose(sample.T_cam_lidar(k), expected, atol=1e-6)
        assert frame.image.shape == (900, 1600, 3)
    inside = np.array([box.contains(sample.cloud.xyz).sum() for box in sample.boxes])
    counted = np.array([row["num_lidar_pts"] for row in described["boxes"]])
    assert inside.sum() > 400
    assert np.mean(np.abs(inside - counted) <= 2) > 0.95
    assert abs(inside.sum() - counted.sum()) < 0.05 * counted.sum()


@pytest.mark.parametrize("size", [[2.0, -4.0, 1.5], [2.0, float("nan"), 1.5]])
def test_boxes_that_are_none_name_their_table(tmp_path, size: list[float]) -> None:
    folder = nuscenes(tmp_path)
    table = folder / "v1.0-mini" / "sample_annotation.json"
    rows = json.loads(table.read_text())
    rows[0]["size"] = size
    table.write_text(json.dumps(rows))
    recording = NuScenesRecording(folder)
    with pytest.raises(InputError, match="sample_annotation.json: box 'vehicle.car'"):
        recording[0]
    assert len(recording[1].boxes) == 1


@pytest.mark.parametrize("table", ["calibrated_sensor", "ego_pose"])
def test_a_pose_that_is_none_costs_its_scene(tmp_path, table: str) -> None:
    folder = nuscenes(tmp_path)
    path = folder / "v1.0-mini" / f"{table}.json"
    rows = json.loads(path.read_text())
    rows[0]["translation"][0] = "nan"
    path.write_text(json.dumps(rows))
    with pytest.raises(InputError, match=f"{folder}: no usable sweep; 2 x .*not a place"):
        NuScenesRecording(folder)
