# SPDX-License-Identifier: Apache-2.0
"""Several teachers: votes by hand, classes that one lacks, and weights by agreement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pcseg_core.config import parse_section
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.recipe import Recipe
from pcseg_core.vision.pixel_classes import TEACHERS, load_teacher, read_teacher
from pcseg_core.vision.teachers.several import Several, SeveralConfig, agreement, fill_unknown

IMAGE = np.zeros((4, 6, 3), np.uint8)
BUNDLED = {"weights": "bundled:simulation_teacher", "label_space": "simulation", "scales": [1.0]}


def space(*names: str) -> LabelSpace:
    classes = [{"name": name, "color": [0, 0, 0]} for name in names]
    return LabelSpace.from_dict({"name": "-".join(names), "classes": classes})


ALL = space("building", "person", "pole")


class Fixed:
    """A teacher with the same probabilities everywhere, for classes of `ALL`."""

    def __init__(self, height: int = 4, **values: float) -> None:
        content: dict[str, Any] = space(*values).to_dict()
        content["groupings"] = {ALL.name: {name: [name] for name in values}}
        self.label_space = LabelSpace.from_dict(content)
        column = np.array(list(values.values()), np.float32)
        self.maps = np.broadcast_to(column[:, None, None], (len(values), height, 6)).copy()

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        return self.maps

    def features(self, image: np.ndarray) -> np.ndarray:
        return self.maps[:1]


def test_a_detector_does_not_vote_against_classes_that_it_lacks() -> None:
    surfaces = Fixed(building=0.7, person=0.1, pole=0.2)
    sure, nothing = Fixed(person=0.95), Fixed(person=0.0)
    seen = Several([surfaces, sure], ALL).probabilities(IMAGE)[:, 0, 0]
    assert seen.argmax() == 1 and seen.sum() == pytest.approx(1, abs=0.02)
    empty = Several([surfaces, nothing], ALL).probabilities(IMAGE)[:, 0, 0]
    assert empty.argmax() == 0 and empty[0] == pytest.approx(0.7, abs=0.02)
    assert empty[1] < 0.05  # one of two teachers sees nobody


def test_votes_that_a_teacher_lacks_follow_the_others() -> None:
    votes = torch.tensor([[0.6, 0.3, 0.0], [0.0, 0.0, 0.9]])[:, :, None, None]
    known = torch.tensor([[True, True, False], [False, False, True]])
    filled = fill_unknown(votes, known)[:, :, 0, 0]
    assert filled[0].tolist() == pytest.approx([0.6, 0.3, 0.1])
    assert filled[1].tolist() == pytest.approx([0.1 * 2 / 3, 0.1 / 3, 0.9], abs=1e-6)


def test_the_weight_of_a_vote_is_what_the_mean_confirms() -> None:
    agreed = torch.tensor([1.0, 0.0])[:, None, None].expand(2, 100, 100)
    apart = torch.tensor([0.0, 1.0])[:, None, None].expand(2, 100, 100)
    weights = agreement(torch.stack([agreed, agreed, apart]))
    # Two thirds agree on class 0, one on class 1; 1 % of the pixels count as confirmed.
    two, one = (2 / 3 + 0.01) / 1.01, (1 / 3 + 0.01) / 1.01
    assert torch.allclose(weights, torch.tensor([[two, 1.0], [two, 1.0], [1.0, one]]))


def test_two_of_three_outvote_the_third_and_factors_turn_it() -> None:
    right = {"building": 0.9, "person": 0.1, "pole": 0.0}
    wrong = {"building": 0.0, "person": 0.0, "pole": 1.0}
    trio = [Fixed(**right), Fixed(height=2, **right), Fixed(**wrong)]
    found = Several(trio, ALL).probabilities(IMAGE)
    assert found.shape == (3, 4, 6) and (found.argmax(0) == 0).all()
    assert found[2].max() < 0.3  # less than a third: nobody confirms the pole
    factors = np.ones((3, 3), np.float32)
    factors[:2] = 0.001
    assert (Several(trio, ALL, factors).probabilities(IMAGE).argmax(0) == 2).all()
    assert Several(trio, ALL).features(IMAGE).shape == (1, 4, 6)


def test_a_list_of_teachers_is_a_teacher(tmp_path: Path) -> None:
    recipe = parse_section({"teachers": [BUNDLED, {**BUNDLED, "flip": False}]}, Recipe)
    assert isinstance(recipe.teacher, SeveralConfig) and recipe.teacher.label_space == "street"
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    picture = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    found = load_teacher(recipe.teacher).probabilities(picture)
    assert found.shape == (8, 32, 48) and found.sum(0).max() <= 1 + 1e-5
    file = tmp_path / "two.yaml"
    file.write_text(f"teachers: [{BUNDLED}, {BUNDLED}]\n".replace("'", ""))
    assert isinstance(read_teacher(str(file)), SeveralConfig)
    assert "weights" in recipe.teacher.identity["teachers"][0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teachers": [BUNDLED]}, "at least 2"),
        ({"teachers": [BUNDLED, BUNDLED], "teacher": BUNDLED}, "not both"),
        ({"teachers": [BUNDLED, {"name": "espnet"}]}, "did you mean 'espnetv2'"),
        ({"teachers": [BUNDLED, {"weight": "w"}]}, "'teacher.teachers.1.weight' .did you mean"),
    ],
)
def test_wrong_lists_of_teachers_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_section(values, Recipe)


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([{}], "1 entries for 2 teachers"),
        ([{}, {"rode": 1}], "no class 'rode'"),
        ([{"*": 0}, {"road": 0}], "above 0 for every class"),
        ([{"road": -1}, {}], "factors from 0"),
    ],
)
def test_wrong_factors_are_refused(votes: list[dict[str, float]], message: str) -> None:
    values = {"name": "several", "teachers": [BUNDLED, BUNDLED], "votes": votes}
    with pytest.raises(InputError, match=message):
        load_teacher(TEACHERS.parse(values, "teacher"))
