# SPDX-License-Identifier: Apache-2.0
"""Reading published files: what is refused, and what the message says."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from published import PLANES, narrow, openscene, slidr, spvnas, superflow
from torch import Tensor

from pcseg_core.errors import InputError
from pcseg_core.importers.published import read_published
from pcseg_core.importers.run import import_weights

SMALL = narrow(PLANES)
State = dict[str, Tensor]


class Code:
    """A pickled object that runs a command when it is read carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def written(tmp_path: Path, content: object) -> Path:
    torch.save(content, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def refused(file: Path, family: str, tmp_path: Path, **options: str) -> str:
    with pytest.raises(InputError) as error:
        import_weights(file, family, tmp_path / "run", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
    return str(error.value)


def test_code_is_not_run(tmp_path: Path) -> None:
    file = written(tmp_path, {"state_dict": {"a": torch.zeros(1)}, "hook": Code(tmp_path / "ran")})
    message = refused(file, "slidr", tmp_path)
    assert "can run code" in message and "weights_only=False" in message and "system" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_numbers_of_numpy_are_plain_values(module: bytes, tmp_path: Path) -> None:
    """Older files name the module of numpy 1."""
    content = {"state_dict": {"a": torch.ones(2)}, "best": np.float64(0.5), "epoch": 3}
    file = tmp_path / "old.pth.tar"
    torch.save(content, file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes().replace(b"numpy._core.multiarray", module))
    found = read_published(file, "here")
    assert list(found.tensors) == ["state_dict.a"] and found.values == {"best": 0.5, "epoch": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable"),
        (b"\x80\x02nonsense", "not"),
        (b"\x80\x02X\xff\xff\xff\x7f", "not readable"),  # a text of two gigabytes
        (b"\x80\x02Q", "not readable"),
        (None, "no such file"),
    ],
)
def test_damaged_files(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    if content is not None:
        file.write_bytes(content)
    assert message in refused(file, "slidr", tmp_path)
    assert "no tensors" in refused(written(tmp_path, {"epoch": 3}), "slidr", tmp_path)


def without(state: State, key: str) -> State:
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "bn2.bn.bias"), "1 missing: model.bn2.bn.bias"),
        (lambda s: {**s, "block9.0.conv1.kernel": torch.zeros(1)}, "1 left over: model.block9.0"),
        (
            lambda s: {**s, "bntr5.bn.weight": torch.zeros(7)},
            "1 of another shape: 'model.bntr5.bn.weight' is (7,), expected (16,)",
        ),
        (lambda s: without(s, "final.kernel"), "the key 'model.final.kernel' is missing"),
        (lambda s: without(s, "block3.0.conv1.kernel"), "stages have (1, 1, 0, 1, 1, 1, 1, 1)"),
        (lambda s: {**s, "bn1.bn.running_var": -torch.ones(4)}, "running_var' spans -1"),
        (lambda s: {**s, "final.kernel": torch.ones(())}, "'model.final.kernel' is a single num"),
        (
            lambda s: {**s, "block3.0.conv2.kernel": torch.zeros(27, 16, 27648)},
            "planes.2 27648: Input should be less than or equal to 4096",
        ),
    ],
)
def test_keys_that_do_not_fit(
    change: Callable[[State], State], message: str, tmp_path: Path
) -> None:
    state = change(slidr(planes=SMALL).state)
    assert message in refused(written(tmp_path, {"model": state}), "slidr", tmp_path)


def test_other_families(tmp_path: Path) -> None:
    file = written(tmp_path, {"model": spvnas(planes=SMALL).state})
    message = refused(file, "superflow", tmp_path)
    assert "no key conv0.0.conv.kernel" in message and "--as (spvnas)" in message
    file = written(tmp_path, openscene(planes=SMALL).state)
    assert "'conv0p1s1.kernel' is (125, 3, 4), expected" in refused(file, "slidr", tmp_path)
    file = written(tmp_path, slidr(outputs=64, planes=SMALL).state)
    assert "gives 64 channels, expected one of (768, 512)" in refused(file, "openscene", tmp_path)
    assert "expected one of" in refused(file, "pointnet", tmp_path)


def test_several_networks_need_a_prefix(tmp_path: Path) -> None:
    state = slidr(planes=SMALL).state
    file = written(tmp_path, {"student": state, "teacher": state})
    message = refused(file, "slidr", tmp_path)
    assert "'student', 'teacher'" in message and "--prefix" in message
    assert "under 'other'" in refused(file, "slidr", tmp_path, prefix="other")
    figures = import_weights(file, "slidr", tmp_path / "run", prefix="teacher")
    assert any("tensors of other parts (student)" in told for told in figures["left_out"])


def test_classes_must_fit_the_head(tmp_path: Path) -> None:
    file = written(tmp_path, spvnas(classes=7, planes=SMALL).state)
    assert "has 8 classes, the head" in refused(file, "spvnas", tmp_path, classes="street")
    assert "no label space 'mars'" in refused(file, "spvnas", tmp_path, classes="mars")
    file = written(tmp_path, superflow(planes=SMALL).state)
    message = refused(file, "superflow", tmp_path, classes="nuscenes16")
    assert "without classes" in message and "pcseg finetune" in message
    assert "--license" in refused(file, "superflow", tmp_path, license=" ")
