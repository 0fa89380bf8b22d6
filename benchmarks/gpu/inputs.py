# SPDX-License-Identifier: Apache-2.0
"""Sweeps and networks of the GPU benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.engine_cases import Grid, grid_of
from benchmarks.gpu.machine import Machine
from benchmarks.sweeps import load_sweep

NETWORKS = ((18, 0.5), (34, 1.0))
QUICK_NETWORKS = ((14, 0.25),)
VOXELS_M = (0.05, 0.1)


def networks(machine: Machine) -> tuple[tuple[int, float], ...]:
    """Depth and width of the networks with random weights."""
    return QUICK_NETWORKS if machine.quick else NETWORKS


def sweep(machine: Machine, path: Path | None) -> np.ndarray:
    """Points (N, 4): x, y, z [m] and intensity, of a file or of a simulated street."""
    if path is not None:
        return load_sweep(path)
    from pcseg_core.simulation.recording import SimulatedDrive

    beams, columns = (16, 128) if machine.quick else (128, 2048)
    drive = SimulatedDrive(7, beams=beams, columns=columns, sweeps=1, cameras=0)
    cloud = drive[0].cloud
    assert cloud.intensity is not None
    points = np.column_stack([cloud.xyz, cloud.intensity]).astype(np.float32)
    points = points[np.isfinite(points).all(1)]
    if machine.quick:  # near points, so that voxels have neighbors
        nearest = np.argsort(np.abs(points[:, :3]).sum(1), kind="stable")
        return np.ascontiguousarray(points[nearest[: machine.points]])
    kept = np.linspace(0, len(points) - 1, min(machine.points, len(points))).round().astype(int)
    return np.ascontiguousarray(points[kept])


def grid(points: np.ndarray, voxel_m: float, device: torch.device) -> Grid:
    """Voxels of a sweep on a device."""
    made = grid_of(torch.from_numpy(points), voxel_m)
    return on(made, device)


def on(made: Grid, device: torch.device) -> Grid:
    """The grid on a device."""
    return Grid(made.coords.to(device), made.feats.to(device))
