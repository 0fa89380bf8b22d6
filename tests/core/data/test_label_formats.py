# SPDX-License-Identifier: Apache-2.0
"""Exported labels: the rules of the layouts, and round trips through readers of other projects."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from labeled_drive import AXES, LENS, START, STEP, STREET, Drive, labels_of, write_labels
from PIL import Image

from pcseg_core.camera import CameraModel
from pcseg_core.data import open_recording
from pcseg_core.data.images import undistort
from pcseg_core.data.label_formats import FORMATS, check_export, export_labels
from pcseg_core.data.sample import Sample
from pcseg_core.errors import InputError
from pcseg_core.geometry import from_euler, invert


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Folder of label files of the drive."""
    return write_labels(tmp_path)


def lidar_poses(indices: range) -> np.ndarray:
    """(K, 4, 4): the LiDAR of each sweep in that of the first."""
    poses = [Drive()[k].T_world_lidar for k in indices]
    return np.stack([invert(poses[0]) @ pose for pose in poses])


def test_a_sequence_has_all_that_point_labeler_and_semantic_kitti_api_read(out: Path) -> None:
    result = export_labels(Drive(), out, "semantic-kitti")
    root = result.folder
    assert (result.sweeps, result.notes, result.skipped) == (4, [], {})
    config = yaml.safe_load((root / "semantic-kitti.yaml").read_text())
    for number, indices in enumerate((range(2), range(2, 4))):
        folder = root / "sequences" / f"{number:02d}"
        names = [f"{k:06d}" for k in range(2)]
        for part, suffix in (("velodyne", "bin"), ("labels", "label"), ("image_2", "png")):
            assert sorted(p.name for p in (folder / part).iterdir()) == [
                f"{name}.{suffix}" for name in names
            ]
        for name, index in zip(names, indices):
            points = np.fromfile(folder / "velodyne" / f"{name}.bin", "<f4").reshape(-1, 4)
            raw = np.fromfile(folder / "labels" / f"{name}.label", "<u4")
            assert len(points) == len(raw) == 50 + index and np.isfinite(points).all()
            assert (points[3:5, :3] == 0).all()
            assert (raw.astype(int) - 1 == labels_of(index)).all()
            assert set(raw.tolist()) <= set(config["labels"])
        rows = [line.split(": ") for line in (folder / "calib.txt").read_text().splitlines()]
        calibration = {key: np.array(value.split(), float).reshape(3, 4) for key, value in rows}
        assert set(calibration) == {"P0", "P1", "P2", "P3", "Tr"}
        np.testing.assert_allclose(calibration["Tr"], AXES[:3])  # the camera that looks ahead
        Tr = np.vstack([calibration["Tr"], [0, 0, 0, 1]])
        poses = np.loadtxt(folder / "poses.txt").reshape(-1, 3, 4)
        expected = lidar_poses(indices)
        for pose, wanted in zip(poses, expected):  # as point_labeler converts them
            found = invert(Tr) @ np.vstack([pose, [0, 0, 0, 1]]) @ Tr
            np.testing.assert_allclose(found, wanted, atol=1e-9)
        np.testing.assert_allclose(np.loadtxt(folder / "times.txt"), [0, 0.1])
    assert config["color_map"][1] == list(STREET.classes[0].color)[::-1]
    assert sum(config["content"].values()) == pytest.approx(1)
    assert config["learning_map_inv"][config["learning_map"][8]] == 8
    assert config["split"]["train"] == [0, 1]
    xml = ElementTree.parse(root / "labels.xml").getroot()
    assert [node.findtext("name") for node in xml] == ["unlabeled", *STREET.names]
    assert xml[1].findtext("color") == "128 64 128"


def test_a_sequence_is_read_as_semantic_kitti(out: Path) -> None:
    root = export_labels(Drive(), out, "semantic-kitti").folder
    drive, read = Drive(), open_recording(f"semantic-kitti:{root}")
    assert read.scenes == ["00", "00", "01", "01"]
    own, sample = drive[1], read[1]
    moved = invert(read[0].T_world_lidar) @ sample.T_world_lidar
    np.testing.assert_allclose(moved, lidar_poses(range(2))[1], atol=1e-9)
    assert not np.allclose(sample.cloud.xyz[7], own.cloud.xyz[7])  # corrected for motion
    pose = own.trajectory.relative(own.stamp_ns, own.stamp_ns + round(own.cloud.time[7] * 1e9))
    expected = pose @ [*own.cloud.xyz[7], 1]
    np.testing.assert_allclose(sample.cloud.xyz[7], expected[:3], atol=1e-3)
    (frame,) = sample.cameras
    np.testing.assert_allclose(frame.T_cam_lidar, AXES, atol=1e-9)
    np.testing.assert_allclose(frame.camera.K, LENS.K)
    np.testing.assert_array_equal(frame.image, undistort(own.cameras[1].image, LENS))


def test_without_poses_a_sequence_has_none_and_says_so(out: Path) -> None:
    result = export_labels(Drive(posed=False), out, "semantic-kitti")
    assert not (result.folder / "sequences" / "00" / "poses.txt").exists()
    assert "point_labeler needs" in result.notes[0]
    with pytest.raises(InputError, match="drive: no poses, which the format nuscenes needs"):
        check_export(Drive(posed=False), out, "nuscenes")


def test_a_sweep_without_a_pose_is_left_out(out: Path) -> None:
    class Short(Drive):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            if index == 2:
                sample.cloud.stamp_ns += 1000 * STEP
            return sample

    result = export_labels(Short(), out, "semantic-kitti")
    assert result.sweeps == 3 and list(result.skipped.values()) == [1]
    rows = json.loads((result.folder / "export.json").read_text())["sweeps"]
    assert [row["sweep"] for row in rows] == ["a/1/0", "a/1/1", "b/3"]
    assert rows[2]["labels"] == "sequences/01/labels/000000.label"


def test_nuscenes_is_read_back(out: Path) -> None:
    root = export_labels(Drive(), out, "nuscenes").folder
    read, drive = open_recording(f"nuscenes:{root}"), Drive()
    assert read.scenes == drive.scenes
    for index in range(4):
        sample, own = read[index], drive[index]
        np.testing.assert_array_equal(sample.cloud.xyz[5:], own.cloud.xyz[5:])
        np.testing.assert_array_equal(sample.cloud.ring, own.cloud.ring)
        np.testing.assert_allclose(sample.cloud.intensity, own.cloud.intensity, atol=1e-6)
        np.testing.assert_allclose(sample.T_world_lidar, own.T_world_lidar, atol=1e-9)
        front = {frame.name: frame for frame in sample.cameras}["CAM_CAM_FRONT"]
        np.testing.assert_allclose(front.T_cam_lidar, AXES, atol=1e-9)
        assert front.stamp_ns == own.cameras[1].stamp_ns and front.image.shape == (24, 32, 3)
    rows = json.loads((root / "export.json").read_text())["sweeps"]
    for index, row in enumerate(rows):
        stored = np.fromfile(root / row["labels"], "u1")
        assert (stored.astype(int) - 1 == labels_of(index)).all()


def test_nuscenes_devkit_opens_it(out: Path) -> None:
    devkit = pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")
    loading = pytest.importorskip("nuscenes.utils.data_io")
    root = export_labels(Drive(), out, "nuscenes").folder
    colors = json.loads((root / "colormap.json").read_text())
    data = devkit.NuScenes("v1.0-pcseg", str(root), verbose=False, colormap=colors)
    found = []
    for scene in data.scene:
        token = scene["first_sample_token"]
        while token:
            sample = data.get("sample", token)
            label = data.get("lidarseg", sample["data"]["LIDAR_TOP"])["filename"]
            found.append(loading.load_bin_file(str(root / label)).astype(int) - 1)
            token = sample["next"]
    assert len(found) == 4
    assert all((labels == labels_of(index)).all() for index, labels in enumerate(found))


def test_segments_has_an_object_for_each_class(out: Path) -> None:
    root = export_labels(Drive(), out, "segments").folder
    categories = json.loads((root / "categories.json").read_text())["categories"]
    assert [row["name"] for row in categories] == list(STREET.names)
    sample = json.loads((root / "a_1" / "sample.json").read_text())["frames"]
    label = json.loads((root / "a_1" / "label.json").read_text())["frames"]
    for index in range(2):
        points = np.fromfile(root / sample[index]["pcd"]["url"], "<f4").reshape(-1, 4)
        ids = np.array(label[index]["point_annotations"])
        assert len(ids) == len(points) and (ids - 1 == labels_of(index)).all()
        known = {row["id"] for row in label[index]["annotations"]}
        assert known == set(ids.tolist()) - {0}
        assert known <= {row["id"] for row in categories}
        images = sample[index]["images"]
        assert [row["name"] for row in images] == ["/cam/left", "/cam/front"]
        assert all(Image.open(root / row["url"]).size == (32, 24) for row in images)
        position = sample[index]["ego_pose"]["position"]
        expected = Drive()[index].T_world_lidar[:3, 3]
        np.testing.assert_allclose([position[axis] for axis in "xyz"], expected)


def test_pcd_by_its_header(out: Path) -> None:
    root = export_labels(Drive(), out, "pcd").folder
    head, _, data = next(root.rglob("1.pcd")).read_bytes().partition(b"DATA binary\n")
    header = dict(line.split(" ", 1) for line in head.decode().splitlines() if line[0] != "#")
    assert header["POINTS"] == "51" and header["FIELDS"] == "x y z intensity label rgb"
    assert len(data) == 51 * sum(map(int, header["SIZE"].split()))
    points = np.frombuffer(data, "<f4").reshape(51, 6)
    np.testing.assert_array_equal(points[5:, :3], Drive()[1].cloud.xyz[5:])
    assert np.isnan(points[3:5, :3]).all()
    raw = np.ascontiguousarray(points[:, 4]).view("<u4")
    assert (raw.astype(int) - 1 == labels_of(1)).all()


def test_open3d_reads_pcd(out: Path) -> None:
    open3d = pytest.importorskip("open3d", reason="needs open3d", exc_type=ImportError)
    root = export_labels(Drive(), out, "pcd").folder
    file = str(next(root.rglob("3.pcd")))
    cloud = open3d.t.io.read_point_cloud(file, remove_nan_points=False)
    raw = cloud.point["label"].numpy().ravel().astype(int)
    assert (raw - 1 == labels_of(3)).all()
    np.testing.assert_array_equal(cloud.point["positions"].numpy()[5:], Drive()[3].cloud.xyz[5:])


def test_las_by_its_header(out: Path) -> None:
    root = export_labels(Drive(), out, "las").folder
    data = next(root.rglob("1.las")).read_bytes()
    assert data[:4] == b"LASF" and data[24:26] == bytes([1, 4])
    size, start, tables = struct.unpack_from("<HII", data, 94)
    point_format, length = struct.unpack_from("<BH", data, 104)
    (count,) = struct.unpack_from("<Q", data, 247)
    assert (size, tables, point_format, count) == (375, 2, 7, 51)
    assert len(data) == start + count * length
    rows = np.frombuffer(data[start:], "u1").reshape(count, length)
    code = rows[:, 16].astype(int)
    assert (np.where(code == 1, -1, code - 64) == labels_of(1)).all()
    places = np.ascontiguousarray(rows[:, :12]).view("<i4") * 1e-4
    np.testing.assert_allclose(places[5:], Drive()[1].cloud.xyz[5:], atol=5.1e-5)
    high = struct.unpack_from("<6d", data, 179)
    np.testing.assert_allclose(high[::2], places.max(axis=0))


def test_laspy_reads_las(out: Path) -> None:
    laspy = pytest.importorskip("laspy", reason="needs laspy")
    root = export_labels(Drive(), out, "las").folder
    cloud = laspy.read(next(root.rglob("1.las")))
    assert (np.asarray(cloud.label).astype(int) - 1 == labels_of(1)).all()
    np.testing.assert_allclose(cloud.xyz[5:], Drive()[1].cloud.xyz[5:], atol=5.1e-5)
    names = cloud.vlrs.get("ClassificationLookupVlr")[0].lookups
    assert names[64] == "road" and names[71] == "pole"
    seconds = Drive()[1].cloud.time + (START + STEP) * 1e-9
    np.testing.assert_allclose(cloud.gps_time, seconds, atol=1e-6)


def test_a_first_sweep_without_images_does_not_cost_the_camera(out: Path) -> None:
    class Late(Drive):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            sample.cameras = sample.cameras if index != 0 else []
            return sample

    root = export_labels(Late(), out, "semantic-kitti").folder / "sequences" / "00"
    assert [path.name for path in (root / "image_2").iterdir()] == ["000001.png"]
    rows = dict(line.split(": ") for line in (root / "calib.txt").read_text().splitlines())
    np.testing.assert_allclose(np.array(rows["Tr"].split(), float).reshape(3, 4), AXES[:3])


def test_only_chosen_sweeps_are_written(out: Path) -> None:
    root = export_labels(Drive(), out, "semantic-kitti", only={3, 0}).folder
    rows = json.loads((root / "export.json").read_text())["sweeps"]
    assert [(row["index"], row["labels"]) for row in rows] == [
        (0, "sequences/00/labels/000000.label"),
        (3, "sequences/01/labels/000000.label"),
    ]


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_an_export_is_never_replaced(out: Path, format: str) -> None:
    first = export_labels(Drive(), out, format)
    files = {p: p.read_bytes() for p in first.folder.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="may have been corrected; move it away"):
        export_labels(Drive(), out, format)
    assert files == {p: p.read_bytes() for p in first.folder.rglob("*") if p.is_file()}


def test_wrong_requests_name_the_input(out: Path) -> None:
    with pytest.raises(InputError, match=r"no format 'ply'; expected one of semantic-kitti, nusc"):
        check_export(Drive(), out, "ply")
    with pytest.raises(InputError, match="CVAT holds boxes only"):
        check_export(Drive(), out, "cvat")
    cut = next(out.rglob("1.label"))
    cut.write_bytes(cut.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"1\.label: 50 labels for a sweep of 51 points"):
        export_labels(Drive(), out, "pcd")
    assert not (out / "pcd").exists()


@pytest.mark.parametrize(
    ("model", "D"), [("plumb_bob", (-0.2, 0.05, 0.0, 0.0)), ("equidistant", (0.0,) * 4)]
)
def test_undistorted_images_show_rays_where_the_pinhole_camera_does(
    model: str, D: tuple[float, ...]
) -> None:
    K = np.array([[40.0, 0, 31.5], [0, 40, 23.5], [0, 0, 1]])
    turned = from_euler(0.01, -0.02, 0.03)[:3, :3]
    P = np.column_stack([K, [-4.0, 0, 0]])
    lens = CameraModel(64, 48, K, D, model, R=turned, P=P)
    v, u = np.mgrid[:48, :64]
    image = np.stack([2 * u, 3 * v, u + v], axis=-1).astype(
        np.uint8
    )  # linear: no error of blending
    view, T_view_cam = lens.without_distortion()
    straight = undistort(image, lens)
    points = np.random.default_rng(0).uniform((-3, -2, 9), (3, 2, 10), (40, 3))
    moved = points @ T_view_cam[:3, :3].T + T_view_cam[:3, 3]
    seen, there = lens.project(points)[0], view.project(moved)[0].round().astype(int)
    # the pixel's own ray, so that rounding does not matter
    own = lens.project((view.unproject(there, 9.0) - T_view_cam[:3, 3]) @ T_view_cam[:3, :3])[0]
    assert np.abs(own - seen).max() < 1
    np.testing.assert_allclose(
        straight[there[:, 1], there[:, 0]],
        np.stack([2 * own[:, 0], 3 * own[:, 1], own.sum(axis=1)], axis=1),
        atol=1.01,
    )
