# SPDX-License-Identifier: Apache-2.0
"""`pcseg evaluate` with a real node over DDS, and offline with the same parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from pcseg_core.cli import app
from pcseg_core.data.bag import BagRecording
from pcseg_core.data.bag_reader import CLOUD, BagFile
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


def smoothing(
    recording: BagRecording,
    folder: Path,
    more: Mapping[str, object] | None = None,
    **places: object,
) -> Path:
    """A parameter file of a node that smooths, with the motion from Odometry."""
    calibration = folder / "rig.yaml"
    save_calibration(calibration, [])
    with calibration.open("a") as file:
        place = recording.tree.static("base_link", recording.lidar_frame).tolist()
        yaml.safe_dump({"T_body_lidar": place, **places}, file)
    values = {
        "motion": {"source": "odometry", "timeout_s": 2.0},
        "temporal": {"enabled": True},
        "cameras": {"calibration": str(calibration)},
    }
    params = folder / "node.yaml"
    params.write_text(yaml.safe_dump({"/**": {"ros__parameters": {**values, **(more or {})}}}))
    return params


@pytest.mark.slow
def test_several_lidars_are_united_live_as_offline(tmp_path: Path) -> None:
    """The same labels where the node unites the same sweeps; others count as dropped."""
    _, problem = find_replay()
    if problem:
        pytest.skip(problem)
    drive = SimulatedDrive(
        100_003, sweeps=6, beams=16, columns=256, cameras=0, rate_hz=2.0, speed_mps=5.0, lidars=2
    )
    bag = write_simulated_bag(drive, tmp_path / "two").path
    topics = BagFile(bag).of_type(CLOUD)
    recording = BagRecording(bag, cloud_topic=",".join(topics))
    places = {
        lidar.index.frame_id: {"T_united_lidar": lidar.T_united_lidar.tolist()}
        for lidar in recording.sweeps.lidars.values()
    }
    # Sweeps of the second are half a period later.
    wait = {"tolerance_s": 0.3, "deadline_s": 0.6, "topics": topics}
    params = smoothing(recording, tmp_path, {"points": wait}, lidars=places)
    reports = []
    for how in ("--live", "--baselines"):
        file = tmp_path / f"{how}.json"
        arguments = ["evaluate", str(bag), "--checkpoint", "bundled", "--params", str(params), how]
        result = CliRunner().invoke(app, [*arguments, "--json", str(file)])
        assert result.exit_code == 0, result.output
        reports.append(json.loads(file.read_text()))
    live, offline = reports
    assert live["transport"] == "over DDS"
    assert offline["sweeps"] == live["sweeps"] == 6  # of both LiDARs
    assert live["drop_rate"] < 0.9, live["dropped"]
    if not live["dropped"]:
        assert live["miou"] == pytest.approx(offline["miou"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("smoothed", [False, True])
def test_live_and_offline_agree_on_what_was_labeled(
    bag: Path, tmp_path: Path, smoothed: bool
) -> None:
    _, problem = find_replay()
    if problem:
        pytest.skip(problem)
    reports = {}
    given = ["--params", str(smoothing(BagRecording(bag), tmp_path))] if smoothed else []
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
