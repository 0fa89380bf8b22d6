# SPDX-License-Identifier: Apache-2.0
"""The short version of the fuzz suite: the same cases in every run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from .harness import judge
from .targets import TARGETS

_FACTOR = float(os.environ.get("PCSEG_FUZZ_FACTOR", "1"))


@pytest.mark.parametrize("name", TARGETS)
def test_cases_are_read_or_refused(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]

    @settings(
        max_examples=int(target.examples * _FACTOR),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(target.cases())
    def check(case: bytes) -> None:
        judge(target, case, tmp_path)

    check()
