# SPDX-License-Identifier: Apache-2.0
"""`pcseg quantize`: scales in a copy of the checkpoint, and their use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pcseg_core.checkpoint import IntegerScales, load_checkpoint
from pcseg_core.cli import app
from pcseg_core.errors import InputError
from pcseg_core.native import library, precision
from pcseg_core.online.segmenter import Segmenter


@pytest.fixture(autouse=True)
def native() -> None:
    loaded = library.load()
    if isinstance(loaded, str):
        pytest.skip(loaded)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def calibrated(tiny_run: Path, sequence: Callable[..., Path], tmp_path: Path) -> Path:
    """A checkpoint that was calibrated on three labeled sweeps and compared on three."""
    out = tmp_path / "int8.safetensors"
    text = run("quantize", tiny_run, f"semantic-kitti:{sequence(scans=6)}", "--out", out)
    assert "calibrated on 3 sweeps; on 3 others" in text and "mIoU" in text
    return out


def test_the_copy_runs_in_integers(calibrated: Path, tiny_run: Path, tmp_path: Path) -> None:
    scales = load_checkpoint(calibrated)[1].int8
    assert scales is not None and scales.sweeps == 3 and scales.compared == 3
    assert 0.5 < scales.agreement <= 1
    assert scales.miou_fp32 is not None and scales.miou_int8 is not None
    segmenter = Segmenter.load(calibrated, "cpu", "int8", "native")
    assert segmenter.engine.endswith(" int8")
    assert Segmenter.load(calibrated, "cpu", "fp32").engine.endswith(" fp32")
    assert list(tmp_path.glob("*.safetensors")) == [calibrated]
    exact, copy = (load_checkpoint(path)[0] for path in (tiny_run, calibrated))
    assert all(bool((exact[name] == copy[name]).all()) for name in exact)


def test_evaluate_measures_it(
    calibrated: Path, sequence: Callable[..., Path], tmp_path: Path
) -> None:
    """With --precision, on labeled sweeps and by replay; the plain checkpoint is refused."""
    source = f"semantic-kitti:{sequence('other', scans=2)}"
    run("evaluate", calibrated, "--source", source, "--no-baselines", "--precision", "int8")
    run("evaluate", source, "--checkpoint", calibrated, "--precision", "int8")


def test_a_checkpoint_without_scales_is_refused(tiny_run: Path) -> None:
    with pytest.raises(InputError, match="not calibrated; run `pcseg quantize"):
        Segmenter.load(tiny_run, "cpu", "int8", "native")


def test_a_single_sweep_is_not_enough(
    tiny_run: Path, sequence: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "int8.safetensors"
    source = f"semantic-kitti:{sequence(scans=1)}"
    result = CliRunner().invoke(app, ["quantize", str(tiny_run), source, "--out", str(out)])
    assert result.exit_code == 2 and "expected at least two" in result.output
    assert not out.exists()


def test_sweeps_that_cannot_be_read_or_are_empty(
    tiny_run: Path, sequence: Callable[..., Path], tmp_path: Path
) -> None:
    folder, out = sequence(scans=4), tmp_path / "int8.safetensors"
    (folder / "velodyne" / "000000.bin").write_bytes(b"cut")
    text = run("quantize", tiny_run, f"semantic-kitti:{folder}", "--out", out)
    assert "calibrated on 1 sweeps; on 2 others" in text and "skipped:" in text
    for index in (0, 1):
        (folder / "velodyne" / f"{index:06d}.bin").write_bytes(bytes(16))
        (folder / "labels" / f"{index:06d}.label").write_bytes(bytes(4))
    source = f"semantic-kitti:{folder}"
    result = CliRunner().invoke(app, ["quantize", str(tiny_run), source, "--out", str(out)])
    assert result.exit_code == 2 and "no points to calibrate on" in result.output


@pytest.mark.parametrize(
    ("figures", "int8", "chosen"),
    [
        ({"agreement": 0.995}, 1.0, "int8"),
        ({"agreement": 0.985}, 1.0, "bf16"),
        ({"agreement": 0.9, "miou_fp32": 0.5, "miou_int8": 0.496}, 1.0, "int8"),
        ({"agreement": 0.999, "miou_fp32": 0.5, "miou_int8": 0.494}, 1.0, "bf16"),
        ({"agreement": 1.0}, 1.9, "bf16"),
    ],
)
def test_auto_takes_it_if_it_is_exact_and_fast(
    figures: dict[str, float],
    int8: float,
    chosen: str,
    calibrated: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = {"fp32": 4.0, "bf16": 2.0, "int8": int8}
    monkeypatch.setattr(precision, "layer_ms", lambda isa: times)
    found = Segmenter.load(calibrated, "cpu", "auto", "native")
    scales = found.meta.int8
    assert scales is not None
    changed = IntegerScales.model_validate({"tops": scales.tops} | figures)
    meta = found.meta.model_copy(update={"int8": changed})
    again = Segmenter(found.student, found.label_space, meta, "cpu", "auto", backend="native")
    assert again.engine.endswith(f" {chosen}")
