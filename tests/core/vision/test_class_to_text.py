# SPDX-License-Identifier: Apache-2.0
"""Class-to-text: pixels of a class teacher in the space of words."""

import numpy as np
import pytest
import torch

from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.objectives.text import TextRegression, head_cosines, mean_by_voxel
from pcseg_core.learning.recipe import TextConfig
from pcseg_core.learning.teachers import load_text_teacher
from pcseg_core.text_table import TextTable
from pcseg_core.vision.class_to_text import (
    ClassProbabilities,
    ClassToText,
    agree_with_labels,
    class_matrix,
    class_words,
)
from pcseg_core.vision.text_space import GeneratedText, TextSpaceConfig

SPACE = LabelSpace.from_dict(
    {
        "name": "three",
        "classes": [
            {"name": "car", "color": [1, 2, 3], "synonyms": ["van"]},
            {"name": "sky", "color": [1, 2, 3]},
            {"name": "tree", "color": [1, 2, 3], "synonyms": ["bush"]},
        ],
    }
)
TABLE = TextTable("t", ("car", "van", "bush", "cloud"), np.eye(4, 6))


class Teacher:
    label_space = SPACE

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        likely = np.zeros((3, 1, 4), np.float32)
        likely[:, 0] = np.array([[1, 0, 0], [0, 1, 0], [0.6, 0, 0.4], [0.25, 0.75, 0]]).T
        return likely

    def features(self, image: np.ndarray) -> np.ndarray:
        return np.zeros((5, 1, 4), np.float32)


def test_words_of_classes() -> None:
    words = class_words(SPACE, TABLE, {"sky": []})
    assert words == {"car": ("car", "van"), "sky": (), "tree": ("bush",)}
    assert class_words(SPACE, TABLE, {"sky": ["cloud"], "tree": ["bush"]})["sky"] == ("cloud",)
    with pytest.raises(InputError, match="'sky'.*neither its name nor its synonyms"):
        class_words(SPACE, TABLE, {})
    with pytest.raises(InputError, match="no class 'skye'"):
        class_words(SPACE, TABLE, {"skye": ["cloud"]})
    with pytest.raises(InputError, match="no vector for 'clouds' \\(near: cloud"):
        class_words(SPACE, TABLE, {"sky": ["clouds"]})


def test_features_are_the_probable_mixture_of_class_vectors() -> None:
    matrix = class_matrix(TABLE, class_words(SPACE, TABLE, {"sky": []}))
    root = 0.5**0.5
    assert np.allclose(matrix[0, :2], root) and not matrix[1].any() and matrix[2, 2] == 1
    found = ClassToText(Teacher(), matrix).features(np.zeros((2, 8, 3), np.uint8))
    assert found.shape == (6, 1, 4)
    assert np.allclose(found[:, 0, 0], matrix[0])
    assert not found[:, 0, 1].any()  # sky alone: left out
    mixed = 0.6 * matrix[0] + 0.4 * matrix[2]
    assert np.allclose(found[:, 0, 2], mixed / np.linalg.norm(mixed))
    assert np.allclose(found[:, 0, 3], matrix[0])
    with pytest.raises(InputError, match="2 vectors for the 3 classes"):
        ClassToText(Teacher(), matrix[:2])
    assert ClassProbabilities(Teacher()).channels == 3


def test_votes_correct_pixels() -> None:
    likely = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [1.0, 0.0, 0.0]], np.float32)
    groups = np.array([0, 1, 1])
    found = agree_with_labels(likely, np.array([1, -1, 1]), groups)
    assert np.allclose(found, [[0, 0.6, 0.4], [0.5, 0.3, 0.2], [0, 0, 0]])


def test_mean_by_voxel() -> None:
    values = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]])
    seen, means = mean_by_voxel(values, torch.tensor([7, 2, 7]))
    assert seen.tolist() == [2, 7] and means.tolist() == [[3.0, 2.0], [3.0, 2.5]]


def objective(**changes: float) -> TextRegression:
    config = TextConfig(space=TextSpaceConfig(), temperature=1.0, **changes)
    matrix = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)
    return TextRegression(config, matrix, np.array([0.5, 0.5, 0.0]))


def identity() -> torch.nn.Linear:
    head = torch.nn.Linear(3, 3)
    torch.nn.init.eye_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return head


def test_cosines_of_the_head_without_its_output() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 40)
    features, vectors = torch.randn(30, 5), torch.nn.functional.normalize(torch.randn(7, 40), dim=1)
    direct = torch.nn.functional.normalize(head(features), dim=1) @ vectors.t()
    assert torch.allclose(head_cosines(head, features, vectors), direct, atol=1e-5)


def test_losses_by_hand() -> None:
    head = identity()
    features = torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    values = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    losses = objective().terms(head, features, values, torch.tensor([0, 1]))
    assert losses["text_distance"].item() == pytest.approx(2**0.5 / 2, abs=1e-3)
    log = np.log(1 + np.e)
    assert losses["text_classes"].item() == pytest.approx((log + log - 1) / 2, abs=1e-5)
    assert set(
        objective(cross_entropy=0.0).terms(head, features, values, torch.tensor([0, 1]))
    ) == {"text_distance"}


def test_left_out_classes_and_no_pixels_give_no_loss() -> None:
    head = torch.nn.Linear(3, 3)
    features = torch.randn(2, 3)
    for values, voxel in (
        (torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([0])),
        (torch.zeros(1, 3), torch.tensor([1])),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),
    ):
        losses = objective().terms(head, features, values, voxel)
        total = torch.stack(list(losses.values())).sum()
        assert total.item() == 0
        total.backward()
        assert torch.isfinite(head.weight.grad).all()  # type: ignore[union-attr,arg-type]


def test_dense_features_are_regressed_as_they_are() -> None:
    config = TextConfig(space=TextSpaceConfig())
    dense = TextRegression(config, np.eye(2, 3, dtype=np.float32), None)
    features = torch.tensor([[0.0, 2.0, 0.0]])
    losses = dense.terms(
        torch.nn.Identity(), features, torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([0])
    )
    assert list(losses) == ["text_distance"]
    assert losses["text_distance"].item() == pytest.approx(2**0.5, abs=1e-5)


def test_generated_space_knows_all_classes() -> None:
    words = class_words(SPACE, GeneratedText(16), {})
    assert words["tree"] == ("tree", "bush") and class_matrix(GeneratedText(16), words).all()


def test_spaces_of_encoders_are_centered_on_the_words_of_the_run() -> None:
    config = TextConfig(space=TextSpaceConfig(channels=16, center=True), words=("minivan",))
    teacher = load_text_teacher(config, Teacher(), "cpu")
    text = teacher.checkpoint_text(config)
    assert set(text.table.words) == {"car", "van", "sky", "tree", "bush", "minivan"}
    raw = GeneratedText(16).embed(text.table.words)
    moved = raw - raw.mean(0)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    assert np.allclose(text.table.vectors, moved, atol=1e-5)
    assert text.table.center is not None and np.allclose(text.table.center, raw.mean(0), atol=1e-6)
    more = text.table.extended(["bus"], GeneratedText(16).embed(["bus"]))
    late = GeneratedText(16).embed(["bus"]) - raw.mean(0)
    assert np.allclose(more.embed(["bus"]), late / np.linalg.norm(late), atol=1e-5)
