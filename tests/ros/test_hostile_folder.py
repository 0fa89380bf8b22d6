# SPDX-License-Identifier: Apache-2.0
"""Folders with packages in them: nothing of them runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pcseg_core.children import code_command, module_command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with packages that leave a file when they are imported."""
    for package in ("rclpy", "evilpkg", "evilpkg/msg", "typer", "sensor_msgs"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "runpy.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", ["", "{0}", "{0}:", ":"])
def test_children_import_nothing_from_the_current_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
    kept = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{path.format(folder)}:{kept}")
    for command in (
        module_command("pcseg_ros.health", "--help"),
        module_command("pcseg_ros.bag_play", "--help"),
        code_command("import rclpy; print(rclpy.__file__)"),
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout and str(folder) not in done.stdout
    assert not (folder / "ran").exists()


def test_arguments_and_exit_codes_reach_the_module(tmp_path: Path) -> None:
    command = module_command("pcseg_ros.bag_play", "absent", "--rate", "x y")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2 and "--rate" in done.stderr


def test_message_classes_come_from_registered_packages_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
    from sensor_msgs.msg import PointCloud2

    from pcseg_ros.message_types import message_class

    assert message_class("sensor_msgs/msg/PointCloud2") is PointCloud2
    monkeypatch.syspath_prepend(str(folder))
    names = ("evilpkg/msg/Thing", "antigravity/msg/X", "os.path/msg/join", "/msg/", "a b/msg/C")
    assert [message_class(name) for name in names] == [None] * len(names)
    assert message_class("sensor_msgs/msg/Absent") is None
    assert not (folder / "ran").exists()
