# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that diverged, that describe something huge, or whose header is arbitrary."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from pcseg_core.checkpoint import (
    FILE_NAME,
    MAX_CLASSES,
    CheckpointMeta,
    load_checkpoint,
    save_checkpoint,
)
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.online.segmenter import Segmenter

CONFIG = StudentConfig(depth=14, width=0.25, voxel_size_m=0.5)


@pytest.fixture(scope="module")
def good() -> tuple[dict[str, Tensor], CheckpointMeta]:
    """The tensors and metadata of a small random student."""
    torch.manual_seed(0)
    space = LabelSpace.load("street")
    meta = CheckpointMeta(student=CONFIG.model_dump(mode="json"), label_space=space.to_dict())
    return Student(CONFIG, len(space)).state_dict(), meta


def write(path: Path, state: dict[str, Tensor], header: object) -> Path:
    """A checkpoint with whatever it is given, unchecked."""
    file = path / FILE_NAME
    text = header if isinstance(header, str) else json.dumps(header)
    save_file({k: v.contiguous() for k, v in state.items()}, file, metadata={"pcseg": text})
    return file


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        ("network.stem.0.weight", float("nan")),
        ("network.classifier.bias", float("inf")),
        ("network.up.1.conv.0.weight", -1e38),
        ("network.stem.1.running_var", -1e-3),
        ("network.stem.1.running_mean", float("-inf")),
    ],
)
def test_a_network_that_diverged_is_neither_written_nor_read(
    good: tuple[dict[str, Tensor], CheckpointMeta], tmp_path: Path, tensor: str, value: float
) -> None:
    state, meta = good
    state = {name: t.clone() for name, t in state.items()}
    state[tensor].view(-1)[3] = value
    with pytest.raises(InputError, match=rf"{tensor}.*diverged"):
        save_checkpoint(tmp_path / FILE_NAME, state, meta)
    assert not list(tmp_path.iterdir())
    file = write(tmp_path, state, meta.model_dump())
    with pytest.raises(InputError, match=rf"{tensor}.*lower learning rate"):
        load_checkpoint(file)
    with pytest.raises(InputError, match="diverged"):
        Segmenter.load(file, device="cpu")


def test_bundled_checkpoints_pass() -> None:
    assert load_checkpoint(Path("bundled"))[1].student


def test_the_number_of_classes_is_bounded(
    good: tuple[dict[str, Tensor], CheckpointMeta], tmp_path: Path
) -> None:
    state, meta = good
    classes = [{"name": f"c{i}", "color": [0, 0, 0]} for i in range(20_000)]
    header = meta.model_dump() | {"label_space": {"name": "many", "classes": classes}}
    with pytest.raises(InputError, match=f"20000 classes, expected at most {MAX_CLASSES}"):
        Segmenter.load(write(tmp_path, state, header), device="cpu")


def test_a_huge_network_is_not_built_from_a_small_file(
    good: tuple[dict[str, Tensor], CheckpointMeta], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, meta = good
    huge = {"depth": 34, "width": 4.0, "feature_channels": 4096, "text_channels": 4096}
    header = meta.model_dump() | {"student": huge}
    devices: list[str] = []

    class Recorded(Student):
        def __init__(self, config: StudentConfig, classes: int) -> None:
            devices.append(torch.get_default_device().type)
            super().__init__(config, classes)

    monkeypatch.setattr("pcseg_core.models.student.Student", Recorded)
    with pytest.raises(InputError, match=r"does not fit its own description.* more"):
        Segmenter.load(write(tmp_path, state, header), device="cpu")
    assert devices == ["meta"]  # nothing is allocated


def test_loaded_weights_are_those_of_the_file(
    good: tuple[dict[str, Tensor], CheckpointMeta], tmp_path: Path
) -> None:
    state, meta = good
    save_checkpoint(tmp_path / FILE_NAME, state, meta)
    loaded = Segmenter.load(tmp_path, device="cpu").student.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
PLACES = (
    ("student",),
    ("student", "depth"),
    ("student", "width"),
    ("student", "inputs"),
    ("label_space",),
    ("label_space", "classes"),
    ("label_space", "raw_ids"),
    ("label_space", "groupings"),
    ("text",),
    ("inputs",),
    ("format_version",),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(PLACES), JSON)
def test_an_arbitrary_header_is_a_clear_error(
    good: tuple[dict[str, Tensor], CheckpointMeta],
    tmp_path: Path,
    place: tuple[str, ...],
    value: Any,
) -> None:
    state, meta = good
    header = json.loads(meta.model_dump_json())
    inside = header if len(place) == 1 else header[place[0]]
    inside[place[-1]] = value
    state = state | {"text_table.vectors": torch.zeros(2, 4)}
    with contextlib.suppress(InputError):
        Segmenter.load(write(tmp_path, state, header), device="cpu")


@pytest.mark.parametrize("header", ["[" * 100_000, "{" * 10, "null", "1e999", '{"student": []}'])
def test_a_header_that_is_no_header(
    good: tuple[dict[str, Tensor], CheckpointMeta], tmp_path: Path, header: str
) -> None:
    with pytest.raises(InputError, match="header not understood"):
        load_checkpoint(write(tmp_path, good[0], header))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_changed_bytes_are_a_clear_error(
    good: tuple[dict[str, Tensor], CheckpointMeta], tmp_path: Path, seed: int, changes: int
) -> None:
    state, meta = good
    raw = bytearray(write(tmp_path, state, meta.model_dump()).read_bytes())
    rng = np.random.default_rng(seed)
    for at in rng.integers(0, min(len(raw), 6000), changes):
        raw[at] = rng.integers(256)
    (tmp_path / "changed.safetensors").write_bytes(raw[: int(rng.integers(1, len(raw) + 1))])
    with contextlib.suppress(InputError):
        Segmenter.load(tmp_path / "changed.safetensors", device="cpu")
