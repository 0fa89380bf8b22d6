# SPDX-License-Identifier: Apache-2.0
"""The benchmark of exported networks, end to end on a small made-up sweep."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import export
from pcseg_core.native import library


def test_rows_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    if isinstance(library.load(), str):
        pytest.skip(str(library.load()))
    pytest.importorskip("onnx", reason="pip install 'pcseg_ros[export]'")
    pytest.importorskip("onnxruntime", reason="pip install 'pcseg_ros[export]'")
    points = np.random.default_rng(0).normal(0, (8, 8, 1, 0.3), (800, 4)).astype(np.float32)
    np.savez(tmp_path / "sweep.npz", points=points)
    arguments = ["export", "--sweep", str(tmp_path / "sweep.npz"), "--voxel", "0.5"]
    arguments += ["--depth", "14", "--width", "0.25", "--threads", "1", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", [*arguments, "--json", str(tmp_path / "out.json")])
    assert export.main() == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    found = {f"{row['engine']} {row['precision']}": row for row in rows}
    assert {"native fp32", "torch fp32", "onnxruntime fp32", "onnxruntime int8"} <= set(found)
    assert found["onnxruntime fp32"]["error"] < 1e-5
    assert found["onnxruntime fp32"]["labels_changed"] == 0
    assert 1e-5 < found["onnxruntime int8"]["error"] < 0.2
    assert "| onnxruntime int8 | 1 |" in capsys.readouterr().out


def test_bad_arguments_end_with_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["export", "--sweep", str(tmp_path / "none.bin")])
    assert export.main() == 1
    assert capsys.readouterr().err.startswith("error: ")
