# SPDX-License-Identifier: Apache-2.0
"""Simulated drives: towns, sensors and faults, with exact ground truth."""

from pcseg_core.simulation.cameras import CameraSpec, rig
from pcseg_core.simulation.faults import Faults
from pcseg_core.simulation.lidar import LidarSpec
from pcseg_core.simulation.towns import TOWNS
from pcseg_core.simulation.world import Course, World

__all__ = ["TOWNS", "CameraSpec", "Course", "Faults", "LidarSpec", "World", "rig"]
