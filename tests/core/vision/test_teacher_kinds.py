# SPDX-License-Identifier: Apache-2.0
"""Teachers of other programs: class names, folders of maps, Python, torch.hub and bad answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pcseg_core.data import open_recording
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace, grouping
from pcseg_core.vision.class_names import match_names, nearest, read_names
from pcseg_core.vision.image_list import export_images, read_list
from pcseg_core.vision.named_classes import average_views
from pcseg_core.vision.pixel_classes import TEACHERS, load_teacher
from pcseg_core.vision.semantic import winners
from pcseg_core.vision.teacher_report import report_teacher

STREET = LabelSpace.load("street")
CITY = LabelSpace.load("cityscapes")
DRIVE = "simulated:seed=7,sweeps=2,columns=64,width=96,height=64"


def image(seed: int = 0, height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# --- names ---------------------------------------------------------------------------------------


def test_names_take_the_class_of_their_word_and_the_mapping_decides_first() -> None:
    names = ("Road", "traffic-light", "car, auto", "Lane Marking - Dashed", "Bird", "van")
    found = match_names(names, CITY, {"road": ("lane marking*",), "truck": ("van",)}, ("bird",))
    classes = [CITY.names[k] if k >= 0 else None for k in found.table]
    assert classes == ["road", "traffic light", "car", "road", None, "truck"]
    assert found.unmapped == ()
    found.require_all("x")


def test_names_without_a_class_are_listed_with_the_nearest() -> None:
    found = match_names(("road", "Guard Rail", "Traffic Sign (Back)", "zzz"), CITY)
    assert found.unmapped == ("Guard Rail", "Traffic Sign (Back)", "zzz")
    assert nearest("Traffic Sign (Back)", CITY)[0] == "traffic sign"
    assert nearest("Railings", CITY)[0] == "fence"  # by its synonym railing
    with pytest.raises(InputError, match=r"3 of 4 classes.*'Guard Rail' \(nearest: .*mapping"):
        found.require_all("teacher 'x'")
    with pytest.raises(InputError, match="none of its classes .zzz. is in label space"):
        match_names(("zzz",), CITY, ignore=("*",)).require_all("teacher 'x'")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"rode": ("a",)}, "has no class 'rode'"),
        ({"road": ("Strasse",)}, "no class 'strasse' among those of the teacher; nearest"),
    ],
)
def test_a_mapping_of_unknown_names_is_refused(mapping: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        match_names(("street", "car"), CITY, mapping)


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("n.txt", "road\n\nlane marking\n", ("road", "lane marking")),
        ("n.yaml", "names: [road, car]", ("road", "car")),
        ("n.yaml", "{0: road, 2: car}", ("road", "", "car")),
        ("n.json", '{"names": {"1": "car", "0": "road"}}', ("road", "car")),
        ("n.txt", "road\nroad\n", "given twice"),
        ("n.txt", "", "no class names"),
        ("n.yaml", "road: 1", "a list or a mapping of ids"),
        ("n.yaml", "{0: road, 99999999: car}", "a list or a mapping of ids"),
    ],
)
def test_files_of_names(tmp_path: Path, file: str, text: str, expected: Any) -> None:
    (tmp_path / file).write_text(text)
    if isinstance(expected, tuple):
        assert read_names(tmp_path / file) == expected
        return
    with pytest.raises(InputError, match=expected):
        read_names(tmp_path / file)


# --- Python --------------------------------------------------------------------------------------

MODULE = """
import numpy as np
from pcseg_core.labels import LabelSpace, grouping


class Halves:
    names = ("road", "wall", "bird")

    def __init__(self, answer="good", **options):
        self.answer = answer

    def probabilities(self, image):
        found = np.zeros((3, *image.shape[:2]), np.float32)
        found[0, :, : image.shape[1] // 2] = 0.75
        found[2] = 0.25
        return {
            "good": lambda: found,
            "shape": lambda: found[:2],
            "logits": lambda: 10 * found,
            "nan": lambda: found * np.nan,
            "raises": lambda: {}["key"],
        }[self.answer]()


class Spaced(Halves):
    label_space = LabelSpace.from_dict(
        {"name": "own", "classes": [{"name": n, "color": [0, 0, 0]} for n in Halves.names],
         "groupings": {"street": {"road": ["road"]}}}
    )


def make(answer="good", device="none"):
    assert device == "cpu"
    return Halves(answer)


def broken():
    raise KeyError("weights")


def no_teacher():
    return 3


def nameless():
    made = Halves()
    made.names = ()
    return made


constant = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "halves_teacher.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "halves_teacher", raising=False)
    return "halves_teacher"


def python(factory: str, **values: Any) -> Any:
    return TEACHERS.parse({"name": "python", "factory": factory, **values}, "teacher")


def test_a_factory_of_the_user_is_a_teacher(module: str) -> None:
    config = python(f"{module}:make", ignore=["bird"], label_space="cityscapes")
    teacher = load_teacher(config)
    found = teacher.probabilities(image())
    assert teacher.label_space is not None and found.shape == (19, 40, 60)
    assert found[0, :, :30].min() == 0.75 and found[0, :, 30:].max() == 0
    assert found[1:].max() == 0  # the bird's share has no class
    mapped = load_teacher(python(f"{module}:make", mapping={"vegetation": ["bird"]}))
    assert mapped.probabilities(image())[CITY.index("vegetation")].min() == 0.25
    with pytest.raises(InputError, match="has no features; set loss.regression to 0"):
        teacher.features(image())
    own = load_teacher(python(f"{module}:Spaced"))
    assert own.label_space.name == "own" and own.probabilities(image()).shape == (3, 40, 60)


def test_mirrored_and_resized_views_are_averaged(module: str) -> None:
    flipped = load_teacher(python(f"{module}:make", ignore=["bird"], flip=True, scales=[1, 0.5]))
    found = flipped.probabilities(image())
    assert found.shape == (19, 40, 60)
    assert np.allclose(found[0], 0.375, atol=0.2) and np.allclose(found[0, :, :25], 0.375)
    views = []

    def predict(view: np.ndarray, scale: float) -> np.ndarray:
        views.append((view, scale))
        return np.full((1, 2, 2), scale, np.float32)

    found = average_views(predict, image(), [2, 1], True)
    assert (found == 1.5).all() and [scale for _, scale in views] == [2, 2, 1, 1]
    assert np.array_equal(views[1][0], image()[:, ::-1])


def test_identity_follows_the_code_of_the_factory(module: str, tmp_path: Path) -> None:
    first = python(f"{module}:make").identity
    assert first["code"]
    (tmp_path / "halves_teacher.py").write_text(MODULE + "\n# changed\n")
    assert python(f"{module}:make").identity != first


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        ("no_such_module:make", {}, "ModuleNotFoundError.*PYTHONPATH"),
        ("halves_teacher:made", {}, "AttributeError"),
        ("halves_teacher:constant", {}, "a int, not a function"),
        ("halves_teacher:broken", {}, "halves_teacher:broken failed: KeyError: 'weights'"),
        ("halves_teacher:make", {"size": 3}, "failed: TypeError.*size"),
        ("halves_teacher:no_teacher", {}, "a int without probabilities"),
        ("halves_teacher:nameless", {}, "without class names"),
        ("halves_teacher:make", {"answer": "shape"}, r"shape \(2, 40, 60\); expected \(3, h, w\)"),
        ("halves_teacher:make", {"answer": "logits"}, "apply softmax"),
        ("halves_teacher:make", {"answer": "nan"}, "apply softmax"),
        ("halves_teacher:make", {"answer": "raises"}, "failed on an image of 60 x 40: KeyError"),
    ],
)
def test_a_wrong_factory_is_named(
    module: str, factory: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_teacher(python(factory, options=options, ignore=["bird"])).probabilities(image())


# --- torch.hub -----------------------------------------------------------------------------------

HUBCONF = """
import torch

class Net(torch.nn.Module):
    def forward(self, x):
        return {"out": torch.stack([x.mean(1), -x.mean(1)], 1)}

def net(**options):
    return Net()
"""


def test_a_local_repository_of_torch_hub(tmp_path: Path) -> None:
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    values = {"name": "torchhub", "repo": str(tmp_path), "entry": "net", "names": ["sky", "road"]}
    with pytest.raises(InputError, match="set run_foreign_code: true"):
        TEACHERS.parse(values, "teacher")
    teacher = load_teacher(TEACHERS.parse({**values, "run_foreign_code": True}, "teacher"))
    white = teacher.probabilities(np.full((64, 96, 3), 255, np.uint8))
    assert (white.argmax(0) == CITY.index("sky")).all() and white.shape == (19, 64, 96)
    few = TEACHERS.parse({**values, "run_foreign_code": True, "names": ["sky"]}, "teacher")
    with pytest.raises(InputError, match=r"expected \(1, 1, h, w\)"):
        load_teacher(few).probabilities(image())
    for commit in ("", "main", "a" * 39):
        with pytest.raises(InputError, match="40 hex digits"):
            TEACHERS.parse(
                {**values, "repo": "owner/name", "run_foreign_code": True, "commit": commit}, "t"
            )


# --- folder --------------------------------------------------------------------------------------


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


def test_a_mapping_in_a_file_is_found_beside_the_recipe(module: str, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("vegetation: [bird]\n")
    config = python(f"{module}:make", mapping="map.yaml").relative_to(tmp_path)
    assert config.mapping == tmp_path / "map.yaml"
    assert load_teacher(config).probabilities(image())[CITY.index("vegetation")].min() == 0.25
    before = config.identity
    (tmp_path / "map.yaml").write_text("terrain: [bird]\n")
    assert config.identity != before
    (tmp_path / "map.yaml").write_text("terrain: bird\n")
    with pytest.raises(InputError, match="'terrain' must be a list of the teacher's class names"):
        load_teacher(config)


def test_own_names_stay_classes_for_words(module: str) -> None:
    mapping = {"vegetation": ["bird"], "building": ["wall"]}  # of street and cityscapes
    teacher = load_teacher(python(f"{module}:make", label_space="own", mapping=mapping))
    space = teacher.label_space
    assert space.names == ("road", "wall", "bird")
    assert np.array_equal(teacher.probabilities(image())[2], np.full((40, 60), 0.25, np.float32))
    assert [STREET.names[k] for k in grouping(space, STREET)] == ["road", "structure", "vegetation"]
    assert [CITY.names[k] for k in grouping(space, CITY)] == ["road", "building", "vegetation"]
    with pytest.raises(InputError, match="no label space .* has 'animal'"):
        load_teacher(python(f"{module}:make", label_space="own", mapping={"animal": ["bird"]}))


# --- report --------------------------------------------------------------------------------------


def test_the_report_shows_classes_mapping_and_a_picture(module: str) -> None:
    report = report_teacher(python(f"{module}:make"), image(), STREET)
    rows = {row.name: row for row in report.rows}
    assert rows["road"].mapped == rows["road"].target == "road" and rows["road"].share == 0.5
    assert rows["wall"].target == "structure" and rows["bird"].mapped == "?"
    assert [row.name for row in report.unmapped] == ["bird"]
    assert report.undecided == 0.5 and report.map_size == (60, 40) and report.seconds > 0
    assert report.picture.shape[1:] == (60, 3) and report.picture.shape[0] > 80
    fine = report_teacher(python(f"{module}:make", ignore=["b*"]), image(), STREET)
    assert fine.unmapped == () and {r.name: r.mapped for r in fine.rows}["bird"] == ""
