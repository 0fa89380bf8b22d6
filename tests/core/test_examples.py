# SPDX-License-Identifier: Apache-2.0
"""The examples run, are short, and use the public API alone."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pcseg_core as pcseg

FOLDER = Path(__file__).resolve().parents[2] / "examples"
# Patterns in their output. In 03 the teacher changes the number of points.
EXPECTED = {
    "01_segment_a_cloud.py": r"vehicle +\d+ points, mean confidence 0\.\d\d",
    "02_read_a_recording.py": r"camera_0: image \(384, 320, 3\), [1-9]\d* points",
    "03_custom_teacher.py": r"LiDAR alone: (\d+) points\n.*with camera: (?!\1 )\d+ points",
    "04_evaluate.py": r"mIoU [3-9]\d\.\d%",
    "05_live_prompts.py": r"vehicle +[1-9]\d*% of the points\neverything else +[1-9]\d*%",
}


def test_every_example_is_tested() -> None:
    assert sorted(EXPECTED) == sorted(path.name for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", EXPECTED)
def test_example_is_short_and_uses_public_names_only(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    nodes = list(ast.walk(ast.parse(text)))
    imported = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    imported += [str(n.module) for n in nodes if isinstance(n, ast.ImportFrom)]
    assert [m for m in imported if m.startswith(("pcseg", "tests"))] == ["pcseg_core"]
    used = {
        n.attr
        for n in nodes
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "pcseg"
    }
    assert used and used <= set(pcseg.__all__)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_example_runs(name: str, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "2",
        "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]),
    }
    result = subprocess.run(
        [sys.executable, str(FOLDER / name)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(EXPECTED[name], result.stdout), result.stdout
    assert not list(tmp_path.iterdir())  # nothing is left behind
