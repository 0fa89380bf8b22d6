# SPDX-License-Identifier: Apache-2.0
"""Kinds of image networks: by name, with their own options, and those of other packages."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pcseg_core.config import parse_section
from pcseg_core.errors import InputError
from pcseg_core.learning.recipe import Recipe
from pcseg_core.online.example_pictures import encoder_of
from pcseg_core.vision.encoder_kinds import ENCODERS, ESPNetv2FeaturesConfig
from pcseg_core.vision.maskclip import MaskClipConfig
from pcseg_core.vision.pixel_classes import TEACHERS, read_teacher
from pcseg_core.vision.registry import checksum
from pcseg_core.vision.superpixel_kinds import SUPERPIXELS
from pcseg_core.vision.teachers.espnetv2 import ESPNetv2Config

ROOT = Path(__file__).resolve().parents[3]
BUNDLED = "bundled:simulation_teacher"


@pytest.mark.parametrize("registry", [TEACHERS, ENCODERS, SUPERPIXELS])
def test_every_kind_of_the_package_has_options_and_a_summary(registry: Any) -> None:
    for name in registry.names():
        kind = registry.kind(name)
        assert issubclass(kind.options, registry.base) and len(kind.summary) > 10
        assert all(f.description for k, f in kind.options.model_fields.items() if k != "name")


def test_the_name_selects_the_options() -> None:
    recipe = Recipe.model_validate({"teacher": {"name": "maskclip", "weights": "clip.pt"}})
    assert isinstance(recipe.teacher, MaskClipConfig)
    assert recipe.model_dump()["teacher"]["weights"] == Path("clip.pt")
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert isinstance(Recipe.model_validate({"teacher": {"weights": "w"}}).teacher, ESPNetv2Config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher": {"name": "maskklip"}}, "teacher: no teacher.* 'maskclip'.*espnetv2, "),
        ({"teacher": {"weights": "w", "flipp": True}}, "'teacher.flipp' .did you mean 'flip'"),
        ({"teacher": {"name": "maskclip", "weights": "w", "stride": 8}}, "'teacher.stride'"),
        ({"teacher": {}}, "'teacher.weights' is required"),
        ({"teacher": {"name": ["espnetv2"]}}, "expected a word"),
        ({"teacher": {"name": "e" * 200}}, "expected a word"),
        ({"teacher": [1]}, "the name and the options of a teacher"),
        ({"encoder": {"name": "espnetv2", "stride": 4}}, "unknown key 'encoder.stride'"),
        ({"superpixels": {"name": "seem"}}, "no superpixel generator 'seem'.*slic, semantic"),
        (
            {"text": {"space": {"source": "bert"}}, "teacher": {"weights": "w"}},
            "no text space 'bert'.*pcseg.texts",
        ),
    ],
)
def test_unknown_names_and_keys_say_what_there_is(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_section(values, Recipe)


def test_recipes_stored_by_earlier_versions_are_read() -> None:
    teacher = {"name": "espnetv2", "weights": "w", "scales": [1.0], "flip": True, "clip": None}
    assert TEACHERS.parse(teacher, "old") == ESPNetv2Config(weights=Path("w"), scales=(1.0,))
    clip = {"name": "maskclip", "weights": "w", "clip": None}
    assert TEACHERS.parse(clip, "old") == MaskClipConfig(weights=Path("w"))
    old = {"name": "espnetv2", "weights": BUNDLED, "scale": 0.5, "stride": 8}
    old["model"] = "vit_small_patch14_dinov2"
    found = ENCODERS.parse(old, "old")
    assert found == ESPNetv2FeaturesConfig(weights=Path(BUNDLED), scale=0.5)
    assert encoder_of({"encoder": old}).features  # as in the metadata of a checkpoint


def test_a_teacher_is_one_block_wherever_it_is_given(tmp_path: Path) -> None:
    block = f"{{weights: '{BUNDLED}', label_space: simulation, scales: [1.0]}}"
    (tmp_path / "recipe.yaml").write_text(f"teacher: {block}\nseed: 3\n")
    (tmp_path / "block.yaml").write_text(block)
    found = [read_teacher(s) for s in (block, *map(str, sorted(tmp_path.glob("*.yaml"))))]
    assert found[0] == found[1] == found[2]
    assert found[0].label_space == "simulation"
    (tmp_path / "own.yaml").write_text("encoder: {name: espnetv2}\n")
    with pytest.raises(InputError, match=r"own.yaml: no 'teacher'"):
        read_teacher(str(tmp_path / "own.yaml"))
    with pytest.raises(InputError, match="teacher: 'weights' is required"):
        read_teacher("{name: espnetv2}")


def test_identity_follows_the_content_of_files(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"1")
    config = ESPNetv2Config(weights=file)
    first = config.identity
    moved = tmp_path / "v.safetensors"
    moved.write_bytes(b"1")
    assert ESPNetv2Config(weights=moved).identity == first
    file.write_bytes(b"2")
    assert config.identity != first
    before = checksum(tmp_path)
    (tmp_path / "new").touch()
    assert checksum(tmp_path) != before


PLUGIN = '''
from typing import Literal

import numpy as np

from pcseg_core.labels import LabelSpace
from pcseg_core.vision.pixel_classes import TeacherConfig
from pcseg_core.vision.registry import Kind


class GrayConfig(TeacherConfig):
    """Dark pixels are road."""

    name: Literal["gray"] = "gray"
    threshold: int = 100


class Gray:
    def __init__(self, config: GrayConfig) -> None:
        self.label_space, self.threshold = LabelSpace.load(config.label_space), config.threshold

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        found = np.zeros((len(self.label_space), *image.shape[:2]), np.float32)
        found[0] = image.mean(2) < self.threshold
        return found


KIND = Kind(GrayConfig, lambda config, device: Gray(config), "dark pixels are road")
'''
MORE = """
import numpy as np

from pcseg_core.vision.encoder_kinds import EncoderConfig
from pcseg_core.vision.registry import Kind
from pcseg_core.vision.superpixel_kinds import SuperpixelOptions
from pcseg_core.vision.superpixels import SegmentMap
from pcseg_core.vision.text_space import TextOptions


class Options(EncoderConfig):
    name: str = "bright"


class Bright:
    channels, name, parameters = 1, "bright", {}

    def features(self, image):
        return image.mean(2)[None].astype(np.float32)


class Cut(SuperpixelOptions):
    name: str = "halves"


class Halves:
    name, parameters = "halves", {}

    def segment(self, image):
        ids = np.zeros(image.shape[:2], np.int32)
        ids[:, image.shape[1] // 2 :] = 1
        return SegmentMap(ids)


class Words(TextOptions):
    name: str = "letters"
    channels: int = 4


class Letters:
    name = "letters"

    def __init__(self, channels):
        self.channels = channels

    def known(self, word):
        return bool(word)

    def embed(self, words):
        return np.eye(self.channels, dtype=np.float32)[[len(w) % self.channels for w in words]]


ENCODER = Kind(Options, lambda config, device: Bright(), "brightness")
SUPERPIXELS = Kind(Cut, lambda config, device: Halves(), "left and right")
TEXT = Kind(Words, lambda config, device: Letters(config.channels), "length of words")
"""
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "gray-teacher"
version = "1.2"
[tool.setuptools]
py-modules = ["gray_teacher", "more_kinds"]
[project.entry-points."pcseg.teachers"]
gray = "gray_teacher:KIND"
broken = "gray_teacher:missing"
[project.entry-points."pcseg.encoders"]
bright = "more_kinds:ENCODER"
[project.entry-points."pcseg.superpixels"]
halves = "more_kinds:SUPERPIXELS"
[project.entry-points."pcseg.texts"]
letters = "more_kinds:TEXT"
"""
USE = """
import numpy as np
from pcseg_core.cli.doctor import findings
from pcseg_core.errors import InputError
from pcseg_core.learning.recipe import Recipe
from pcseg_core.vision.pixel_classes import load_teacher

recipe = Recipe.model_validate({"teacher": {"name": "gray", "threshold": 50}})
road = load_teacher(recipe.teacher).probabilities(np.full((4, 6, 3), 20, np.uint8))[0]
assert road.shape == (4, 6) and road.all()
assert recipe.teacher.identity["threshold"] == 50
for name, expected in (("grey", "gray"), ("broken", "cannot be imported")):
    try:
        Recipe.model_validate({"teacher": {"name": name}})
    except ValueError as error:
        assert expected in str(error), str(error)
from pcseg_core.vision.encoder_kinds import ENCODERS
from pcseg_core.vision.superpixel_kinds import SUPERPIXELS
from pcseg_core.vision.text_space import TextSpaceConfig, load_text_space

image = np.full((4, 6, 3), 20, np.uint8)
more = Recipe.model_validate({"encoder": {"name": "bright"}, "superpixels": {"name": "halves"}})
assert ENCODERS.load(more.encoder).features(image).shape == (1, 4, 6)
assert SUPERPIXELS.load(more.superpixels).segment(image).count == 2
space = TextSpaceConfig(source="letters", options={"channels": 8})
assert load_text_space(space).embed(["car"]).shape == (1, 8)
try:
    TextSpaceConfig(source="letters", options={"channel": 8})
except ValueError as error:
    assert "did you mean 'channels'" in str(error), str(error)
print([f.detail for f in findings() if f.subject in ("teachers", "encoders", "texts")])
"""


@pytest.mark.slow
def test_a_package_installed_with_pip_adds_a_teacher(tmp_path: Path) -> None:
    if not list(metadata.distributions(name="pip")):  # importing it turns distutils off
        pytest.skip("needs pip")
    project = tmp_path / "project"
    project.mkdir()
    (project / "gray_teacher.py").write_text(PLUGIN)
    (project / "more_kinds.py").write_text(MORE)
    (project / "pyproject.toml").write_text(PROJECT)
    target = tmp_path / "site"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    command = [sys.executable, *install, "--no-index", "--target", str(target), str(project)]
    subprocess.run(command, check=True, timeout=200, capture_output=True)
    path = os.pathsep.join([str(ROOT), str(target)])
    done = subprocess.run(
        [sys.executable, "-c", USE],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    for name in ("gray", "bright", "letters"):
        assert f"{name} (of gray-teacher)" in done.stdout
    assert "espnetv2" in done.stdout
