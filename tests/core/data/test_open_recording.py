# SPDX-License-Identifier: Apache-2.0
import pytest
from recordings import bag, kitti_object, kitti_raw, nuscenes, semantic_kitti

from pcseg_core.data import READERS, open_recording
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
