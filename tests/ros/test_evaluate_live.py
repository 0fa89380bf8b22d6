# SPDX-License-Identifier: Apache-2.0
"""`pcseg evaluate` with a real node over DDS, and offline with the same parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from pcseg_core.cli import app
from pcseg_core.data.bag import BagRecording
from pcseg_core.data.calibration import save_calibration
from pcseg_core.evaluation.live import find_replay
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.simulation.to_bag import write_simulated_bag


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drive = SimulatedDrive(
        100_003, sweeps=8, beams=24, columns=512, cameras=0, rate_hz=2.0, speed_mps=5.0
    )
    return write_simulated_bag(drive, tmp_path_factory.mktemp("bags") / "bag").path


def smoothing(bag: Path, folder: Path) -> Path:
    """A parameter file of a node that smooths, with the motion from Odometry."""
    recording, calibration = BagRecording(bag), folder / "rig.yaml"
    save_calibration(calibration, [])
    with calibration.open("a") as file:
        place = recording.tree.static("base_link", recording.lidar_frame).tolist()
        yaml.safe_dump({"T_body_lidar": place}, file)
    values = {
        "motion": {"source": "odometry", "timeout_s": 2.0},
        "temporal": {"enabled": True},
        "cameras": {"calibration": str(calibration)},
    }
    params = folder / "node.yaml"
    params.write_text(yaml.safe_dump({"/**": {"ros__parameters": values}}))
    return params


@pytest.mark.slow
@pytest.mark.parametrize("smoothed", [False, True])
def test_live_and_offline_agree_on_what_was_labeled(
    bag: Path, tmp_path: Path, smoothed: bool
) -> None:
    _, problem = find_replay()
    if problem:
        pytest.skip(problem)
    reports = {}
    given = ["--params", str(smoothing(bag, tmp_path))] if smoothed else []
    for how in ("--live", "--baselines"):  # the latter is the default
        file = tmp_path / f"{how}.json"
        arguments = ["evaluate", str(bag), "--checkpoint", "bundled", *given, how]
        result = CliRunner().invoke(app, [*arguments, "--json", str(file)])
        assert result.exit_code == 0, result.output
        reports[how] = json.loads(file.read_text())
    live, offline = reports["--live"], reports["--baselines"]
    assert live["transport"] == "over DDS"
    assert offline["name"] == ("bundled, smoothed" if smoothed else "bundled")
    assert live["drop_rate"] == sum(live["dropped"].values()) / 8 < 0.9
    assert live["latency_ms_p95"] >= live["latency_ms_p50"] > 1
    assert live["rss_mb"] > 100  # torch is in there
    if not live["dropped"]:
        assert live["miou"] == pytest.approx(offline["miou"], abs=1e-6)
        assert live["flicker"] == pytest.approx(offline["flicker"], abs=1e-6)
