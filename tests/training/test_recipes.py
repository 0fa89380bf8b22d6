# SPDX-License-Identifier: Apache-2.0
"""Recipes of the package: complete, found by name from any folder, weights found by file name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pcseg_core.bundled import WEIGHTS_VARIABLE
from pcseg_core.errors import InputError
from pcseg_core.known_weights import KNOWN
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.recipe import Recipe, load_recipe
from pcseg_core.learning.start import check_start
from pcseg_core.learning.zero_shot_split import load_split
from pcseg_core.recipes import available_recipes, recipe_file, recipe_kind, recipe_summary

FILES = (
    "espnetv2_s2.0_cityscapes_1024x512.safetensors",
    "vit_b_16_openai.safetensors",
    "lvis_v1_clip_a_cname.npy",
    "lvis_v1_train_cat_info.json",
    "coco_clip_a_cname.npy",
    "deeplab_mobilenet_edgetpu_slim_cityscapes_quant.tflite",
)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with empty files of the names in the recipes, in PCSEG_WEIGHTS."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in FILES:
        (folder / name).touch()
    for name, entry in KNOWN.items():
        monkeypatch.setitem(KNOWN, name, replace(entry, sums=()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("name", available_recipes())
def test_every_recipe_of_the_package_loads_from_any_folder(name: str, weights: Path) -> None:
    file = recipe_file(name)
    loaded = load_recipe(file)
    assert loaded.optimizer.steps > 0 and loaded.seed == 0
    kinds = {"distillation": "teacher", "pretraining": "encoder", "zero-shot": "supervision"}
    kind = "teacher_3d" if name == "small" else kinds[recipe_kind(file)]
    assert getattr(loaded, kind)
    # A recipe states everything: what a run stores is a recipe with the same result.
    assert Recipe.model_validate(loaded.model_dump(mode="json")) == loaded
    named = re.findall(r"(?:weights|vectors|names): (\S+)", file.read_text())
    assert (named or name == "small") and all(Path(value).name == value for value in named)
    assert 20 < len(recipe_summary(file)) <= 100


@pytest.mark.parametrize("name", ["contrast", "contrast-kitti", "pretrain-kitti"])
def test_pretraining_recipes_are_complete(name: str, weights: Path) -> None:
    found = load_recipe(recipe_file(name))
    assert found.encoder.weights is not None and found.encoder.weights.is_absolute()
    assert found.superpixels.teacher is not None
    assert found.superpixels.teacher.weights == found.encoder.weights


@pytest.mark.parametrize("name", ["simulated", "semantic-kitti", "nuscenes"])
def test_zero_shot_recipes_are_complete(name: str, weights: Path) -> None:
    recipe = load_recipe(recipe_file(f"zero-shot-{name}"))
    assert recipe.alignment.active and recipe.self_training.start < 1
    assert recipe.labels.consolidation.voxel_m > 0 and recipe.supervision == "zero-shot"
    if name != "simulated":
        assert recipe.teacher.weights == recipe.text.space.weights == weights / FILES[1]
        assert recipe.teacher.label_space == load_split(name.replace("-", "_")).label_space


def test_the_recipe_kitti_starts_from_a_network_like_its_own(weights: Path) -> None:
    recipe = load_recipe(recipe_file("kitti"))
    assert recipe.start is not None and recipe.rounds.beside is not None
    check_start(recipe.start, recipe, LabelSpace.load("street"))
    assert load_recipe(recipe_file("kitti-words")).student == recipe.student


def test_the_recipe_of_words_names_its_files(weights: Path) -> None:
    text = load_recipe(recipe_file("kitti-words")).text
    assert text is not None and all(t.vectors.parent == weights for t in text.space.tables)
    assert text.space.tables[1].names == "coco"
    given = set(LabelSpace.load("cityscapes").names)
    assert set(text.classes) == given


def test_missing_weights_are_an_error_that_lists_where_they_were_looked_for(weights: Path) -> None:
    (weights / FILES[0]).unlink()
    with pytest.raises(InputError, match=f"{FILES[0]}.*{weights}.*{WEIGHTS_VARIABLE}"):
        load_recipe(recipe_file("kitti"))


def test_the_real_weights_are_found(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(shared_data / "weights"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = load_recipe(recipe_file("kitti-words"))
    assert recipe.teacher.weights == shared_data / "weights" / FILES[0]


def test_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'kitti-words'.*clip, contrast"):
        recipe_file("kitti_word")
    with pytest.raises(InputError, match="did you mean 'pretrain-kitti'"):
        recipe_file(tmp_path / "pretrain_kitti.yaml")
    own = tmp_path / "mine.yaml"
    own.write_text("teacher: {weights: bundled:simulation_teacher}\n")
    assert recipe_file(own) == own and recipe_kind(own) == "distillation"


PRETRAIN = "encoder: {name: espnetv2, weights: bundled:simulation_teacher}\n"
TEACHER = "teacher: {weights: bundled:simulation_teacher, label_space: simulation}\n"
WORDS = "text: {space: {channels: 16}}\n"


def parsed(folder: Path, text: str) -> Recipe:
    (folder / "recipe.yaml").write_text(text)
    return load_recipe(folder / "recipe.yaml")


def test_the_objectives_follow_from_the_sections(tmp_path: Path) -> None:
    taught = parsed(tmp_path, TEACHER)
    assert (taught.loss.cross_entropy, taught.loss.lovasz, taught.loss.superpixel) == (1, 1, 0)
    assert taught.text is None and taught.alignment is None and taught.self_training is None
    alone = parsed(tmp_path, PRETRAIN + "loss: {regression: 0.5}\n")
    assert (alone.loss.cross_entropy, alone.loss.lovasz, alone.loss.superpixel) == (0, 0, 1)
    assert alone.loss.regression == 0.5 and not alone.across_sweeps
    hidden = parsed(tmp_path, TEACHER + WORDS + "supervision: zero-shot\nself_training: null\n")
    assert hidden.alignment is not None and hidden.alignment.active
    assert hidden.self_training is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\n", "need labels: give a 'teacher'"),
        (TEACHER + PRETRAIN, "not both"),
        (TEACHER + "loss: {superpixel: 1}\n", "need image features: give 'encoder'"),
        (PRETRAIN + "loss: {cross_entropy: 1}\n", "need labels"),
        (PRETRAIN + "alignment: {patch_px: 4}\n", "'alignment' needs a 'teacher'"),
        (PRETRAIN + WORDS, "'text' needs a 'teacher'"),
        (TEACHER + "supervision: seen\n", "needs the words of the classes: give 'text'"),
        (PRETRAIN + "loss: {superpixel: 0}\n", "nothing would be learned"),
        (TEACHER + "text: {source: classes, channels: 8}\n", "'text.space.channels'"),
        (TEACHER + "temperature: 0.1\n", "'temperature' is now called 'text.temperature'"),
        (TEACHER + "teacher_words: {car: [car]}\n", "now called 'text.classes'"),
        (TEACHER + "labels: {carry_voxel_m: 1}\n", "now called 'propagate_voxel_m'"),
        (
            TEACHER + "labels: {consolidation: {doubt: 0.5}}\n",
            "'labels.consolidation.doubt' is now called 'observation_noise'",
        ),
    ],
)
def test_a_recipe_that_lacks_or_renames_something_says_so(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        parsed(tmp_path, text)
