# SPDX-License-Identifier: Apache-2.0
"""The table of the stages around the network."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.pipeline import machine, stage_rows, stage_table
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.native import library


def test_stages_are_compared() -> None:
    if isinstance(library.load(), str):
        pytest.skip("the native library was not built")
    points = np.random.default_rng(0).uniform(-9, 9, (500, 4)).astype(np.float32)
    rows = stage_rows(Student(StudentConfig(depth=14, width=0.25), 8), points, rounds=1)
    lines = stage_table(rows).splitlines()
    assert [line.split(" | ")[0][2:] for line in lines[2:]] == [row["stage"] for row in rows]
    assert {len(line.split("|")) for line in lines} == {8}
    assert all(set(row["cpu_ms"]) == {"plain", "native"} and row["ratio"] > 0 for row in rows)
    assert library.isa_names()[library.best_isa()] in machine()
