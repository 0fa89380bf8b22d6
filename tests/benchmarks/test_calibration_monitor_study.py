# SPDX-License-Identifier: Apache-2.0
"""The study of the calibration monitor counts warnings and times turns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import calibration_monitor as study
from pcseg_core.calibration.monitor import CalibrationMonitor
from pcseg_core.data.sample import CameraFrame, Sample
from tests.panels import CAMERA, FORWARD, Place

PERIOD_NS = 2 * 10**9


def sample(number: int) -> Sample:
    place, stamp = Place(number), number * PERIOD_NS
    frame = CameraFrame("front", stamp, CAMERA, FORWARD, place.image())
    return Sample(place.cloud(stamp), [frame])


def test_turns_are_timed_and_a_drive_without_one_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "_monitor", lambda: CalibrationMonitor(3, 0.8))
    monkeypatch.setattr(study, "MOMENTS", (0.7,))
    monkeypatch.setattr(study, "TURNS", (np.array([1.0, 0, 0]), np.zeros(3)))
    found = study.measure([sample(number) for number in range(15)], 2.0)
    told, nothing = found["delays_s"]
    assert told in (6.0, 8.0, 10.0) and nothing is None
    assert found["warnings"] == 0 and found["minutes"] == pytest.approx(28 / 60)
    assert found["verdicts"] == {"cannot tell": 2, "learning": 7, "as learned": 6}
    assert 0 < found["turned_deg"]["largest"] < 0.8 == found["limit_deg"]


def test_a_drive_too_short_to_learn_tells_nothing() -> None:
    found = study.measure([sample(number) for number in range(2)], 1.0)
    assert found["turned_deg"] == {"median": None, "largest": None} and found["scores"] is None


def test_drives_that_were_measured_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "monitor.json"
    rows.write_text('[{"source": "first"}]')
    opened = []

    def open_recording(source: str) -> list[Sample]:
        opened.append(source)
        return [sample(number) for number in range(2)]

    monkeypatch.setattr(study, "open_recording", open_recording)
    monkeypatch.setattr(study, "readable", lambda recording, indices: enumerate(recording))
    monkeypatch.setattr("sys.argv", ["study", "first", "second", "--json", str(rows)])
    study.main()
    assert opened == ["second"]
    assert [row["source"] for row in json.loads(rows.read_text())] == ["first", "second"]
