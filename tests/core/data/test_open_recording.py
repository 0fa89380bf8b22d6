# SPDX-License-Identifier: Apache-2.0
import pytest
from recordings import bag, kitti_object, kitti_raw, nuscenes, semantic_kitti

from pcseg_core.data import READERS, find_source, fingerprint, open_recording
from pcseg_core.errors import InputError


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
