# SPDX-License-Identifier: Apache-2.0
"""The script that stores in a checkpoint what its users must know."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from pcseg_core.bundled import checkpoint_file
from pcseg_core.checkpoint import FILE_NAME, load_checkpoint

SCRIPT = Path(__file__).parents[2] / "training" / "describe_inputs.py"
SOURCE = "simulated:seed=3,sweeps=2,beams=16,columns=200,cameras=0"


def test_the_weights_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / FILE_NAME
    file.write_bytes(checkpoint_file(Path("bundled")).read_bytes())
    before, old = load_checkpoint(file)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(file), SOURCE])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    after, new = load_checkpoint(file)
    assert new.inputs is not None and new.inputs.rings == (16, 16) and new.inputs != old.inputs
    assert new.model_copy(update={"inputs": old.inputs}) == old
    assert all(torch.equal(before[name], after[name]) for name in before)
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"miou": 0.41239, "accuracy": 0.5, "scans": 7, "source": "x"}))
    arguments = [str(SCRIPT), str(file), "--measured", "Street 7", str(report)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    after, newest = load_checkpoint(file)
    assert "it reaches 41 % mIoU and 50 % accuracy on 7 real sweeps of Street 7" in newest.caution
    assert newest.inputs == new.inputs
    assert all(torch.equal(before[name], after[name]) for name in before)
