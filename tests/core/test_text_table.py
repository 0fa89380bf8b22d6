# SPDX-License-Identifier: Apache-2.0
"""Words, their spellings and vectors; storage without pickles; text spaces."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pcseg_core import text_table
from pcseg_core.errors import InputError
from pcseg_core.text_table import TextTable, word_key
from pcseg_core.vision.text_space import (
    GeneratedText,
    TableFile,
    TextSpaceConfig,
    load_text_space,
    read_table,
    table_of,
)


def table() -> TextTable:
    words = ("car_(automobile)", "bus_(vehicle)", "crane_(bird)", "crane_(machine)", "Pole")
    vectors = np.random.default_rng(0).standard_normal((5, 8)) * 10
    return TextTable("lvis", words, vectors, {"post": "Pole", "auto_(automobile)": words[0]})


def test_rows_are_unit() -> None:
    assert np.allclose(np.linalg.norm(table().vectors, axis=1), 1)


@pytest.mark.parametrize(
    "spelling", ["car_(automobile)", "CAR (automobile)", "car", "Car", "ｃａｒ", " car ", "auto"]
)
def test_spellings_of_one_word(spelling: str) -> None:
    assert table().find(spelling) == 0


def test_what_could_mean_two_words_means_none() -> None:
    assert table().find("crane") is None
    assert table().find("crane (bird)") == 2
    assert sorted(table().near("crane")[:2]) == ["crane_(bird)", "crane_(machine)"]


def test_unknown_words_are_all_named_with_near_ones() -> None:
    with pytest.raises(InputError, match=r"'buss' \(near: bus_\(vehicle\)\).*'дерево'"):
        table().embed(["pole", "buss", "дерево"])


@pytest.mark.parametrize("word", ["", "   ", "()", "🚗", "\u0000", "a" * 10000])
def test_odd_words_are_unknown(word: str) -> None:
    with pytest.raises(InputError, match="no vector for"):
        table().embed([word])


def test_a_table_comes_back_from_disk(tmp_path: Path) -> None:
    stored = table().centered()
    stored.save(tmp_path / "words.npz")
    read = TextTable.load(tmp_path / "words.npz")
    assert read.words == stored.words and dict(read.synonyms) == dict(stored.synonyms)
    assert np.array_equal(read.vectors, stored.vectors)
    assert np.array_equal(read.center, stored.center)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "words.npz").read_bytes()[:100])
    with pytest.raises(InputError, match="not readable"):
        TextTable.load(tmp_path / "cut.npz")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "bad.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not readable"):
        read_table(TableFile(vectors=tmp_path / "bad.npy", names="coco"))


@pytest.mark.parametrize("vectors", [np.zeros((2, 4)), np.full((2, 4), np.nan), np.ones((3, 4))])
def test_vectors_that_are_none(vectors: np.ndarray) -> None:
    with pytest.raises(InputError, match="text table 'x'"):
        TextTable("x", ("a", "b"), vectors)


@pytest.mark.parametrize("center", [np.zeros(3), np.full(4, np.inf), np.float32(1)])
def test_centers_that_are_none(center: np.ndarray) -> None:
    with pytest.raises(InputError, match="text table 'x': a center of shape"):
        TextTable("x", ("a", "b"), np.eye(2, 4), center=center)


@pytest.mark.parametrize(
    ("vectors", "header"),
    [
        (b"(1000000000000, 4)", b"{}"),  # takes more memory than there is
        (b"(2, 4)", b"[" * 100_000),
        (b"(" * 50, b"{}"),
    ],
)
def test_forged_tables_are_refused(tmp_path: Path, vectors: bytes, header: bytes) -> None:
    about = b"{'descr': '<f4', 'fortran_order': False, 'shape': " + vectors + b", }"
    about = about.ljust(117) + b"\n"
    path = tmp_path / "forged.npz"
    np.savez(path, header=np.frombuffer(header, np.uint8), center=np.zeros(4))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("vectors.npy", b"\x93NUMPY\1\0v\0" + about + bytes(32))
    with pytest.raises(InputError, match="forged.npz: not readable"):
        TextTable.load(path)


def test_a_table_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(text_table, "MAX_BYTES", 10_000)
    path = tmp_path / "large.npz"
    np.savez_compressed(path, vectors=np.zeros((1000, 4)))
    with pytest.raises(InputError, match="unpacks to 32"):
        TextTable.load(path)


def test_join_keeps_the_first_and_refuses_other_sizes() -> None:
    other = TextTable("coco", ("car", "pole", "tree"), np.eye(3, 8))
    joined = table().join(other)
    assert len(joined) == 7  # "car" is a word of its own, "pole" is "Pole"
    assert np.array_equal(joined.embed(["pole"]), table().embed(["Pole"]))
    assert np.array_equal(joined.embed(["car"])[0], np.eye(3, 8)[0].astype(np.float32))
    with pytest.raises(InputError, match="different spaces"):
        table().join(TextTable("z", ("a",), np.ones((1, 3))))


def test_centering_makes_a_cone_wide() -> None:
    rng = np.random.default_rng(0)
    cone = TextTable("c", tuple(map(str, range(50))), 3 + rng.standard_normal((50, 64)))
    raw, wide = cone.vectors @ cone.vectors.T, cone.centered().vectors
    assert raw.min() > 0.5
    off = (wide @ wide.T)[~np.eye(50, dtype=bool)]
    assert abs(off.mean()) < 0.05


def test_generated_vectors_depend_on_word_and_seed_alone() -> None:
    first = GeneratedText(32, 1).embed(["road", "Sky"])
    assert np.array_equal(first[1:], GeneratedText(32, 1).embed(["sky"]))
    assert not np.allclose(first[1:], GeneratedText(32, 2).embed(["sky"]))
    assert np.allclose(np.linalg.norm(first, axis=1), 1)
    with pytest.raises(InputError, match="empty"):
        GeneratedText(32).embed([" "])


def test_generated_words_fill_what_a_table_lacks(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.eye(3, 300))
    (tmp_path / "n.json").write_text(json.dumps(["car", "pole", "bus"]))
    config = TextSpaceConfig(
        source="table",
        tables=(TableFile(vectors=tmp_path / "v.npy", names=tmp_path / "n.json"),),
        generate=("road", "car", "sky"),
    )
    space = load_text_space(config)
    assert isinstance(space, TextTable)
    assert space.generated == {"road", "sky"} and len(space) == 5
    cosines = space.vectors @ space.vectors.T - np.eye(5)
    assert np.abs(cosines).max() < 0.25
    assert table_of(space, ["sky", "bus"]).words == ("sky", "bus")
    assert table_of(space, ["sky", "bus"]).generated == {"sky"}


def test_detic_tables(shared_data: Path) -> None:
    weights = shared_data / "weights"
    lvis = TableFile(
        vectors=weights / "lvis_v1_clip_a_cname.npy", names=weights / "lvis_v1_train_cat_info.json"
    )
    coco = TableFile(vectors=weights / "coco_clip_a_cname.npy", names="coco")
    space = load_text_space(TextSpaceConfig(source="table", tables=(coco, lvis)))
    assert isinstance(space, TextTable) and space.channels == 512
    vectors = space.embed(["car", "car_(automobile)", "minivan", "banana"])
    similarity = vectors @ vectors[0]
    assert similarity[1] > similarity[2] > similarity[3]
    with pytest.raises(InputError, match=r"'tree' \(near: Christmas_tree"):
        space.embed(["tree"])


def test_word_key() -> None:
    assert word_key("Traffic-Light__pole ") == "traffic light pole"
