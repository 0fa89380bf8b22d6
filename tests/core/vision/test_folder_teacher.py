# SPDX-License-Identifier: Apache-2.0
"""Teachers that are folders of class maps: forms, faults, identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from teacher_inputs import image

from pcseg_core.data import open_recording
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.vision.image_list import export_images, read_list
from pcseg_core.vision.pixel_classes import TEACHERS, load_teacher
from pcseg_core.vision.semantic import winners

CITY = LabelSpace.load("cityscapes")
DRIVE = "simulated:seed=7,sweeps=2,columns=64,width=96,height=64"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of a short drive, without maps."""
    folder = tmp_path_factory.mktemp("exported")
    counts = export_images(open_recording(DRIVE), folder)
    assert counts["made"] >= 2 and set(counts) == {"made"}
    return folder


@pytest.fixture
def maps(exported: Path, tmp_path: Path) -> Path:
    """A folder with the list of the drive, class names and a maps/ folder."""
    (tmp_path / "images.csv").write_bytes((exported / "images.csv").read_bytes())
    (tmp_path / "maps").mkdir()
    (tmp_path / "names.txt").write_text("road\nsky\nbird\n")
    return tmp_path


def folder(path: Path, **values: Any) -> Any:
    values = {"ignore": ["bird"], **values}
    return TEACHERS.parse({"name": "folder", "path": str(path), **values}, "teacher")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """The first image of the drive."""
    return open_recording(DRIVE)[0].cameras[0].image


def stem_of(path: Path, picture: np.ndarray) -> str:
    from pcseg_core.vision.image_list import pixels_checksum

    return read_list(path)[pixels_checksum(picture)].file


def test_exported_images_are_listed_by_their_pixels(exported: Path) -> None:
    recording = open_recording(DRIVE)
    frames = [(s, f) for s in recording for f in s.cameras]
    listed = read_list(exported)
    assert len(listed) == len(frames)
    for _, frame in frames:
        stem = stem_of(exported, frame.image)
        entry = next(e for e in listed.values() if e.file == stem)
        assert entry.stamp_ns == frame.stamp_ns and entry.camera == frame.name
        written = np.asarray(Image.open(exported / "images" / f"{stem}.png"))
        assert np.array_equal(written, frame.image)
    again = export_images(recording, exported)
    assert set(again) == {"kept"} and read_list(exported) == listed


@pytest.mark.parametrize("form", ["png", "png16", "palette", "npz", "ids"])
def test_class_maps_of_every_form(maps: Path, picture: np.ndarray, form: str) -> None:
    ids = np.zeros(picture.shape[:2], np.uint8)
    ids[:20], ids[20:30], ids[30:32] = 1, 2, 255
    target = maps / "maps" / stem_of(maps, picture)
    if form == "png":
        Image.fromarray(ids).save(target.with_suffix(".png"))
    elif form == "png16":
        deep = ids.astype(np.uint16)
        deep[ids == 255] = 65535
        Image.fromarray(deep).save(target.with_suffix(".png"))
    elif form == "palette":
        colored = Image.fromarray(ids, "P")
        colored.putpalette([7 * k % 256 for k in range(768)])
        colored.save(target.with_suffix(".png"))
    elif form == "ids":
        np.savez(target.with_suffix(".npz"), ids=np.where(ids == 255, -1, ids.astype(np.int32)))
    else:
        one_hot = np.stack([ids == k for k in range(3)]).astype(np.float16)
        np.savez(target.with_suffix(".npz"), probabilities=one_hot[:, ::2, ::2])
    found = load_teacher(folder(maps)).probabilities(picture)
    full = winners(found, picture.shape[:2]) if form != "npz" else None
    if full is not None:
        assert (full[:20] == CITY.index("sky")).all() and (full[20:32] == -1).all()
        assert (full[32:] == CITY.index("road")).all()
    else:
        assert found.shape == (19, *(side // 2 for side in picture.shape[:2]))
        assert (found[CITY.index("sky"), :10] == 1).all() and found[:, 10:15].max() == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("none", "no class map .*.png or"),
        ("size", "a map of 32 x 64 for an image of 96 x 64; expected the same shape"),
        ("ids", "ids 3, 77 have no class name; 3 are given"),
        ("colors", r"a picture with colors \(RGB\); expected ids"),
        ("text", "not readable as a class map"),
        ("count", r"probabilities of shape \(2, 64, 96\); expected \(3, h, w\)"),
        ("logits", "apply softmax"),
    ],
)
def test_wrong_maps_name_the_file_and_the_fault(
    maps: Path, picture: np.ndarray, damage: str, message: str
) -> None:
    target = maps / "maps" / stem_of(maps, picture)
    ids = np.zeros(picture.shape[:2], np.uint8)
    if damage == "size":
        Image.fromarray(ids[:, :32]).save(target.with_suffix(".png"))
    elif damage == "ids":
        ids[0, :2] = 3, 77
        Image.fromarray(ids).save(target.with_suffix(".png"))
    elif damage == "colors":
        Image.fromarray(picture).save(target.with_suffix(".png"))
    elif damage == "text":
        target.with_suffix(".npz").write_text("no zip")
    elif damage == "count":
        np.savez(target.with_suffix(".npz"), probabilities=np.zeros((2, 64, 96), np.float32))
    elif damage == "logits":
        np.savez(target.with_suffix(".npz"), probabilities=np.full((3, 64, 96), 7, np.float32))
    with pytest.raises(InputError, match=message):
        load_teacher(folder(maps)).probabilities(picture)


def test_a_folder_that_lacks_something_says_what(maps: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"40.*is not in .*images.csv; write it with `pcseg images"
    ):
        load_teacher(folder(maps)).probabilities(image())
    (maps / "names.txt").rename(maps / "old.txt")
    with pytest.raises(InputError, match="no class names; write names.txt"):
        load_teacher(folder(maps))
    with pytest.raises(InputError, match=r"1 of 2 classes.*'rood' .nearest: road"):
        load_teacher(folder(maps, names=["rood", "sky"]))
    (maps / "maps").rmdir()
    with pytest.raises(InputError, match="no folder maps/"):
        load_teacher(folder(maps, names=["road", "sky"]))
    (maps / "images.csv").write_text("file,recording\na,b\n")
    with pytest.raises(InputError, match="not a list of images"):
        load_teacher(folder(maps))
    (maps / "images.csv").unlink()
    with pytest.raises(InputError, match="no images.csv; make it with `pcseg images RECORDING"):
        load_teacher(folder(maps))


def test_identity_follows_the_maps_and_not_the_images(maps: Path) -> None:
    before = folder(maps).identity
    (maps / "images").mkdir()
    (maps / "images" / "a.png").touch()
    assert folder(maps).identity == before
    (maps / "maps" / "a.png").touch()
    assert folder(maps).identity != before
