# SPDX-License-Identifier: Apache-2.0
"""Small simulated drives, built once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.simulation.route import EPOCH_NS

SMALL = {"beams": 32, "columns": 720, "width": 320, "height": 192}


@pytest.fixture(scope="session")
def drive() -> SimulatedDrive:
    """Six samples, half a second apart, without range noise."""
    return SimulatedDrive(4, sweeps=6, stride=5, range_noise_m=0.0, **SMALL)


@pytest.fixture(scope="session")
def turning() -> SimulatedDrive:
    """A drive in the middle of a right turn at sample 3, without range noise."""
    drive = SimulatedDrive(11, sweeps=12, stride=10, turns=1.0, range_noise_m=0.0, **SMALL)
    poses = drive.world.trajectory.at_many([drive.stamp_ns(10 * k) for k in range(12)])
    yaw = np.unwrap(np.arctan2(poses[:, 1, 0], poses[:, 0, 0]))
    assert np.ptp(yaw) > 1.0, "the drive was chosen for its turn"
    return drive


@pytest.fixture
def seconds() -> Callable[[int], float]:
    """Time of the drive [s] of a stamp."""
    return lambda stamp_ns: (stamp_ns - EPOCH_NS) * 1e-9
