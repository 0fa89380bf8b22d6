# SPDX-License-Identifier: Apache-2.0
"""A sweep as the input of the student's network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pcseg_core.models.student import Points, Student, StudentConfig, input_features, voxel_edges
from pcseg_core.native import sweeps
from pcseg_core.sparse import SparseTensor
from pcseg_core.sparse.backends import takes_native_passes

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class SweepInput:
    """Voxels of a sweep with their input features.

    Attributes:
        sparse: input of the network; None if no point of the sweep is used.
        inverse: (N,) int64 voxel of each point of the sweep. -1 for points that are not used: no
            returns (not finite, or exactly zero) and returns out of range.
        out_of_range: number of returns farther than `max_range_m`.
    """

    sparse: SparseTensor | None
    inverse: Tensor
    out_of_range: int

    def voxel_ranges(self, xyz: Array) -> Tensor:
        """(M,) float32 range of the farthest point of each voxel [m]; xyz (N, 3) as given."""
        assert self.sparse is not None
        voxels = len(self.sparse)
        ranges = _tensor(xyz, self.inverse.device).square().sum(1).sqrt()
        place = self.inverse.where(self.inverse >= 0, voxels)  # the last row: unused points
        farthest = ranges.new_zeros(voxels + 1).scatter_reduce_(0, place, ranges, "amax")
        return farthest[:voxels]


def sweep_input(
    student: Student,
    xyz: Array,
    intensity: Array | None,
    device: torch.device,
    backend: str = "auto",
) -> SweepInput:
    """Voxels of the returns within range, with their input features.

    The native backend computes them in one pass, with the same result as torch. Cylindrical voxels,
    the input "range", and other roundings, origins and reductions than the defaults need torch.

    Args:
        student: the network, on `device`.
        xyz: (N, 3) float32, LiDAR frame [m].
        intensity: (N,) float32, clipped to 0..1, 0 for NaN; None for 0.
        device: of the result.
        backend: of the sparse convolutions; see `pcseg_core.sparse.backends`.
    """
    if takes_native_passes(backend, device) and _in_one_pass(student.config):
        found = _native_input(student, xyz, intensity, backend)
        if found is not None:
            return found
    points, kept, out_of_range = usable_points(xyz, intensity, student.config.max_range_m, device)
    inverse = torch.full((len(xyz),), -1, dtype=torch.int64, device=device)
    if not len(kept):
        return SweepInput(None, inverse, out_of_range)
    voxels = student.voxelize(points, backend)
    inverse[kept] = voxels.inverse
    return SweepInput(student.sparse_input(points, voxels, backend), inverse, out_of_range)


def _in_one_pass(config: StudentConfig) -> bool:
    known = all(name in sweeps.INPUTS for name, _ in input_features(config))
    return known and config.voxels == "cartesian" and not other_grid(config)


def other_grid(config: StudentConfig) -> list[str]:
    """Settings of the grid that the native library does not know, as "name: value"."""
    usual = {"rounding": "floor", "origin": "absolute", "reduce": "mean"}
    return [f"{k}: {getattr(config, k)}" for k, v in usual.items() if getattr(config, k) != v]


def _native_input(
    student: Student, xyz: Array, intensity: Array | None, backend: str
) -> SweepInput | None:
    """None if a point needs an error message."""
    config = student.config
    found = sweeps.group_sweep(
        xyz, intensity, voxel_edges(config), config.max_range_m, input_features(config)
    )
    if found is None:
        return None
    sparse = None
    if len(found.keys):
        keys, means = torch.from_numpy(found.keys), torch.from_numpy(found.means)
        sparse = SparseTensor.of_keys(keys, means, backend)
    return SweepInput(sparse, torch.from_numpy(found.inverse), found.beyond)


def usable_points(
    xyz: Array, intensity: Array | None, max_range_m: float, device: torch.device
) -> tuple[Points, Tensor, int]:
    """The returns within range, their indices (K,) int64, and the number of returns beyond it."""
    everywhere = _tensor(xyz, device)
    x, y, z = everywhere.unbind(1)
    square = x * x + y * y + z * z
    limit = max_range_m * max_range_m
    # NaN and infinite values are within no range; zeros are no returns.
    kept = ((square <= limit) & (square > 0)).nonzero()[:, 0]
    if intensity is None:
        strength = everywhere.new_zeros(len(kept))
    else:
        strength = _tensor(intensity, device).index_select(0, kept)
    points = Points(
        everywhere.index_select(0, kept),
        strength.nan_to_num(nan=0.0).clamp(0, 1),  # as in training
        torch.zeros(len(kept), dtype=torch.int64, device=device),
    )
    beyond = (square > limit) & everywhere.isfinite().all(1)
    return points, kept, int(beyond.sum())


def _tensor(array: Array, device: torch.device) -> Tensor:
    """A float32 copy on the device; the array may be read-only."""
    return torch.from_numpy(np.array(array, np.float32)).to(device)
