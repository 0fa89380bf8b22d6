# SPDX-License-Identifier: Apache-2.0
"""`pcseg evaluate` with a real node over DDS, and without: the same figures, the same labels."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from harness import ROOT

from pcseg_core.bundled import BUNDLED
from pcseg_core.cli import app
from pcseg_core.data import open_recording
from pcseg_core.data.calibration import save_calibration
from pcseg_core.evaluation import live
from pcseg_core.evaluation.live import find_replay
from pcseg_core.evaluation.methods import variants
from pcseg_core.online.pipeline import Sweep
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.simulation.to_bag import write_simulated_bag
from pcseg_core.vision.pixel_classes import load_teacher


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


SWEEPS = 6


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drive with times of the points, motion within the sweeps, and a camera."""
    drive = SimulatedDrive(
        100_007,
        sweeps=SWEEPS,
        beams=16,
        columns=512,
        cameras=1,
        width=160,
        height=96,
        rate_hz=1.0,
        speed_mps=8.0,
    )
    return write_simulated_bag(drive, tmp_path_factory.mktemp("bags") / "drive").path


def write_parameters(bag: Path, folder: Path, deskew: bool, temporal: bool) -> Path:
    """A parameter file with all that decides the labels, and the calibration that it names."""
    recording = open_recording(str(bag), max_image_offset_s=1.0)
    calibration = folder / "calibration.yaml"
    save_calibration(calibration, recording[0].cameras)
    content = yaml.safe_load(calibration.read_text())
    content["T_body_lidar"] = recording.tree.static("base_link", "lidar").tolist()  # type: ignore[attr-defined]
    calibration.write_text(yaml.safe_dump(content))
    values = {
        "device": "cpu",
        "min_confidence": 0.4,
        # a sweep of this bag is played at its first point: its other points are up to 1 s later
        "motion": {"source": "odometry", "deskew": deskew, "required": True, "timeout_s": 3.0},
        "temporal": {"enabled": temporal, "max_gap_s": 3.0},
        "cameras": {
            "topics": ["/camera_0/image/compressed"],
            "calibration": str(calibration),
            "tolerance_s": 0.6,
            "deadline_s": 0.6,
        },
        "teacher": {
            "weights": "bundled:simulation_teacher",
            "label_space": "simulation",
            "fuse": True,
            "camera_weight": 0.5,
            "deadline_s": 5.0,
        },
    }
    params = folder / "node.yaml"
    params.write_text(yaml.safe_dump({"/**": {"ros__parameters": values}}))
    return params


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deskew", "temporal"), [(False, False), (False, True), (True, False), (True, True)]
)
def test_what_is_measured_is_what_runs(
    bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deskew: bool, temporal: bool
) -> None:
    """The node over DDS and the evaluation offline label every point alike."""
    play, problem = find_replay()
    if problem:
        pytest.skip(problem)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    params = write_parameters(bag, tmp_path, deskew, temporal)
    setup = live.read_parameters(params)
    assert setup.teacher is not None
    replayed = play(bag, Path(BUNDLED), tmp_path / "logs", params)
    segmenter = Segmenter.load(setup.checkpoint, setup.device, setup.precision, setup.backend)
    offline = variants("a", "a", segmenter, setup.pipeline, load_teacher(setup.teacher))[0]
    recording = open_recording(str(bag), **setup.bag_options)
    compared = 0
    for index in range(len(recording)):
        sample = recording[index]
        assert sample.cameras and sample.trajectory is not None and sample.cloud.time is not None
        sweep = Sweep.of(sample)
        if index == 0:
            sweep.frames = None  # the node waits for a camera from its first image on
        labels = replayed.labels.get(sample.stamp_ns)
        if labels is None:
            assert replayed.dropped
            continue
        expected = offline.predict(sweep)
        assert expected is not None and np.array_equal(labels, expected.labels)
        compared += 1
    assert compared >= SWEEPS / 2
