# SPDX-License-Identifier: Apache-2.0
import pickle

import numpy as np
import pytest
from recordings import CAMERA, T_CAM_LIDAR, kitti_object, kitti_raw, picture, put, row

from pcseg_core.data.kitti import KittiObjectRecording, KittiRawRecording
from pcseg_core.data.kitti_files import oxts_packet, oxts_poses, projective_camera, read_stamps
from pcseg_core.errors import InputError
from pcseg_core.geometry import from_euler


def test_raw_drive(tmp_path) -> None:
    drive = KittiRawRecording(kitti_raw(tmp_path))
    sample = drive[1]
    assert len(drive) == 4 and drive.pose_source == "oxts" and not drive.skipped
    assert len(sample.cloud) == 200 and sample.cloud.frame_id == "velodyne"
    x, y, _ = sample.cloud.xyz.T
    assert sample.cloud.time is not None and np.abs(sample.cloud.time).max() <= 0.052
    np.testing.assert_array_equal(sample.cloud.time < 0, y > 0)  # clockwise: left before right
    assert np.ptp(sample.cloud.time[np.argsort(np.abs(np.arctan2(y, x)))[:5]]) < 0.01  # ahead
    assert sample.stamp_ns == 1317042651 * 10**9 + 200_000_000
    frame = sample.cameras[0]
    assert frame.name == "image_02" and frame.stamp_ns == sample.stamp_ns
    np.testing.assert_array_equal(frame.image, picture(1))
    assert pickle.loads(pickle.dumps(drive))[1].name == sample.name


def test_pixels_are_those_of_the_projection_matrices(tmp_path) -> None:
    """The development kit's x = P_rect R_rect Tr X, for points in front of the camera."""
    sample = KittiRawRecording(kitti_raw(tmp_path))[0]
    xyz = np.array([[10.0, 1.0, 0.5], [30.0, -8.0, 1.0]])
    P = np.hstack([CAMERA.K, CAMERA.K @ [[0.06], [0.0], [0.0]]])
    ahead = np.column_stack([xyz, np.ones(2)]) @ (from_euler(0.01, 0, 0) @ T_CAM_LIDAR).T @ P.T
    T = sample.T_cam_lidar(0)
    uv, valid = sample.cameras[0].camera.project(xyz @ T[:3, :3].T + T[:3, 3])
    assert valid.all()
    np.testing.assert_allclose(uv, ahead[:, :2] / ahead[:, 2:], atol=1e-9)


def test_oxts_by_hand(tmp_path) -> None:
    """One thousandth of a degree at 49 degrees north, heading east then north."""
    east = put(tmp_path / "0.txt", row(np.array([49.0, 8.0, 100.0, 0.0, 0.0, 0.0])))
    north = put(tmp_path / "1.txt", row(np.array([49.001, 8.001, 101.5, 0.0, 0.0, np.pi / 2])))
    poses = oxts_poses(np.stack([oxts_packet(east), oxts_packet(north)]))
    np.testing.assert_allclose(poses[0], np.eye(4), atol=1e-12)
    meters = np.radians(0.001) * 6378137.0
    np.testing.assert_allclose(
        poses[1][:3, 3], [meters * np.cos(np.radians(49.0)), meters, 1.5], rtol=2e-5
    )
    np.testing.assert_allclose(poses[1][:3, 0], [0.0, 1.0, 0.0], atol=1e-12)


def test_stamps_keep_nanoseconds(tmp_path) -> None:
    path = put(tmp_path / "t.txt", "2011-09-26 13:10:51.158069617\n\n2011-09-26 13:10:52.0")
    np.testing.assert_array_equal(read_stamps(path), [1317042651158069617, 0, 1317042652000000000])


def test_projection_splits_into_camera_and_offset() -> None:
    P = np.array([[700.0, 0, 600, 45], [0, 700, 170, 0.2], [0, 0, 1, 0.003]])
    model, T = projective_camera(P, 1242, 375)
    x = np.array([3.0, -1.0, 12.0])
    expected = P @ [*x, 1.0]
    uv, _ = model.project((T[:3, :3] @ x + T[:3, 3])[None])
    np.testing.assert_allclose(uv[0], expected[:2] / expected[2], rtol=1e-12)


def test_poses_from_a_file(tmp_path) -> None:
    path = kitti_raw(tmp_path, oxts=False)
    assert KittiRawRecording(path).pose_source == "none"
    poses = [from_euler(0, 0, 0, (i, 0, 0))[:3] for i in range(4)]
    put(path / "poses_lidar_kiss_icp.txt", "\n".join(row(pose) for pose in poses))
    drive = KittiRawRecording(path)
    assert drive.pose_source == "kiss-icp"
    np.testing.assert_allclose(drive[2].T_world_lidar[:3, 3], [2.0, 0.0, 0.0], atol=1e-12)
    put(path / "poses_lidar_kiss_icp.txt", "\n".join(row(pose) for pose in poses[:3]))
    with pytest.raises(InputError, match="3 poses for sweeps up to number 3"):
        KittiRawRecording(path)


def test_unusable_sweeps_are_counted(tmp_path) -> None:
    path = kitti_raw(tmp_path)
    data = path / "velodyne_points" / "data"
    (data / f"{0:010d}.bin").write_bytes(b"\0" * 33)
    (data / f"{1:010d}.bin").write_bytes(b"")
    drive = KittiRawRecording(path)
    assert drive.frames == [2, 3]
    assert len(drive.skipped) == 2 and "multiple of 16" in str(drive.skipped)


def test_sweep_without_finite_points_is_named(tmp_path) -> None:
    path = kitti_raw(tmp_path)
    cells = np.full((10, 4), np.nan, dtype=np.float32)
    (path / "velodyne_points" / "data" / f"{2:010d}.bin").write_bytes(cells.tobytes())
    with pytest.raises(InputError, match=r"0000000002\.bin: none of its 10 points is finite"):
        KittiRawRecording(path)[2]


def test_stamps_that_go_backwards_are_left_out(tmp_path) -> None:
    path = kitti_raw(tmp_path)
    stamps = path / "velodyne_points" / "timestamps.txt"
    lines = stamps.read_text().splitlines()
    stamps.write_text("\n".join([lines[0], lines[2], lines[1], lines[3]]))
    drive = KittiRawRecording(path)
    assert len(drive) == 3 and drive.skipped["sweep whose stamp repeats or goes backwards"] == 1


def test_missing_image_leaves_the_sweep(tmp_path) -> None:
    path = kitti_raw(tmp_path)
    (path / "image_02" / "data" / f"{1:010d}.png").unlink()
    drive = KittiRawRecording(path)
    assert drive[1].cameras == [] and len(drive[0].cameras) == 1
    assert drive.skipped["image_02: image that is missing"] == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("calib_velo_to_cam.txt", None, "calib_velo_to_cam.txt: cannot read"),
        ("calib_cam_to_cam.txt", "S_rect_02: 40 20\n", "no entry 'P_rect_02'"),
        ("calib_velo_to_cam.txt", "R: 1 0 0\nT: 0 0 0\n", "'R' has 3 values; expected 9"),
    ],
)
def test_missing_calibration(tmp_path, name: str, content: str | None, message: str) -> None:
    path = kitti_raw(tmp_path)
    (path.parent / name).unlink() if content is None else put(path.parent / name, content)
    with pytest.raises(InputError, match=message):
        KittiRawRecording(path)


def test_broken_stamps_and_oxts(tmp_path) -> None:
    path = kitti_raw(tmp_path)
    put(path / "oxts" / "data" / f"{1:010d}.txt", "49.0 8.0")
    drive = KittiRawRecording(path)
    assert len(drive) == 4 and not drive.account.unexplained()
    assert "expected latitude" in next(iter(drive.account.left_out["oxts"]))
    for number in (0, 2, 3):
        put(path / "oxts" / "data" / f"{number:010d}.txt", "49.0 8.0")
    with pytest.raises(InputError, match="expected latitude"):
        KittiRawRecording(path)
    put(path / "oxts" / "timestamps.txt", "")
    with pytest.raises(InputError, match="no usable packet.*no time stamp"):
        KittiRawRecording(path)
    put(path / "velodyne_points" / "timestamps.txt", "yesterday")
    with pytest.raises(InputError, match=r"timestamps\.txt: a line is not"):
        KittiRawRecording(path)


def test_not_a_drive(tmp_path) -> None:
    with pytest.raises(InputError, match="give the folder of one drive"):
        KittiRawRecording(tmp_path)


def test_object_frames_are_scenes_of_their_own(tmp_path) -> None:
    drive = KittiObjectRecording(kitti_object(tmp_path))
    assert len(drive) == 2 and len(set(drive.scenes)) == 2 and drive.pose_source == "none"
    sample = drive[1]
    assert sample.trajectory is None and sample.cameras[0].name == "image_2"
    np.testing.assert_array_equal(sample.cameras[0].image, picture(1))


def test_object_boxes_by_hand(tmp_path) -> None:
    # Bottom 1.75 m below the camera, which is 0.2 m above the LiDAR (cam y = -z + 0.2), 1.5 high:
    # center at camera y = 1.0, LiDAR z = -0.8. rotation_y = pi heads along camera -x, LiDAR +y.
    (box,) = KittiObjectRecording(kitti_object(tmp_path))[0].boxes
    np.testing.assert_allclose(box.center, [10.0, 0.0, -0.8], atol=1e-9)
    np.testing.assert_allclose(box.size, [4.0, 1.6, 1.5])
    assert box.label == "Car" and box.yaw == pytest.approx(np.pi / 2)


def test_object_faults(tmp_path) -> None:
    training = kitti_object(tmp_path, frames=3)
    (training / "calib" / "000000.txt").unlink()
    (training / "label_2" / "000001.txt").write_text("Car 0 0 zero 0 0 1 1 a b c 0 0 0 0\n")
    (training / "label_2" / "000002.txt").unlink()
    drive = KittiObjectRecording(training)
    assert drive.frames == ["000001", "000002"] and "no calibration" in str(drive.skipped)
    with pytest.raises(InputError, match="line 1: not a KITTI object label"):
        drive[0]
    assert drive[1].boxes is None


def test_real_object_boxes_hold_their_points(shared_data) -> None:
    drive = KittiObjectRecording(shared_data / "kitti_object" / "training")
    near = [
        box.contains(sample.cloud.xyz).sum()
        for sample in (drive[i] for i in range(len(drive)))
        for box in sample.boxes or []
        if box.label == "Car" and np.linalg.norm(box.center) < 20
    ]
    assert len(near) >= 5 and np.median(near) > 200


def test_real_drive(shared_data) -> None:
    folder = shared_data / "kitti_raw" / "2011_09_26"
    drive = KittiRawRecording(folder / "2011_09_26_drive_0013_sync")
    assert len(drive) == 44 and not drive.skipped
    first, last = drive[0].T_world_lidar, drive[43].T_world_lidar
    assert 45 < np.linalg.norm(last[:3, 3] - first[:3, 3]) < 55  # 10 to 14 m/s for 4.5 s
    traffic = KittiRawRecording(folder / "2011_09_26_drive_traffic_sync")
    assert len(traffic) == 10 and traffic.pose_source == "kiss-icp"


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("label_2/000000.txt", b"Car", b"\xff", "cannot read it"),
        ("label_2/000000.txt", b"1.75", b"inf", "label_2/000000.txt, line 1: not a KITTI object"),
        ("label_2/000000.txt", b"1.6", b"-1.6", "sizes of 0 m or more"),
        (
            "calib/000000.txt",
            b"R0_rect: 1.0",
            b"R0_rect: 7.0",
            "000000.txt: 'R0_rect'.*no rotation",
        ),
        ("velodyne/000000.bin", None, bytes(160), "none of its 10 points is finite"),
    ],
)
def test_numbers_that_are_no_geometry(tmp_path, name, old, new, message) -> None:
    folder = kitti_object(tmp_path)
    path = folder / name
    path.write_bytes(new if old is None else path.read_bytes().replace(old, new))
    with pytest.raises(InputError, match=message):
        KittiObjectRecording(folder)[0]
