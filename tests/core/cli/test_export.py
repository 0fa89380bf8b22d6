# SPDX-License-Identifier: Apache-2.0
"""`pcseg export` as a user runs it, on good input and on bad."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from small_runs import STREET, write_run, write_word_run
from typer.testing import CliRunner, Result

from pcseg_core.cli import app

SOURCE = "simulated:seed=5,sweeps=4,beams=16,columns=256,cameras=0"


def export(run: Path, out: Path, *arguments: object) -> Result:
    given = ["export", run, "--out", out, *arguments]
    return CliRunner().invoke(app, list(map(str, given)))


@pytest.fixture
def extra() -> None:
    pytest.importorskip("onnx", reason="pip install 'pcseg_ros[export]'")
    pytest.importorskip("onnxruntime", reason="pip install 'pcseg_ros[export]'")


@pytest.fixture(scope="module")
def word_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_word_run(tmp_path_factory.mktemp("run"))


def test_graph_and_description(tiny_run: Path, tmp_path: Path, extra: None) -> None:
    import onnx

    out = tmp_path / "deploy"
    result = export(tiny_run, out, "--format", "onnx")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in out.iterdir()) == ["student.json", "student.onnx"]
    about = json.loads((out / "student.json").read_text())
    model = onnx.load(out / "student.onnx")
    assert {p.key: json.loads(p.value) for p in model.metadata_props} == about
    assert about["classes"] == list(STREET.names) and about["voxel_size"] == [0.5] * 3
    assert about["features"] == ["z", "intensity"] and about["feature_divisors"] == [2.0, 0.3]
    described = [tensor["name"] for tensor in about["inputs"]]
    assert described == [value.name for value in model.graph.input]
    shapes = [
        [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in model.graph.input
    ]
    assert shapes == [tensor["shape"] for tensor in about["inputs"]]


def test_int8_is_calibrated_and_compared(tiny_run: Path, tmp_path: Path, extra: None) -> None:
    result = export(
        tiny_run, tmp_path / "x", "--precision", "int8", "--calibration", SOURCE, "--sweeps", 4
    )
    assert result.exit_code == 0, result.output
    assert "int8 changes" in result.output
    agreement = json.loads((tmp_path / "x" / "student.json").read_text())["agreement"]
    assert agreement["sweeps"] == 2 and 0 < agreement["labels_changed"] < 0.1


def test_classes_in_words(word_run: Path, tmp_path: Path, extra: None) -> None:
    result = export(word_run, tmp_path / "x", "--words", "car: jeep, minivan", "--words", "*")
    assert result.exit_code == 0, result.output
    about = json.loads((tmp_path / "x" / "student.json").read_text())
    assert about["classes"] == ["car", "everything else"]
    assert about["prompts"] == ["car: jeep, minivan", "*"]
    assert export(word_run, tmp_path / "y").exit_code == 0  # its own classes
    assert json.loads((tmp_path / "y" / "student.json").read_text())["prompts"] == []


def test_earlier_exports_are_replaced_only_with_force(
    tiny_run: Path, tmp_path: Path, extra: None
) -> None:
    out = tmp_path / "x"
    assert export(tiny_run, out).exit_code == 0
    again = export(tiny_run, out)
    assert again.exit_code == 2 and "--force" in again.output
    assert export(tiny_run, out, "--force").exit_code == 0
    (out / "notes.txt").write_text("mine")
    refused = export(tiny_run, out, "--force")
    assert refused.exit_code == 2 and "notes.txt" in refused.output
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "tflite"], "format 'tflite': expected onnx"),
        (["--precision", "int4"], "expected one of fp32, fp16, int8"),
        (["--precision", "int8"], "at least 2 sweeps"),
        (["--calibration", SOURCE], "'fp32' needs no sweeps"),
        (["--precision", "fp16", "--calibration", "nowhere"], "nowhere"),
        (["--words", "tree"], "no words: it was trained without a text head"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, tiny_run: Path, tmp_path: Path, extra: None
) -> None:
    result = export(tiny_run, tmp_path / "x", *arguments)
    assert result.exit_code == 2 and message in " ".join(result.output.split())
    assert not (tmp_path / "x").exists()


def test_runs_without_classes_and_foreign_folders(
    tiny_run: Path, word_run: Path, tmp_path: Path, extra: None
) -> None:
    pretrained = write_run(tmp_path / "pretrained")
    result = export(pretrained, tmp_path / "x")
    assert result.exit_code == 2 and "has no classes yet" in result.output
    unknown = export(word_run, tmp_path / "x", "--words", "zeppelin")
    assert unknown.exit_code == 2 and "zeppelin" in unknown.output
    result = export(tiny_run, pretrained, "--force")
    assert result.exit_code == 2 and "is not a folder of an export" in result.output
    assert not (tmp_path / "x").exists() and (pretrained / "checkpoint.safetensors").is_file()


def test_grids_that_the_native_library_does_not_know(tmp_path: Path, extra: None) -> None:
    settings = {"rounding": "round", "origin": "minimum", "stem_kernel": 5}
    result = export(write_run(tmp_path / "run", classes=STREET, **settings), tmp_path / "x")
    assert result.exit_code == 2 and not (tmp_path / "x").exists()
    for name, value in settings.items():
        assert f"student.{name}: {value}" in " ".join(result.output.split())


def test_a_missing_package_is_named(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = export(tiny_run, tmp_path / "x")
    assert result.exit_code == 2 and "pip install 'pcseg_ros[export]'" in result.output
