# SPDX-License-Identifier: Apache-2.0
"""Waiting for a node by its reports, as the launch files do before they play a bag."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from harness import NodeProcess
from node_process import ROOT


def wait(process: NodeProcess) -> subprocess.CompletedProcess[str]:
    name = f"{process.namespace}/segment_node"
    command = [sys.executable, "-m", "pcseg_ros.health", name]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_waits_until_the_checkpoint_is_loaded() -> None:
    with NodeProcess("checkpoint:=fake:load=3", "diagnostics_period_s:=0.2") as process:
        waited = wait(process)
        assert waited.returncode == 0, waited.stderr
        assert "-> " in process.output  # what the node says when it is configured


def test_a_node_that_works_already_is_not_missed() -> None:
    with NodeProcess("checkpoint:=fake", "diagnostics_period_s:=0.2") as process:
        assert wait(process).returncode == 0
        assert wait(process).returncode == 0


def test_says_why_a_node_could_not_be_configured() -> None:
    with NodeProcess("checkpoint:=runs/none", "diagnostics_period_s:=0.2") as process:
        waited = wait(process)
        assert waited.returncode == 2
        assert "not configured: no checkpoint at 'runs/none'" in waited.stderr


def test_reports_of_other_nodes_are_not_taken_for_its_own() -> None:
    with (
        NodeProcess("checkpoint:=runs/none", "diagnostics_period_s:=0.2"),
        NodeProcess("checkpoint:=fake:load=2", "diagnostics_period_s:=0.2") as process,
    ):
        assert wait(process).returncode == 0
