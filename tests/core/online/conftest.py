# SPDX-License-Identifier: Apache-2.0
"""The pipeline of a small run, for tests that label recordings."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcseg_core.online.pipeline import Pipeline
from pcseg_core.online.segmenter import Segmenter


@pytest.fixture(scope="module")
def pipeline(tiny_run: Path) -> Pipeline:
    return Pipeline(Segmenter.load(tiny_run, device="cpu"))
