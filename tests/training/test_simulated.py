# SPDX-License-Identifier: Apache-2.0
"""Simulated sweeps with exact labels, beside recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pcseg_core.data import open_recording
from pcseg_core.labels import LabelSpace, truth_of
from pcseg_core.learning.simulated import SimulatedConfig, labeled_sweeps, render

STREET = LabelSpace.load("street")


def test_towns_are_rendered_once_with_their_exact_labels(tmp_path: Path) -> None:
    source = "simulated:seed=3,sweeps=2,stride=25,beams=8,columns=128,cameras=0"
    found = list(labeled_sweeps([source], STREET, 30.0, tmp_path))
    assert len(found) == 2 and {sweep.scene for sweep in found} == {source}
    sample = open_recording(source)[1]
    near = np.linalg.norm(sample.cloud.xyz, axis=1) < 30
    np.testing.assert_array_equal(found[1].xyz, sample.cloud.xyz[near].astype(np.float32))
    np.testing.assert_array_equal(found[1].label, truth_of(sample, STREET)[near])
    assert (found[1].confidence == 1).all()
    file = render(source, STREET, 30.0, tmp_path)
    written = file.stat().st_mtime_ns
    assert render(source, STREET, 30.0, tmp_path).stat().st_mtime_ns == written
    assert render(source, STREET, 20.0, tmp_path) != file


def test_every_town_has_a_seed_of_its_own() -> None:
    assert SimulatedConfig().sources == []
    sources = SimulatedConfig(towns=3, sweeps=2, first_seed=7).sources
    seeds = [source.partition("seed=")[2].partition(",")[0] for source in sources]
    assert seeds == ["7", "8", "9"] and all("town=varied" in source for source in sources)
    with pytest.raises(ValueError):
        SimulatedConfig(towns=-1)
