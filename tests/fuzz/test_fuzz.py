# SPDX-License-Identifier: Apache-2.0
"""The short version of the fuzz suite: the same cases in every run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcseg_core.errors import InputError
from pcseg_core.native import library

from . import runner
from .harness import Target, judge
from .targets import TARGETS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_cases_are_read_or_refused(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    if name.startswith("kernel") and isinstance(loaded := library.load(), str):
        pytest.skip(loaded)

    @settings(
        max_examples=target.examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(target.cases())
    def check(case: bytes) -> None:
        judge(target, case, tmp_path)

    check()


def _faulty(case: bytes, folder: Path) -> None:
    """Fails in another way for each first byte."""
    kind = case[:1]
    if kind == b"c":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == b"h":
        while True:
            pass
    if kind == b"m":
        bytearray(1 << 40)
    if kind == b"w":
        raise InputError("something is wrong")
    if kind == b"x":
        raise InputError("input: " + "x" * 10)


def test_each_kind_of_defect_is_found_and_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CASE_S", 0.5)
    monkeypatch.setattr(runner, "SLICE_S", 1.0)
    cases = [b"c1", b"h22", b"m", b"w", b"x", b"y"]
    for case in cases:
        target = Target("faulty", lambda case=case: st.just(case), _faulty, ("input",))
        run = runner.Run([target], tmp_path / case.decode(), jobs=1)
        run.go(0.02)
        (row,) = json.loads((run.out / "report.json").read_text())["targets"]
        assert row["tried"] >= 1
        found = sorted((run.out / "findings").glob("*.case"))
        assert [file.read_bytes() for file in found] == ([case] if case[:1] in b"chmw" else [])
        assert (row["accepted"] > 0) == (case == b"y") and (row["refused"] > 0) == (case == b"x")
        if case[:1] in b"mw":
            monkeypatch.setitem(runner.TARGETS, "faulty", target)
            with pytest.raises((MemoryError, OverflowError, AssertionError)):
                runner.replay(found[0])
