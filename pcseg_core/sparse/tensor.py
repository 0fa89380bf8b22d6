# SPDX-License-Identifier: Apache-2.0
"""Sparse tensors: features on the occupied voxels of a batch of sweeps."""

from __future__ import annotations

import torch
from torch import Tensor

from pcseg_core.errors import InputError
from pcseg_core.sparse import keys as packing
from pcseg_core.sparse.backends import map_builder
from pcseg_core.sparse.maps import KernelMapCache


class SparseTensor:
    """Features (M, C) on M voxels, with the kernel maps of the network.

    Attributes:
        feats: (M, C) floating point.
        stride: edge of a voxel in voxels of the input grid, a power of two.
        cache: keys, kernel maps and backend, shared by all tensors of the same input.
    """

    def __init__(
        self,
        coords: Tensor,
        feats: Tensor,
        stride: int = 1,
        cache: KernelMapCache | None = None,
        backend: str = "auto",
    ) -> None:
        """Check and wrap an input.

        Args:
            coords: (M, 4) integer [batch, x, y, z], sorted in that order without duplicates, as
                returned by `voxelize`; see also `sort`.
            feats: (M, C) floating point, finite, on the same device.
            stride: 1 for an input; another stride needs a cache.
            cache: kernel maps of the same voxels, to be shared with another tensor.
            backend: runs all convolutions on these voxels: "auto", "torch", "native", "triton" or
                "torchsparse". With a cache, the backend of the cache is used.

        Raises:
            InputError: no voxels, unsorted or duplicate or out-of-range coordinates, values that
                are not finite, shapes that do not match, or an unavailable backend.
        """
        _check_feats(feats, len(coords))
        if coords.device != feats.device:
            raise InputError(
                f"sparse tensor: coordinates on {coords.device}, features on {feats.device}; "
                "move both to one device"
            )
        if cache is None:
            if stride != 1:
                raise InputError(f"sparse tensor: stride {stride} needs the cache of its input")
            builder = map_builder(backend, coords.device)
            cache = KernelMapCache(_checked_keys(coords), builder, backend)
        elif not torch.equal(cache.coords(stride), coords.to(torch.int32)):
            raise InputError(
                f"sparse tensor: the coordinates are not those of the cache at stride {stride}"
            )
        self.feats, self.stride, self.cache = feats, stride, cache

    @classmethod
    def of(cls, feats: Tensor, stride: int, cache: KernelMapCache) -> SparseTensor:
        """A tensor on known voxels, without checks; for the outputs of modules."""
        tensor = cls.__new__(cls)
        tensor.feats, tensor.stride, tensor.cache = feats, stride, cache
        return tensor

    @classmethod
    def of_keys(cls, keys: Tensor, feats: Tensor, backend: str = "auto") -> SparseTensor:
        """An input on the voxels of `voxelize`, whose keys are not checked again.

        Args:
            keys: (M,) int64, sorted, unique.
            feats: (M, C) floating point, finite, on the same device.
            backend: see `__init__`.

        Raises:
            InputError: no voxels, values that are not finite, shapes that do not match, or an
                unavailable backend.
        """
        _check_feats(feats, len(keys))
        cache = KernelMapCache(keys, map_builder(backend, keys.device), backend)
        return cls.of(feats, 1, cache)

    @classmethod
    def sort(
        cls, coords: Tensor, feats: Tensor, backend: str = "auto"
    ) -> tuple[SparseTensor, Tensor]:
        """Sort voxels of any order; also returns the permutation (M,)."""
        order = torch.argsort(packing.pack(coords))
        return cls(coords[order], feats[order], backend=backend), order

    @property
    def coords(self) -> Tensor:
        """(M, 4) int32 [batch, x, y, z] in voxels of this tensor's stride."""
        return self.cache.coords(self.stride)

    def replace(self, feats: Tensor) -> SparseTensor:
        """The same voxels with other features (M, C)."""
        return SparseTensor.of(feats, self.stride, self.cache)

    def __len__(self) -> int:
        return len(self.feats)

    def __repr__(self) -> str:
        shape, dtype = tuple(self.feats.shape), self.feats.dtype
        return f"SparseTensor(feats={shape} {dtype}, stride={self.stride})"


def _checked_keys(coords: Tensor) -> Tensor:
    keys = packing.pack(coords)
    step = keys[1:] - keys[:-1]
    if not bool((step > 0).all()):
        row = int((step <= 0).nonzero()[0])
        here = coords[row + 1].tolist()
        if bool((torch.unique(keys, return_counts=True)[1] > 1).any()):
            raise InputError(
                f"sparse tensor: voxels occur twice, first seen near row {row + 1} {here}; "
                "merge points into voxels with voxelize() and mean_features()"
            )
        raise InputError(
            f"sparse tensor: coordinates are not sorted at row {row + 1} {here}; "
            "use SparseTensor.sort or voxelize()"
        )
    return keys


def _check_feats(feats: Tensor, rows: int) -> None:
    if feats.ndim != 2 or not feats.is_floating_point():
        raise InputError(
            "sparse tensor: features must be floating point of shape (M, C), got "
            f"{feats.dtype} of shape {tuple(feats.shape)}"
        )
    if len(feats) != rows:
        raise InputError(f"sparse tensor: {rows} voxels but {len(feats)} rows of features")
    if rows == 0:
        raise InputError("sparse tensor: no voxels; skip empty clouds before the network")
    if not bool(torch.isfinite(feats).all()):
        row = int((~torch.isfinite(feats)).any(1).nonzero()[0])
        raise InputError(
            f"sparse tensor: row {row} of the features is not finite; remove NaN and infinite "
            "values first"
        )
