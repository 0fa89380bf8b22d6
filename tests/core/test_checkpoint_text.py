# SPDX-License-Identifier: Apache-2.0
"""Words in checkpoints: stored beside the student, absent in old ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pcseg_core.checkpoint import (
    CheckpointMeta,
    CheckpointText,
    load_checkpoint,
    load_text,
    save_checkpoint,
)
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.models.student import Points, Student, StudentConfig, cosine_logits
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.text_table import TextTable
from pcseg_core.vision.text_space import GeneratedText, table_of

STREET = LabelSpace.load("street")


def write(folder: Path) -> tuple[Path, Student, CheckpointText]:
    torch.manual_seed(0)
    config = StudentConfig(depth=14, width=0.25, voxel_size_m=0.5, text_channels=24)
    student = Student(config, len(STREET))
    table = table_of(GeneratedText(24), [*STREET.names, "tree"])
    classes = {n: (n, "tree") if n == "vegetation" else (n,) for n in STREET.names}
    text = CheckpointText(table, classes, 0.05)
    meta = CheckpointMeta(student=config.model_dump(mode="json"), label_space=STREET.to_dict())
    path = folder / "checkpoint.safetensors"
    save_checkpoint(path, student.state_dict(), meta, text)
    return path, student, text


def test_words_come_back_and_stay_out_of_the_students_tensors(tmp_path: Path) -> None:
    path, student, text = write(tmp_path)
    state, meta = load_checkpoint(path)
    assert set(state) == set(student.state_dict())
    assert meta.student["text_channels"] == 24
    read = load_text(path)
    assert read is not None and read.classes == text.classes and read.temperature == 0.05
    assert read.table.words == text.table.words
    assert read.table.generated == text.table.generated
    assert np.abs(read.table.vectors - text.table.vectors).max() < 1e-3


def test_checkpoints_without_words(tmp_path: Path) -> None:
    assert load_text(Path("bundled")) is None
    config = StudentConfig(depth=14, width=0.25)
    described = config.model_dump(mode="json")
    del described["text_channels"]  # as written before there was a text head
    meta = CheckpointMeta(student=described, label_space=STREET.to_dict())
    student = Student(config, len(STREET))
    save_checkpoint(tmp_path / "old.safetensors", student.state_dict(), meta)
    state, meta = load_checkpoint(tmp_path / "old.safetensors")
    assert StudentConfig.model_validate(meta.student) == config
    student.load_state_dict(state)


def test_words_without_vectors_are_refused(tmp_path: Path) -> None:
    path, _, _ = write(tmp_path)
    with safe_open(str(path), framework="pt") as handle:
        header = handle.metadata()
        state = {k: handle.get_tensor(k) for k in handle.keys()}  # noqa: SIM118
    short = {**state, "text_table.vectors": state["text_table.vectors"][:-1].clone()}
    save_file(short, str(tmp_path / "short.safetensors"), metadata=header)
    with pytest.raises(InputError, match="9 words but vectors of shape"):
        load_text(tmp_path / "short.safetensors")
    del state["text_table.vectors"]
    save_file(state, str(tmp_path / "none.safetensors"), metadata=header)
    with pytest.raises(InputError, match="has no tensor"):
        load_text(tmp_path / "none.safetensors")


def test_words_that_are_numbers_have_no_vector(tmp_path: Path) -> None:
    path, student, text = write(tmp_path)
    state, meta = load_checkpoint(path)
    save_checkpoint(path, student.state_dict(), meta, text)
    with safe_open(str(path), framework="pt") as handle:
        header = json.loads(handle.metadata()["pcseg"])
        state = {k: handle.get_tensor(k) for k in handle.keys()}  # noqa: SIM118
    header["text"]["classes"]["road"] = [5]
    save_file(state, str(path), metadata={"pcseg": json.dumps(header)})
    read = load_text(path)
    assert read is not None and read.classes["road"] == ("5",)
    with pytest.raises(InputError, match="'5'"):
        Segmenter.load(path).set_prompts(["vegetation", "*"])


def test_text_head_gives_unit_vectors_and_cosine_logits() -> None:
    torch.manual_seed(0)
    student = Student(StudentConfig(depth=14, width=0.25, text_channels=24), 3).eval()
    xyz = torch.rand(200, 3) * 5
    output = student(Points(xyz, torch.rand(200), torch.zeros(200, dtype=torch.int64)))
    assert output.text is not None and output.text.shape == (len(output.voxels), 24)
    assert torch.allclose(output.text.norm(dim=1), torch.ones(len(output.voxels)), atol=1e-5)
    vectors = torch.nn.functional.normalize(torch.randn(5, 24), dim=1)
    logits = cosine_logits(output.text, vectors, 0.1)
    assert logits.shape == (len(output.voxels), 5) and logits.abs().max() <= 10.001
    assert torch.allclose(cosine_logits(vectors, vectors, 0.1).diagonal(), torch.full((5,), 10.0))
    assert Student(StudentConfig(depth=14, width=0.25), 3).text_head is None


def test_table_type_is_the_spaces() -> None:
    assert isinstance(table_of(GeneratedText(4), ["a"]), TextTable)
