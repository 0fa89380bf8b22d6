# SPDX-License-Identifier: Apache-2.0
"""`pcseg calibrate` as a user runs it, on good input and on bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from pcseg_core.calibration.alignment import pose_error
from pcseg_core.cli import app
from pcseg_core.data import Recording
from pcseg_core.data.calibration import load_calibration
from pcseg_core.data.sample import Sample

Calibrate = Callable[..., Result]
ERROR = pose_error(np.array([1.0, -1.2, 0.8, 0.0, 0.0, 0.0, 0.0]))


@pytest.fixture
def calibrate(
    monkeypatch: pytest.MonkeyPatch, as_drive: Callable[[list[Sample]], Recording]
) -> Calibrate:
    """Runs the command on samples."""

    def run(samples: list[Sample], *arguments: object) -> Result:
        monkeypatch.setattr("pcseg_core.data.open_recording", lambda source: as_drive(samples))
        return CliRunner().invoke(app, ["calibrate", "drive", *map(str, arguments)])

    return run


def test_a_turned_camera_is_reported_and_corrected(
    samples: list[Sample], calibrate: Calibrate, tmp_path: Path
) -> None:
    turned = [
        replace(s, cameras=[frame.placed(ERROR @ frame.T_cam_lidar) for frame in s.cameras])
        for s in samples
    ]
    rig, picture, report = (tmp_path / name for name in ("rig.yaml", "edges.png", "report.json"))
    result = calibrate(turned, "--out", rig, "--picture", picture, "--json", report)
    assert result.exit_code == 0, result.output
    assert "corrected: camera_0" in result.output
    (camera,) = json.loads(report.read_text())["cameras"]
    assert camera["verdict"] == "off" and 1.4 < camera["rotation"]["size"] < 2.2
    with Image.open(picture) as drawn:
        assert drawn.size[0] == 2 * 960
    left = load_calibration(rig).cameras["camera_0"].extrinsic() @ np.linalg.inv(
        samples[0].cameras[0].T_cam_lidar
    )
    assert np.degrees(np.arccos((np.trace(left[:3, :3]) - 1) / 2)) < 0.4


def test_what_cannot_be_calibrated_is_explained(
    samples: list[Sample], calibrate: Calibrate, tmp_path: Path
) -> None:
    blind = calibrate([replace(sample, cameras=[]) for sample in samples])
    assert blind.exit_code == 2 and "no camera has an image near a sweep" in blind.output
    wrong = calibrate(samples, "--out", tmp_path / "rig.txt")
    assert wrong.exit_code == 2 and "expected .yaml, .yml" in wrong.output
    one = calibrate(samples[:1], "--out", tmp_path / "one.yaml")
    assert one.exit_code == 0 and "1 images with a sweep, expected 5" in one.output
    assert "as given: nothing to correct" in one.output and (tmp_path / "one.yaml").is_file()
    frames = [frame.placed(ERROR @ frame.T_cam_lidar) for frame in samples[0].cameras]
    still = calibrate([replace(samples[0], cameras=frames)] * 6, "--out", tmp_path / "still.yaml")
    words = " ".join(still.output.split())
    assert "cannot tell: the vehicle stands still" in words
    assert "as given: nothing to correct" in words
