# SPDX-License-Identifier: Apache-2.0
"""Splits into seen and unseen classes: those of the literature, a user's own, and mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pcseg_core.errors import InputError
from pcseg_core.learning.zero_shot_split import Split, available_splits, load_split
from pcseg_core.text_table import TextTable
from pcseg_core.vision.text_space import GeneratedText


def test_the_splits_of_the_literature() -> None:
    kitti = load_split("semantic_kitti")
    # Ids 3, 4, 7 and 19 of the learning map, which counts from 1 with 0 for unlabeled.
    assert (np.flatnonzero(kitti.mask) + 1).tolist() == [3, 4, 7, 19]
    nuscenes = load_split("nuscenes")
    assert np.flatnonzero(nuscenes.mask).tolist() == [5, 7, 8, 13]
    assert {"semantic_kitti", "nuscenes"} <= set(available_splits())
    for name in available_splits():
        assert 0 < load_split(name).mask.sum() < len(load_split(name).space)


def test_a_split_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("label_space: street\nunseen: [person]\nwords: {person: [walker, child]}\n")
    split = load_split(str(file))
    words = split.class_words(GeneratedText(16))
    assert words["person"] == ("walker", "child") and words["road"][0] == "road"
    assert list(words) == list(split.space.names) and split.mask.sum() == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label_space: street\nunseen: [unicorn]\n", "no class 'unicorn'"),
        ("label_space: street\nunseen: []\n", "unseen"),
        ("label_space: street\nunsen: [person]\n", "did you mean 'unseen'"),
        ("label_space: atlantis\nunseen: [person]\n", "no label space 'atlantis'"),
        (
            "label_space: street_merged_ground\nunseen: [ground, structure, vegetation, vehicle, "
            "person, pole]\n",
            "all classes are unseen",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        load_split(str(tmp_path / "bad.yaml"))
    with pytest.raises(InputError, match=r"expected one of .*semantic_kitti"):
        load_split("semantic_kity")


def test_words_that_the_text_space_lacks_are_named() -> None:
    table = TextTable("tiny", ("car", "truck"), np.array([[1.0, 0.0], [0.0, 1.0]], np.float32))
    split = Split(label_space="street", unseen=("vehicle",))
    with pytest.raises(InputError, match="class 'road'.*does not know road, street"):
        split.class_words(table)
    given = Split(label_space="street", unseen=("vehicle",), words={"road": ("car", "oxcart")})
    with pytest.raises(InputError, match="does not know oxcart"):
        given.class_words(table)
