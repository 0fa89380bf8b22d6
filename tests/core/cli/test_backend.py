# SPDX-License-Identifier: Apache-2.0
"""The commands run the sparse convolutions on the backend that the user asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor
from typer.testing import CliRunner

from pcseg_core.cli import app
from pcseg_core.native import library, tensors
from pcseg_core.sparse.backends import torch_backend

Sequence = Callable[..., Path]


@pytest.fixture
def backends_used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the backends that ran a convolution so far."""
    if isinstance(library.load(), str):
        pytest.skip("the native library was not built")
    used: set[str] = set()

    def noted(function: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
        def run(*arguments: object, **named: object) -> Tensor:
            used.add(name)
            return function(*arguments, **named)

        return run

    for module, name in ((torch_backend, "torch"), (tensors, "native")):
        monkeypatch.setattr(module, "conv", noted(module.conv, name))
    return used


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("command", ["segment", "evaluate", "evaluate replay", "prompt"])
def test_the_chosen_backend_runs(
    command: str,
    backend: str,
    tiny_run: Path,
    sequence: Sequence,
    tmp_path: Path,
    backends_used: set[str],
) -> None:
    source, out = f"semantic-kitti:{sequence()}", str(tmp_path / "out")
    run = str(tiny_run)
    arguments = {
        "segment": ["segment", source, "--checkpoint", run, "--out", out],
        "evaluate": ["evaluate", run, "--source", source, "--no-baselines"],
        "evaluate replay": ["evaluate", source, "--checkpoint", run],
        "prompt": ["prompt", run, source],
    }[command]
    result = CliRunner().invoke(app, arguments, env={"PCSEG_BACKEND": backend})
    assert result.exit_code == 0, result.output
    assert backends_used == {backend}
    backends_used.clear()
    other = "native" if backend == "torch" else "torch"
    arguments = [*arguments, "--backend", other, *(["--force"] if command == "segment" else [])]
    result = CliRunner().invoke(app, arguments, env={"PCSEG_BACKEND": backend})
    assert result.exit_code == 0, result.output
    assert backends_used == {other}
