# SPDX-License-Identifier: Apache-2.0
"""Superpixels and features on disk: formats, resuming, damage, mixing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pcseg_core.camera import CameraModel
from pcseg_core.cli import app
from pcseg_core.cloud import PointCloud
from pcseg_core.data import CameraFrame, Sample
from pcseg_core.errors import InputError
from pcseg_core.vision.image_cache import SuperpixelCache, image_key, image_stem
from pcseg_core.vision.imported import ImportedMasks
from pcseg_core.vision.superpixels import SegmentMap

IMAGE = np.zeros((4, 6, 3), np.uint8)


class Stripes:
    """A generator of 400 segments with classes, that counts its calls."""

    name = "stripes"

    def __init__(self, **parameters: Any) -> None:
        self.parameters = parameters
        self.calls = 0

    def segment(self, image: np.ndarray) -> SegmentMap:
        if image.size == 0:
            raise InputError("empty image")
        self.calls += 1
        ids = np.arange(400, dtype=np.int32).reshape(20, 20) - 1
        return SegmentMap(ids, np.arange(399, dtype=np.int16))


class Recording:
    """Two samples of two cameras; the image of sample 1, camera b is empty."""

    name = "yard/1"
    skipped: Counter[str] = Counter()

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        camera = CameraModel.pinhole(4, 4, 2.5, 1.5, 6, 4)
        frames = [
            CameraFrame(name, index, camera, np.eye(4), self._image(index, name)) for name in "ab"
        ]
        return Sample(PointCloud(np.zeros((1, 3), np.float32)), frames, name=f"yard/{index}")

    def _image(self, index: int, name: str) -> np.ndarray:
        return IMAGE[:0] if (index, name) == (1, "b") else IMAGE


def test_maps_come_back_as_they_were(tmp_path: Path) -> None:
    cache = SuperpixelCache(tmp_path / "maps", Stripes(size=3))
    made = cache.get("drive", "image", lambda: IMAGE)
    again = SuperpixelCache(tmp_path / "maps").read("drive", "image")
    assert np.array_equal(again.ids, made.ids) and again.ids.dtype == np.int32
    assert again.ids.max() == 398 and again.ids.min() == -1
    assert np.array_equal(again.classes, made.classes)
    stored = json.loads((tmp_path / "maps" / "manifest.json").read_text())
    assert stored["generator"] == "stripes" and stored["parameters"] == {"size": 3}
    assert len(stored["hash"]) == 64


def test_filling_goes_on_where_it_stopped_and_counts_bad_images(tmp_path: Path) -> None:
    drive, steps = Recording(), []
    first = Stripes()
    cache = SuperpixelCache(tmp_path, first)
    stop = drive[0]
    cache.get(drive.name, image_key(stop, 0), lambda: IMAGE)
    second = Stripes()
    counts = SuperpixelCache(tmp_path, second).fill(drive, lambda *s: steps.append(s))  # type: ignore[arg-type]
    assert counts == {"kept": 1, "made": 2, "skipped: empty image": 1}
    assert second.calls == 2 and steps == [(1, 2), (2, 2)]
    assert SuperpixelCache(tmp_path, Stripes()).fill(drive)["kept"] == 3  # type: ignore[arg-type]


def test_folders_of_another_making_are_refused(tmp_path: Path) -> None:
    SuperpixelCache(tmp_path / "maps", Stripes(size=3))
    with pytest.raises(InputError, match="size: 3 there, 4 here"):
        SuperpixelCache(tmp_path / "maps", Stripes(size=4))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        SuperpixelCache(tmp_path / "other", Stripes())
    with pytest.raises(InputError, match="no manifest"):
        SuperpixelCache(tmp_path / "nowhere")
    (tmp_path / "maps" / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="not a manifest of superpixels"):
        SuperpixelCache(tmp_path / "maps")


def test_names_that_look_alike_on_disk_stay_apart(tmp_path: Path) -> None:
    cache = SuperpixelCache(tmp_path, Stripes())
    names = [("a/b", "c"), ("a_b", "c"), ("a", "b/c"), ("..", "../../c"), ("a", "x" * 500)]
    paths = {cache.path(*name) for name in names}
    assert len(paths) == len(names)
    assert all(tmp_path in p.resolve().parents for p in paths)
    for name in names:
        cache.get(*name, lambda: IMAGE)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut off", b"\x93NUMPY"])
def test_damaged_maps_are_made_anew_or_named(tmp_path: Path, damage: bytes) -> None:
    generator = Stripes()
    cache = SuperpixelCache(tmp_path, generator)
    cache.get("drive", "image", lambda: IMAGE)
    path = cache.path("drive", "image")
    path.write_bytes(path.read_bytes()[:200] if damage == b"" else damage)
    with pytest.raises(InputError, match="damaged"):
        SuperpixelCache(tmp_path).get("drive", "image", lambda: IMAGE)
    assert cache.get("drive", "image", lambda: IMAGE).count == 399
    assert cache.damaged == 1 and generator.calls == 2


def test_a_cache_without_generator_only_reads(tmp_path: Path) -> None:
    SuperpixelCache(tmp_path, Stripes())
    with pytest.raises(InputError, match="no superpixels of image b of a"):
        SuperpixelCache(tmp_path).get("a", "b", lambda: IMAGE)


# --- masks made elsewhere --------------------------------------------------------------------

IDS = np.arange(300).reshape(10, 30)


def _gray16(folder: Path) -> None:
    Image.fromarray(IDS.astype(np.uint16)).save(folder / "image.png")


def _listed(folder: Path) -> None:
    _gray16(folder)
    segments = [{"id": i, "category_id": 1000 + i} for i in range(1, 300)]
    (folder / "image.json").write_text(json.dumps({"segments_info": segments}))


def _coco(folder: Path) -> None:
    raw = (IDS * 300).astype(np.uint32)
    rgb = np.stack([raw & 255, raw >> 8 & 255, raw >> 16], 2).astype(np.uint8)
    Image.fromarray(rgb).save(folder / "image.png")
    segments = [{"id": i * 300, "category_id": 1000 + i} for i in range(1, 300)]
    annotation = {"file_name": "image.png", "image_id": 1, "segments_info": segments}
    (folder / "panoptic_val.json").write_text(json.dumps({"annotations": [annotation]}))


def _npz(folder: Path) -> None:
    classes = np.append(np.arange(1001, 1300), -1)
    np.savez(folder / "image.npz", ids=IDS - 1, classes=classes)


@pytest.mark.parametrize("write", [_gray16, _listed, _coco, _npz])
def test_masks_are_read_from_every_format(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    read = ImportedMasks(tmp_path).read("image", 10, 30)
    assert np.array_equal(read.ids, IDS - 1)  # 0 is no segment in pictures
    assert read.count == 299
    if write is _gray16:
        assert read.classes is None
    else:
        assert read.classes is not None and read.classes.tolist() == list(range(1001, 1300))


def test_pixels_that_no_list_names_belong_to_no_segment(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1, 255, 7]], np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps([{"id": 7, "category_id": 3}, {"id": 255}]))
    read = ImportedMasks(tmp_path).read("a", 1, 4)
    assert read.ids.tolist() == [[-1, -1, 1, 0]]
    assert read.classes is not None and read.classes.tolist() == [3, -1]


def test_imported_masks_are_resized_and_small_ones_dropped(tmp_path: Path) -> None:
    ids = np.zeros((5, 10), int)
    ids[:, 5:] = 1
    ids[0, 0] = 2
    np.save(tmp_path / "a.npy", ids)
    read = ImportedMasks(tmp_path, min_area=5).read("a", 10, 20)
    assert read.ids.shape == (10, 20) and read.count == 2
    assert (read.ids[:2, :2] == -1).all() and (read.ids[:, 10:] == 1).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("wrapped", "would have wrapped"),
        ("shape", "expected the same shape"),
        ("missing", "no mask other"),
        ("floats", "integers"),
        ("broken", "not readable as a mask"),
        ("json", "not readable as JSON"),
        ("list", "list of segments"),
        ("panoptic", "not among the annotations"),
        ("empty", "no masks"),
    ],
)
def test_unfit_masks_are_named(tmp_path: Path, content: str, message: str) -> None:
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
    if content not in ("wrapped", "empty"):
        picture = picture // 2
    if content != "empty":
        Image.fromarray(picture).save(tmp_path / "a.png")
    if content == "floats":
        np.savez(tmp_path / "a.npz", ids=np.zeros((16, 16)))
    elif content == "broken":
        (tmp_path / "a.png").write_bytes(b"\x89PNG but cut off")
    elif content == "json":
        (tmp_path / "a.json").write_text("{")
    elif content == "list":
        (tmp_path / "a.json").write_text('{"segments": 3}')
    elif content == "panoptic":
        annotation = {"file_name": "b.png", "segments_info": []}
        (tmp_path / "all.json").write_text(json.dumps({"annotations": [annotation]}))
    with pytest.raises(InputError, match=message):
        height = 32 if content == "shape" else 16
        ImportedMasks(tmp_path).read("other" if content == "missing" else "a", height, 16)


# --- the command -----------------------------------------------------------------------------


@pytest.fixture
def recording(tmp_path: Path) -> str:
    """The smallest KITTI object folder: one sweep, one picture, a calibration."""
    root = tmp_path / "training"
    for name in ("velodyne", "image_2", "calib"):
        (root / name).mkdir(parents=True)
    np.ones((5, 4), np.float32).tofile(root / "velodyne" / "000000.bin")
    picture = np.random.default_rng(0).integers(0, 255, (40, 80, 3), np.uint8)
    Image.fromarray(picture).save(root / "image_2" / "000000.png")
    P = "50 0 40 0 0 50 20 0 0 0 1 0"
    calib = "\n".join(f"P{i}: {P}" for i in range(4))
    calib += "\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"
    (root / "calib" / "000000.txt").write_text(calib + "Tr_imu_to_velo: 1 0 0 0 0 1 0 0 0 0 1 0\n")
    return f"kitti-object:{root}"


def pcseg(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["superpixels", *map(str, arguments)])


def test_command_makes_slic_maps_once(recording: str, tmp_path: Path) -> None:
    arguments = (recording, "--segments", 8, "--out", tmp_path / "maps")
    assert "1 images done, 0 kept" in pcseg(*arguments).output
    assert "0 images done, 1 kept" in pcseg(*arguments).output
    (path,) = (tmp_path / "maps").glob("*/*.npz")
    with np.load(path) as stored:
        assert stored["ids"].shape == (40, 80) and stored["ids"].dtype == np.int32
    other = pcseg(recording, "--segments", 9, "--out", tmp_path / "maps")
    assert other.exit_code == 2 and "segments: 8 there, 9 here" in other.output


def test_command_exports_images_and_imports_their_masks(recording: str, tmp_path: Path) -> None:
    images, maps = tmp_path / "images", tmp_path / "maps"
    assert pcseg(recording, "--images", images).exit_code == 0
    (picture,) = images.glob("*.png")
    masks = tmp_path / "masks"
    masks.mkdir()
    np.save(masks / f"{picture.stem}.npy", np.arange(3200).reshape(40, 80) // 800)
    run = (recording, "--generator", "import", "--masks", masks, "--min-area", 2, "--out", maps)
    result = pcseg(*run)
    assert result.exit_code == 0, result.output
    (path,) = maps.glob(f"*/{picture.stem}.npz")
    with np.load(path) as stored:
        assert len(np.unique(stored["ids"])) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --out"),
        (("--out", "maps", "--generator", "semantic"), "needs --weights"),
        (("--out", "maps", "--generator", "import"), "needs --masks"),
        (("--out", "maps", "--generator", "sam"), "segment-anything#model-checkpoints"),
    ],
)
def test_command_says_what_is_missing(
    recording: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = pcseg(recording, *arguments)
    assert result.exit_code == 2 and message in result.output
    assert not (tmp_path / "maps").exists()


def test_stems_are_safe_file_names() -> None:
    assert image_stem("d", "yard/000001/image_02@17").startswith("yard_000001_image_02_17-")
