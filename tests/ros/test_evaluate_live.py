# SPDX-License-Identifier: Apache-2.0
"""`pcseg evaluate BAG --checkpoint C --live`: a real node, real DDS, and what it really costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from pcseg_core.cli import app
from pcseg_core.evaluation.live import find_replay
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.simulation.to_bag import write_simulated_bag


@pytest.mark.slow
def test_live_and_offline_agree_on_what_was_answered(tmp_path: Path) -> None:
    _, problem = find_replay()
    if problem:
        pytest.skip(problem)
    drive = SimulatedDrive(
        100_003, sweeps=8, beams=24, columns=512, cameras=0, rate_hz=2.0, speed_mps=5.0
    )
    bag = write_simulated_bag(drive, tmp_path / "bag").path
    reports = {}
    for how in ("--live", "--temporal"):
        file = tmp_path / f"{how}.json"
        result = CliRunner().invoke(
            app, ["evaluate", str(bag), "--checkpoint", "bundled", how, "--json", str(file)]
        )
        assert result.exit_code == 0, result.output
        reports[how] = json.loads(file.read_text())
    live, offline = reports["--live"], reports["--temporal"]["others"][0]
    assert live["transport"] == "over DDS"
    assert live["drop_rate"] == sum(live["dropped"].values()) / 8 < 0.9
    assert live["latency_ms_p95"] >= live["latency_ms_p50"] > 1
    assert live["rss_mb"] > 100  # torch is in there
    if not live["dropped"]:
        assert live["miou"] == pytest.approx(offline["miou"], abs=1e-6)
        assert live["flicker"] == pytest.approx(offline["flicker"], abs=1e-6)
