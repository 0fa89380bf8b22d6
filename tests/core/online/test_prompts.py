# SPDX-License-Identifier: Apache-2.0
"""Prompts: parsing, folding into one matrix, changing them on a running segmenter."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcseg_core.checkpoint import FILE_NAME, CheckpointMeta, CheckpointText, save_checkpoint
from pcseg_core.cloud import PointCloud
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.models.student import Student, StudentConfig, cosine_logits
from pcseg_core.models.sweep_input import sweep_input
from pcseg_core.online.point_labels import point_labels
from pcseg_core.online.prompts import MAX_WORDS, PromptHead, PromptSet, class_vectors
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.text_table import TextTable
from pcseg_core.vision.text_space import GeneratedText, table_of

STREET = LabelSpace.load("street")
WORDS = [f"word{i}" for i in range(400)]


def text(channels: int = 32) -> CheckpointText:
    table = table_of(GeneratedText(channels), [*STREET.names, "tree", "машина", *WORDS])
    return CheckpointText(table, {name: (name,) for name in STREET.names}, 0.05)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    torch.manual_seed(0)
    config = StudentConfig(depth=14, width=0.25, voxel_size_m=0.5, text_channels=32)
    student = Student(config, len(STREET))
    path = tmp_path_factory.mktemp("words") / FILE_NAME
    meta = CheckpointMeta(student=config.model_dump(mode="json"), label_space=STREET.to_dict())
    save_checkpoint(path, student.state_dict(), meta, text())
    return Segmenter.load(path, device="cpu", precision="fp32")


def cloud(points: int = 2000) -> PointCloud:
    rng = np.random.default_rng(0)
    return PointCloud(rng.uniform(-20, 20, (points, 3)).astype(np.float32))


def test_parsing() -> None:
    parsed = PromptSet.parse([" vehicle : car, truck ,bus", "tree", "*"])
    assert [p.name for p in parsed.prompts] == ["vehicle", "tree", "everything else"]
    assert parsed.words == ("car", "truck", "bus", "tree") and parsed.background == 2
    assert PromptSet.parse(["Everything_Else", "a"]).background == 0
    assert PromptSet.parse(["car, van"]).prompts[0].name == "car"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "nothing named"),
        (["*"], "nothing named"),
        ([""], "empty name or word"),
        (["a:"], "empty name or word"),
        ([": a"], "empty name or word"),
        (["a,,b"], "empty name or word"),
        (["a", "A"], "named twice"),
        (["*", "everything else", "a"], "named twice"),
        ([f"w{i}" for i in range(MAX_WORDS + 1)], "at most"),
        ("car", "expected a list"),
        ([3], "expected a list"),
    ],
)
def test_refused_prompts(texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PromptSet.parse(texts)


@given(st.lists(st.text(max_size=30), max_size=8))
@settings(max_examples=200, deadline=None)
def test_any_text_is_parsed_or_refused(texts: list[str]) -> None:
    try:
        parsed = PromptSet.parse(texts)
    except InputError:
        return
    assert len(parsed.prompts) == len(texts) and parsed.words


def probabilities(head: PromptHead, features: torch.Tensor, classes: int) -> torch.Tensor:
    """(M, C) of features (M, F) that are each a point."""
    with torch.no_grad():
        points = torch.arange(len(features))
        found = point_labels(head.blocks(features), points, classes, head.owner, True)
    return torch.from_numpy(found.probabilities)


def test_head_equals_the_cosine_classifier() -> None:
    """Against features carried to the text space, normalized and compared one by one."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(12, 40)
    features = torch.randn(50, 12) * 3
    vectors = GeneratedText(40).embed(["a", "b", "c", "d"])
    owner = np.array([0, 1, 0, 2])
    head = PromptHead(linear, vectors, owner, 4, 0.07)
    found = probabilities(head, features, 4)
    unit = torch.nn.functional.normalize(linear(features), dim=1)
    rows = cosine_logits(unit, torch.from_numpy(vectors), 0.07).softmax(1)
    expected = torch.stack([rows[:, 0] + rows[:, 2], rows[:, 1], rows[:, 3], rows[:, 0] * 0], 1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_head_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = torch.nn.Linear(12, 40)
    head = PromptHead(linear, GeneratedText(40).embed(WORDS[:9]), np.arange(9), 9, 0.07)
    features = torch.randn(101, 12)
    whole = probabilities(head, features, 9)
    monkeypatch.setattr("pcseg_core.online.prompts._CELLS_AT_ONCE", 100)
    assert torch.allclose(probabilities(head, features, 9), whole, atol=1e-6)
    assert probabilities(head, features[:0], 9).shape == (0, 9)


def test_everything_else_is_what_no_word_means() -> None:
    table = TextTable("t", ("car", "bus", "tree", "van"), np.eye(4, 6))
    vectors = table.vectors.copy()
    vectors[1, 0] = 0.6  # bus is closer to car than van is
    vectors[3] = [0.4, 0, 0, 0.9, 0, 0]
    known = CheckpointText(
        TextTable("t", table.words, vectors, center=np.ones(6)),
        {w: (w,) for w in ("car", "bus", "tree")},
    )
    rows, owner = PromptSet.parse(["car", "*"]).encode(known)
    assert owner.tolist() == [0, 1, 1]  # bus and tree
    rows, owner = PromptSet.parse(["van", "*"]).encode(known)
    classes = class_vectors(known)
    assert owner.tolist() == [0, 1] and np.allclose(rows[1], classes[2])
    # On the class that it means, the word says what the class's own name would say.
    assert rows[0] @ classes[0] == pytest.approx(1, abs=1e-5)
    dense = CheckpointText(known.table, known.classes, from_classes=False)
    rows, _ = PromptSet.parse(["van", "*"]).encode(dense)
    assert np.allclose(rows[0], known.table.embed(["van"])[0])
    rows, owner = PromptSet.parse(["*", "car", "bus", "tree"]).encode(known)
    assert owner.tolist() == [1, 2, 3]  # nothing is left


def test_prompts_change_the_next_sweep(segmenter: Segmenter) -> None:
    trained = segmenter.segment(cloud())
    space = segmenter.set_prompts(["tree", "*", "vehicle: word1"])
    assert space.names == ("tree", "everything else", "vehicle")
    assert segmenter.label_space is space
    assert space.classes[2].color == STREET.classes[STREET.index("vehicle")].color
    result = segmenter.segment(cloud(), probabilities=True)
    assert result.label_space is space and result.labels.max() < 3
    assert result.probabilities is not None and result.probabilities.shape == (2000, 3)
    assert np.allclose(result.probabilities.sum(1), 1, atol=1e-5)
    assert (result.probabilities.argmax(1) == result.labels).all()
    assert segmenter.set_prompts(None) == STREET and segmenter.prompts == ()
    assert (segmenter.segment(cloud()).labels == trained.labels).all()


def test_native_and_plain_networks_agree(segmenter: Segmenter) -> None:
    segmenter.set_prompts(["tree", "road", "person"])
    sweep = cloud()
    sparse = sweep_input(segmenter.student, sweep.xyz, sweep.intensity, segmenter.device).sparse
    assert sparse is not None
    with torch.inference_mode():
        found = torch.cat(list(segmenter._classes.logits(sparse))).softmax(1)
        assert segmenter.student.text_head is not None and segmenter.text is not None
        features = segmenter.student.network.features(sparse)
        unit = torch.nn.functional.normalize(segmenter.student.text_head(features), dim=1)
        rows, _ = PromptSet.parse(["tree", "road", "person"]).encode(segmenter.text)
        vectors = torch.from_numpy(rows)
        expected = cosine_logits(unit, vectors, 0.05).softmax(1)
    assert torch.allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    "bad",
    [
        [],
        ["unheard of"],
        ["tree", "деревья"],
        ["🚗"],
        ["tree", ""],
        ["tree"] * 2,
        [f"word{i}" for i in range(MAX_WORDS + 1)],
    ],
)
def test_bad_prompts_leave_the_old_in_force(segmenter: Segmenter, bad: list[str]) -> None:
    segmenter.set_prompts(["tree", "word2"])
    before = segmenter.segment(cloud())
    with pytest.raises(InputError):
        segmenter.set_prompts(bad)
    assert segmenter.prompts == ("tree", "word2")
    assert segmenter.label_space.names == ("tree", "word2")
    assert (segmenter.segment(cloud()).labels == before.labels).all()


def test_300_words_and_non_ascii_ones(segmenter: Segmenter) -> None:
    space = segmenter.set_prompts([*WORDS[:299], "Машина"])
    result = segmenter.segment(cloud())
    assert len(space) == 300 and result.labels.min() >= 0
    assert len(np.unique(space.palette, axis=0)) > 200


def test_a_checkpoint_without_words_says_how_to_make_one() -> None:
    plain = Segmenter.load("bundled", device="cpu")
    with pytest.raises(InputError, match="trained without a text head"):
        plain.set_prompts(["car"])
    assert len(plain.label_space) == 8 and plain.prompts == ()


def test_sweeps_see_one_set_of_prompts(segmenter: Segmenter) -> None:
    """While another thread changes them, labels, probabilities and names belong together."""
    sets = [["tree", "road"], [f"word{i}" for i in range(30)], None]
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            for prompts in sets:
                segmenter.set_prompts(prompts)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(30):
            result = segmenter.segment(cloud(200), probabilities=True)
            assert result.label_space is not None and result.probabilities is not None
            assert result.probabilities.shape[1] == len(result.label_space)
            assert result.labels.max() < len(result.label_space)
    finally:
        done.set()
        thread.join()
        segmenter.set_prompts(None)


def test_the_vocabulary_is_the_checkpoints(segmenter: Segmenter, tmp_path: Path) -> None:
    assert segmenter.text is not None and len(segmenter.text.table) == 410
    assert segmenter.text.table.find("WORD_7") is None and segmenter.text.table.find("Word7")
