# SPDX-License-Identifier: Apache-2.0
"""The GPU benchmark on the CPU, with the torch backend alone."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks import cuda
from benchmarks.gpu import equality, machine, report
from pcseg_core.sparse.backends import BackendReport


def run(out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    arguments = ["cuda", "--out", str(out), "--quick", "--device", "cpu", *more]
    monkeypatch.setattr("sys.argv", arguments)
    return cuda.main()


@pytest.mark.parametrize("part", ["equality", "layers", "geometry", "ceilings"])
def test_parts_write_rows_and_tables(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, monkeypatch, "--only", part) == 0
    result = json.loads((tmp_path / "cuda.json").read_text())
    assert result["rows"] and all(part in entry["part"] for entry in result["parts"])
    assert all(row.get("ok", True) for row in result["rows"])
    assert not [entry for entry in result["parts"] if "failed" in entry]
    assert part in (tmp_path / "cuda.md").read_text().lower()


def test_pipeline_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, monkeypatch, "--only", "pipeline") == 0
    rows = json.loads((tmp_path / "cuda.json").read_text())["rows"]
    assert {row["network"] for row in rows} == {"bundled", "MinkUNet14"}
    for row in rows:
        assert row["points"] == 100 and row["p95_ms"] >= row["p50_ms"] > 0
        assert row["labels_changed"] == 0 and "network" in row["stages_ms"]


def test_a_failing_part_is_reported_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the GPU is gone")

    monkeypatch.setattr(equality, "kernel_maps", broken)
    assert run(tmp_path, monkeypatch, "--only", "equality of") == 1
    entries = json.loads((tmp_path / "cuda.json").read_text())["parts"]
    assert [("failed" in entry) for entry in entries] == [True, False, False]
    assert "the GPU is gone" in (tmp_path / "cuda.md").read_text()


def test_triton_needs_a_gpu_or_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    reported = [BackendReport(name, True, "") for name in ("torch", "triton", "torchsparse")]
    monkeypatch.setattr(machine, "backends_report", lambda: reported)  # of a machine with a GPU
    for interpreted in (False, True):
        monkeypatch.setattr(machine.triton_backend, "interpreted", lambda now=interpreted: now)
        usable = {
            device: [name for name in ("torch", "triton", "torchsparse") if here.usable(name)]
            for device in ("cpu", "cuda")
            for here in [machine.Machine(torch.device(device), True, 1, 1, 0.0, 1.0)]
        }
        assert usable["cuda"] == ["torch", "triton", "torchsparse"]
        assert usable["cpu"] == (["torch", "triton"] if interpreted else ["torch"])


def test_parts_without_time_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, monkeypatch, "--budget", "1") == 1
    result = json.loads((tmp_path / "cuda.json").read_text())
    assert all("no time left" in entry["failed"] for entry in result["parts"])


def test_a_wrong_result_is_shown() -> None:
    wrong = equality.error_of(torch.tensor([1.0, float("nan")]), torch.ones(2))
    assert wrong == float("inf")
    row = {"kind": "equality", "case": "x", "engine": "torch", "precision": "fp32"}
    text = report.markdown({"backends": {}}, [], [row | {"ok": False, "worst": wrong}])
    assert "WRONG: equality x torch fp32: inf" in text


def test_without_a_gpu_the_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr("sys.argv", ["cuda", "--out", "unused"])
    assert cuda.main() == 1
    assert capsys.readouterr().err.startswith("error: torch sees no CUDA device")


def test_quantiles() -> None:
    assert machine.quantiles([1.0, 2.0, 3.0]) == {"p50_ms": 2.0, "p95_ms": 3.0}
    cpu = machine.Machine(torch.device("cpu"), True, 1, 1, time.monotonic(), 1.0)
    assert machine.in_turns(cpu, {"a": lambda: None}, 3).keys() == {"a"}
