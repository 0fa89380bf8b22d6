# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from recordings import T_CAM_LIDAR, picture, put, semantic_kitti

from pcseg_core.data.semantic_kitti import SemanticKittiRecording
from pcseg_core.errors import InputError


def test_sequence(tmp_path) -> None:
    drive = SemanticKittiRecording(semantic_kitti(tmp_path))
    sample = drive[2]
    assert len(drive) == 3 and drive.pose_source == "file" and set(drive.scenes) == {"00"}
    names = [drive.label_space.names[i] if i >= 0 else None for i in sample.labels[:5]]
    # 40 road, 10 car, 252 moving car, 0 unlabeled, 99 other object (ignored)
    assert names == ["road", "car", "car", None, None]
    assert sample.moving[:5].tolist() == [1, 1, 2, 0, 1] and sample.moving.dtype == np.uint8
    assert sample.labels.dtype == np.int16 and (sample.instances == 7).all()
    # The camera moves 0.5 m a frame along its z axis, which is the LiDAR's x axis.
    np.testing.assert_allclose(sample.T_world_lidar[:3, 3], [1.0, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(sample.cameras[0].T_cam_lidar, T_CAM_LIDAR, atol=1e-12)
    np.testing.assert_array_equal(sample.cameras[0].image[:, :, 1], picture(2)[:, :, 0])


def test_color_images_are_preferred(tmp_path) -> None:
    sequence = semantic_kitti(tmp_path)
    (sequence / "image_2").symlink_to(sequence / "image_0")
    with pytest.raises(InputError, match="no entry 'P2'"):
        SemanticKittiRecording(sequence)[0]
    calib = (sequence / "calib.txt").read_text()
    put(sequence / "calib.txt", calib + calib.splitlines()[0].replace("P0", "P2") + "\n")
    assert [c.name for c in SemanticKittiRecording(sequence)[0].cameras] == ["image_2"]


@pytest.mark.parametrize("up", ["", "sequences", "sequences/00"])
def test_any_folder_above_does(tmp_path, up: str) -> None:
    semantic_kitti(tmp_path, extras=False)
    drive = SemanticKittiRecording(tmp_path / up)
    assert len(drive) == 3 and drive[0].trajectory is None and drive[0].cameras == []


def test_two_sequences_are_two_scenes(tmp_path) -> None:
    semantic_kitti(tmp_path, frames=2)
    semantic_kitti(tmp_path / "other", frames=1).rename(tmp_path / "sequences" / "01")
    drive = SemanticKittiRecording(tmp_path)
    assert list(drive.scenes) == ["00", "00", "01"]
    assert drive[2].name == "01/000000"


def test_one_scan_without_poses_or_labels(tmp_path) -> None:
    put(tmp_path / "mine" / "velodyne" / "000042.bin", np.ones((7, 4), np.float32).tobytes())
    drive = SemanticKittiRecording(tmp_path)
    assert len(drive) == 1 and drive[0].labels is None and len(drive[0].cloud) == 7


def test_labels_of_another_length(tmp_path) -> None:
    sequence = semantic_kitti(tmp_path)
    path = sequence / "labels" / "000001.label"
    path.write_bytes(path.read_bytes()[:-4])
    drive = SemanticKittiRecording(sequence)
    with pytest.raises(InputError, match=r"000001\.label: 199 labels for a sweep of 200 points"):
        drive[1]
    assert len(drive[0].labels) == 200


def test_a_frame_beyond_the_poses_has_none(tmp_path) -> None:
    sequence = semantic_kitti(tmp_path, frames=6)
    poses = (sequence / "poses.txt").read_text().splitlines()
    put(sequence / "poses.txt", "\n".join(poses[:2]))
    drive = SemanticKittiRecording(sequence)
    assert drive[1].trajectory is not None and drive[5].trajectory is None
    assert len(drive[5].labels) == 200


def test_faults_of_scans_and_poses(tmp_path) -> None:
    sequence = semantic_kitti(tmp_path)
    (sequence / "velodyne" / "000000.bin").write_bytes(b"\0" * 7)
    drive = SemanticKittiRecording(sequence)
    assert len(drive) == 2 and "truncated" in str(drive.skipped)
    put(sequence / "poses.txt", "1 0 0\n")
    with pytest.raises(InputError, match=r"poses\.txt, line 1: 3 values"):
        SemanticKittiRecording(sequence)


def test_nothing_there(tmp_path) -> None:
    with pytest.raises(InputError, match="no velodyne folder"):
        SemanticKittiRecording(tmp_path)


def test_real_scans(shared_data) -> None:
    drive = SemanticKittiRecording(shared_data / "semantic_kitti")
    sample = drive[0]
    assert len(drive) == 2 and len(sample.labels) == len(sample.cloud) > 100_000
    # Points labeled car stand on the ground around the sensor, 1.7 m above it.
    cars = sample.cloud.xyz[sample.labels == drive.label_space.names.index("car")]
    road = sample.cloud.xyz[sample.labels == drive.label_space.names.index("road")]
    assert -2.2 < np.median(road[:, 2]) < -1.4 < np.median(cars[:, 2]) < 0.5
    assert sample.cameras[0].name == "image_0" and sample.cameras[0].image.shape == (376, 1241, 3)
