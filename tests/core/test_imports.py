# SPDX-License-Identifier: Apache-2.0
"""The library imports without ROS, and without its heavy optional packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Refuses every ROS package, imports each module of pcseg_core, then looks at what came along.
SCRIPT = r"""
import importlib, pkgutil, re, sys

REFUSED = re.compile(
    r"(rclpy|rosidl_\w+|ament_\w+|\w+_msgs|tf2(_\w+)?|launch(_\w+)?|message_filters|sensor_msgs_py"
    r"|rosbag2_py|cv_bridge)$"
)
HEAVY = ("open_clip", "segment_anything", "rerun", "kiss_icp", "hdbscan", "timm")

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if REFUSED.match(name.partition(".")[0]):
            raise ImportError(f"pcseg_core must not import {name}")

sys.meta_path.insert(0, Refuse())
try:
    import rclpy
except ImportError as error:
    assert "must not import rclpy" in str(error)
else:
    raise SystemExit("the import hook does not work")

import pcseg_core

def fail(name):
    raise

names = []
for module in pkgutil.walk_packages(pcseg_core.__path__, "pcseg_core.", onerror=fail):
    is_python = module.module_finder.find_spec(module.name).origin.endswith(".py")
    if is_python and not module.name.endswith("__main__"):  # no shared library, no command
        names.append(module.name)
for name in names:
    importlib.import_module(name)
print(len(names))
heavy = [name for name in HEAVY if name in sys.modules]
assert not heavy, f"imported at import time: {heavy}"
"""


def test_all_modules_import_without_ros_and_without_heavy_packages() -> None:
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    modules = [p for p in (root / "pcseg_core").rglob("*.py") if p.name != "__init__.py"]
    assert int(result.stdout) >= len(modules) // 2  # it did walk the package


def test_package_itself_is_light() -> None:
    script = (
        "import sys, pcseg_core; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True, timeout=60)
