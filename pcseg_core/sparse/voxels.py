# SPDX-License-Identifier: Apache-2.0
"""Voxelization of points, and voxel features back to points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pcseg_core.errors import InputError
from pcseg_core.native import sweeps
from pcseg_core.sparse import keys as packing
from pcseg_core.sparse.backends import takes_native_passes

Mode = Literal["cartesian", "cylindrical"]
Rounding = Literal["floor", "round"]
Origin = Literal["absolute", "minimum"]
_REACH = packing.MAX_COORD - 2  # trilinear weights look one voxel further


@dataclass(frozen=True, eq=False)
class Voxels:
    """Occupied voxels of a batch of clouds.

    Attributes:
        coords: (M, 4) int32 [batch, x, y, z] (cylindrical: batch, radius, azimuth, z), sorted.
        inverse: (N,) int64, the voxel of each point.
        counts: (M,) int64, points per voxel.
        keys: (M,) int64 packed coordinates, sorted.
        grid: (N, 3) float32 position of each point in voxels (voxel i spans [i, i + 1)).
        batch: (N,) int64 batch index of each point.
    """

    coords: Tensor
    inverse: Tensor
    counts: Tensor
    keys: Tensor
    grid: Tensor
    batch: Tensor

    def __len__(self) -> int:
        return len(self.coords)


def voxelize(
    xyz: Tensor,
    voxel_size: float | Sequence[float],
    batch_index: Tensor | None = None,
    mode: Mode = "cartesian",
    backend: str = "auto",
    rounding: Rounding = "floor",
    origin: Origin = "absolute",
) -> Voxels:
    """Group points into voxels.

    Args:
        xyz: (N, 3) floating point, finite [m].
        voxel_size: edge [m], or three edges. Cylindrical voxels need three: radius [m], azimuth
            [rad], height [m]. Voxels on the two sides of azimuth +-pi are not neighbors.
        batch_index: (N,) integer sweep of each point, 0 to 511; None means one sweep.
        mode: "cartesian" or "cylindrical".
        backend: of the sparse convolutions; "native" groups float32 on the CPU in one pass, with
            the same result, where `rounding` and `origin` have their defaults.
        rounding: "floor", or "round" to the nearest index, halves to the even one.
        origin: "absolute", or "minimum" for indices that begin at 0 in each sweep.

    Raises:
        InputError: no points, values that are not finite, or points more than 131067 voxels from
            the origin.
    """
    size = _checked_size(voxel_size, mode)
    _check_points(xyz)
    if batch_index is None:
        batch = torch.zeros(len(xyz), dtype=torch.int64, device=xyz.device)
    elif batch_index.shape != (len(xyz),) or batch_index.is_floating_point():
        raise InputError(
            f"batch_index: expected {len(xyz)} integers, got {batch_index.dtype} of shape "
            f"{tuple(batch_index.shape)}"
        )
    else:
        batch = batch_index.to(torch.int64)
    position = _cylindrical(xyz) if mode == "cylindrical" else xyz
    usual = rounding == "floor" and origin == "absolute" and position.dtype == torch.float32
    if usual and takes_native_passes(backend, xyz.device):
        voxels = _native_voxels(position.detach(), size, batch)
        if voxels is not None:
            return voxels
    return _torch_voxels(xyz, position, size, batch, rounding, origin)


def _native_voxels(
    position: Tensor, size: tuple[float, float, float], batch: Tensor
) -> Voxels | None:
    """The voxels; None for points that `_torch_voxels` refuses."""
    found = sweeps.group_points(position.numpy(), size, batch.numpy())
    if found is None:
        return None
    return Voxels(
        torch.from_numpy(found.coords),
        torch.from_numpy(found.inverse),
        torch.from_numpy(found.counts),
        torch.from_numpy(found.keys),
        torch.from_numpy(found.grid),
        batch,
    )


def _torch_voxels(
    xyz: Tensor,
    position: Tensor,
    size: tuple[float, float, float],
    batch: Tensor,
    rounding: Rounding,
    origin: Origin,
) -> Voxels:
    _check_finite(xyz)
    grid = position / position.new_tensor(size)
    if float(grid.abs().max()) > _REACH:
        raise InputError(
            f"points reach {float(grid.abs().max()):.0f} voxels from the origin, allowed are "
            f"{_REACH}; crop the cloud, move its origin or use larger voxels"
        )
    index = grid.floor() if rounding == "floor" else grid.round()
    if rounding == "round":
        grid = grid + 0.5  # voxel i spans [i, i + 1) in `Voxels.grid`
    if origin == "minimum":
        first = _smallest(index, batch)
        index, grid = index - first, grid - first
    cells = torch.cat([batch[:, None], index.to(torch.int64)], dim=1)
    keys, inverse, counts = torch.unique(
        packing.pack(cells), return_inverse=True, return_counts=True
    )
    return Voxels(packing.unpack(keys), inverse, counts, keys, grid.float(), batch)


def _smallest(index: Tensor, batch: Tensor) -> Tensor:
    """(N, 3) smallest index along each axis of the sweep of each point."""
    rows = batch[:, None].expand(-1, 3)
    least = index.new_full((int(batch.max()) + 1, 3), torch.inf)
    return least.scatter_reduce(0, rows, index, "amin").index_select(0, batch)


def _checked_size(voxel_size: float | Sequence[float], mode: str) -> tuple[float, float, float]:
    if mode not in ("cartesian", "cylindrical"):
        raise InputError(f"voxel mode '{mode}': expected 'cartesian' or 'cylindrical'")
    if isinstance(voxel_size, (int, float)):
        if mode == "cylindrical":
            raise InputError(
                f"voxel_size {voxel_size}: cylindrical voxels need three numbers "
                "(radius m, azimuth rad, height m)"
            )
        voxel_size = (voxel_size,) * 3
    size = tuple(float(edge) for edge in voxel_size)
    if len(size) != 3 or not all(math.isfinite(edge) and edge > 0 for edge in size):
        raise InputError(f"voxel_size {voxel_size}: expected one or three positive numbers")
    return size


def _check_points(xyz: Tensor) -> None:
    if xyz.ndim != 2 or xyz.shape[1] != 3 or not xyz.is_floating_point():
        raise InputError(
            f"points: expected floating point of shape (N, 3), got {xyz.dtype} of shape "
            f"{tuple(xyz.shape)}"
        )
    if len(xyz) == 0:
        raise InputError("points: the cloud is empty; skip it before voxelization")


def _check_finite(xyz: Tensor) -> None:
    if not bool(torch.isfinite(xyz).all()):
        count = int((~torch.isfinite(xyz)).any(1).sum())
        raise InputError(
            f"points: {count} of {len(xyz)} are not finite; remove them first (PointCloud.finite)"
        )


def _cylindrical(xyz: Tensor) -> Tensor:
    x, y, z = xyz.unbind(1)
    return torch.stack([torch.hypot(x, y), torch.atan2(y, x), z], dim=1)


def mean_features(feats: Tensor, voxels: Voxels) -> Tensor:
    """Average the features (N, C) of the points of each voxel into (M, C)."""
    if feats.ndim != 2 or len(feats) != len(voxels.inverse):
        raise InputError(
            f"features: expected {len(voxels.inverse)} rows, one per point, got shape "
            f"{tuple(feats.shape)}"
        )
    total = feats.new_zeros(len(voxels), feats.shape[1]).index_add(0, voxels.inverse, feats)
    return total / voxels.counts[:, None].to(feats.dtype)


def first_features(feats: Tensor, voxels: Voxels) -> Tensor:
    """The features (N, C) of the first point of each voxel, in the order of the points: (M, C)."""
    points = torch.arange(len(feats), device=feats.device)
    first = points.new_full((len(voxels),), len(feats))
    return feats.index_select(0, first.scatter_reduce(0, voxels.inverse, points, "amin"))


def devoxelize(
    voxel_feats: Tensor, voxels: Voxels, mode: Literal["nearest", "trilinear"] = "nearest"
) -> Tensor:
    """Features (N, C) of the points from features (M, C) of the voxels.

    "nearest" takes the voxel of the point. "trilinear" interpolates between the centers of the
    eight surrounding voxels; the weights of the occupied ones sum to one.
    """
    if voxel_feats.ndim != 2 or len(voxel_feats) != len(voxels):
        raise InputError(
            f"voxel features: expected {len(voxels)} rows, one per voxel, got shape "
            f"{tuple(voxel_feats.shape)}"
        )
    if mode == "nearest":
        return voxel_feats.index_select(0, voxels.inverse)
    if mode != "trilinear":
        raise InputError(f"devoxelize mode '{mode}': expected 'nearest' or 'trilinear'")
    rows, weights = trilinear_weights(voxels)
    return functional.embedding_bag(
        rows, voxel_feats, per_sample_weights=weights.to(voxel_feats.dtype), mode="sum"
    )


def trilinear_weights(voxels: Voxels) -> tuple[Tensor, Tensor]:
    """Rows (N, 8) int64 of the surrounding voxels and weights (N, 8) float32, rows sum to 1."""
    corner = (voxels.grid - 0.5).floor()
    fraction = voxels.grid - 0.5 - corner
    cells = torch.cat([voxels.batch[:, None], corner.to(torch.int64)], dim=1)
    base = packing.pack(cells)
    rows, weights = [], []
    last = len(voxels) - 1
    for dx, dy, dz in ((i >> 2, i >> 1 & 1, i & 1) for i in range(8)):
        wanted = base + packing.key_offset(dx, dy, dz)
        row = torch.searchsorted(voxels.keys, wanted).clamp_(max=last)
        weight = _axis_weight(fraction[:, 0], dx) * _axis_weight(fraction[:, 1], dy)
        weight = weight * _axis_weight(fraction[:, 2], dz) * (voxels.keys[row] == wanted)
        rows.append(row)
        weights.append(weight)
    weight = torch.stack(weights, dim=1)
    return torch.stack(rows, dim=1), weight / weight.sum(1, keepdim=True)


def _axis_weight(fraction: Tensor, upper: int) -> Tensor:
    return fraction if upper else 1 - fraction
