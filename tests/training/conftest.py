# SPDX-License-Identifier: Apache-2.0
"""Observations that several tests of pretraining share."""

from __future__ import annotations

from pathlib import Path

import pytest
from paired_views import Fakes, maker, quiet, recipe, sample

from pcseg_core.distill.observation import StoredObservation
from pcseg_core.distill.temporal import segment_files


@pytest.fixture(scope="module")
def stored(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[StoredObservation], dict[int, Path]]:
    """Observations and segments of four sweeps."""
    folder = tmp_path_factory.mktemp("views")
    found = maker(folder).observe({"fakes": Fakes([sample(k) for k in range(4)])}, quiet)
    return found, segment_files(found, recipe().temporal, folder / "segments", quiet)
