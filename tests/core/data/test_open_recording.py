# SPDX-License-Identifier: Apache-2.0
import pickle

import numpy as np
import pytest
from recordings import bag, kitti_object, kitti_raw, nuscenes, semantic_kitti

from pcseg_core.camera import CameraModel
from pcseg_core.data import READERS, find_source, fingerprint, open_recording
from pcseg_core.data.calibration import save_calibration
from pcseg_core.data.sample import CameraFrame
from pcseg_core.errors import InputError
from pcseg_core.geometry import from_euler


@pytest.mark.parametrize(
    ("make", "reader", "kind"),
    [
        (kitti_raw, "kitti-raw", "KittiRawRecording"),
        (kitti_object, "kitti-object", "KittiObjectRecording"),
        (semantic_kitti, "semantic-kitti", "SemanticKittiRecording"),
        (nuscenes, "nuscenes", "NuScenesRecording"),
        (lambda path: bag(path / "drive"), "bag", "BagRecording"),
        (lambda path: bag(path / "drive") / "drive.mcap", "bag", "BagRecording"),
    ],
)
def test_recordings_are_opened_by_name_and_by_content(tmp_path, make, reader: str, kind) -> None:
    path = make(tmp_path)
    for source in (f"{reader}:{path}", str(path), path):
        drive = open_recording(source)
        assert type(drive).__name__ == kind and len(drive) >= 1
        assert len(drive.scenes) == len(drive) and drive[0].scene == drive.scenes[0]
        names = [drive[i].name for i in range(len(drive))]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "make", [kitti_raw, semantic_kitti, nuscenes, lambda path: bag(path / "drive")]
)
def test_returns_from_the_robot_are_left_out_of_any_recording(tmp_path, make) -> None:
    path = make(tmp_path)
    whole = open_recording(path)[0].cloud
    low, high = whole.xyz[whole.finite].min(0), np.median(whole.xyz[whole.finite], 0)
    box = ",".join(map(repr, [*low.tolist(), *(high + 1e-3).tolist()]))
    drive = pickle.loads(pickle.dumps(open_recording(f"{path}?body={box}")))
    left = drive[0].cloud
    inside = ((whole.xyz >= low) & (whole.xyz <= high + 1e-3)).all(1)
    assert 0 < inside.sum() < len(whole)
    np.testing.assert_array_equal(left.finite, whole.finite & ~inside)
    assert drive[0].name and len(drive) == len(open_recording(path))
    with pytest.raises(InputError, match="body is '1,2'; expected x_min"):
        open_recording(f"{path}?body=1,2")


def test_what_cannot_be_opened_is_explained(tmp_path) -> None:
    with pytest.raises(InputError, match=r"no such file or folder.*kitti-raw"):
        open_recording(tmp_path / "absent")
    with pytest.raises(InputError, match="no such file or folder"):
        open_recording("kitty:somewhere")
    with pytest.raises(InputError, match="cannot tell what kind"):
        open_recording(tmp_path)
    (tmp_path / "old.bag").touch()
    with pytest.raises(InputError, match="rosbags-convert"):
        open_recording(tmp_path / "old.bag")
    assert "bag" in READERS and "simulated" in READERS


def test_a_source_is_found_without_opening_it(tmp_path) -> None:
    drive = bag(tmp_path / "drive")
    assert find_source(f"bag:{drive}?cloud_topic=/x") == ("bag", f"{drive}?cloud_topic=/x")
    assert find_source(str(drive)) == ("bag", str(drive))
    assert find_source("simulated:seed=3") == ("simulated", "seed=3")
    with pytest.raises(InputError, match="no such bag"):
        find_source("bag:nowhere")


def test_results_inside_of_a_recording_do_not_change_its_fingerprint(tmp_path) -> None:
    drive, sequence = bag(tmp_path / "drive"), semantic_kitti(tmp_path / "kitti")
    for path in (drive, sequence):
        before = fingerprint(path)
        (path / "out" / "labels").mkdir(parents=True)
        (path / "out" / "labels" / "0.label").write_bytes(b"0")
        (path / "out.partial").write_bytes(b"0")
        assert fingerprint(path, (path / "out", path / "out.partial")) == before
        file = next(p for p in path.rglob("*") if p.suffix in (".mcap", ".bin"))
        file.write_bytes(file.read_bytes() + b"0")
        assert fingerprint(path, (path / "out", path / "out.partial")) != before


def test_a_stray_bag_in_a_recording_of_files_hides_no_change(tmp_path) -> None:
    sequence = semantic_kitti(tmp_path / "kitti")
    (sequence / "notes.mcap").write_bytes(b"0")
    before = fingerprint(sequence)
    file = next(sequence.rglob("*.bin"))
    file.write_bytes(file.read_bytes() + b"0")
    assert fingerprint(sequence) != before


@pytest.mark.parametrize("make", [kitti_raw, lambda path: bag(path / "drive")])
def test_a_calibration_file_replaces_that_of_any_recording(tmp_path, make) -> None:
    path, rig = make(tmp_path), tmp_path / "rig.yaml"
    given = open_recording(path)
    frame = given[1].cameras[0]
    turned = from_euler(0.0, 0.02, 0.01, (0.1, 0.0, 0.0)) @ frame.T_cam_lidar
    save_calibration(rig, [frame.placed(turned)], {frame.name: 0.004})
    drive = open_recording(f"{path}?calibration={rig}")
    moved = drive[1].cameras[0]
    np.testing.assert_allclose(moved.T_cam_lidar, turned)
    assert moved.stamp_ns == frame.stamp_ns + 4_000_000
    assert len(drive) == len(given) and drive.name == given.name
    np.testing.assert_array_equal(moved.image, frame.image)
    assert len(pickle.loads(pickle.dumps(drive))[1].cameras) == len(drive[1].cameras)
    small = frame.placed(turned)
    small.camera = small.camera.scaled(16, 16)
    save_calibration(rig, [small])
    with pytest.raises(InputError, match=r"16x16"):
        open_recording(f"{path}?calibration={rig}")[1].cameras[0].image  # noqa: B018
    rig.write_text(rig.read_text().replace(frame.name, "other_camera"))
    with pytest.raises(InputError, match=r"the calibration is of other cameras \(other_camera\)"):
        open_recording(f"{path}?calibration={rig}")


def test_a_calibration_file_of_a_simulated_drive(tmp_path) -> None:
    text = "simulated:seed=3,sweeps=1,beams=4,columns=16,cameras=1,width=16,height=16"
    model = CameraModel.pinhole(8, 8, 7.5, 7.5, 16, 16)
    frame = CameraFrame("camera_0", 0, model, np.eye(4), np.zeros((16, 16, 3), np.uint8))
    save_calibration(tmp_path / "rig.yaml", [frame])
    drive = open_recording(f"{text},calibration={tmp_path / 'rig.yaml'}")
    np.testing.assert_array_equal(drive[0].cameras[0].T_cam_lidar, np.eye(4))
