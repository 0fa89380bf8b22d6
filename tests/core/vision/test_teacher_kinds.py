# SPDX-License-Identifier: Apache-2.0
"""Teachers of other programs: class names, Python, torch.hub and bad answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teacher_inputs import image

from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace, grouping
from pcseg_core.vision.class_names import match_names, nearest, read_names
from pcseg_core.vision.named_classes import average_views
from pcseg_core.vision.pixel_classes import TEACHERS, load_teacher
from pcseg_core.vision.teacher_report import report_teacher

STREET = LabelSpace.load("street")
CITY = LabelSpace.load("cityscapes")


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
