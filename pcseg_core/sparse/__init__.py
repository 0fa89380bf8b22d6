# SPDX-License-Identifier: Apache-2.0
"""Sparse voxel grids, convolutions on them and the backends that run those."""

from pcseg_core.sparse.backends import BackendReport, backends_report
from pcseg_core.sparse.modules import BatchNorm, ReLU, SparseConv3d, concatenate, pool
from pcseg_core.sparse.tensor import SparseTensor
from pcseg_core.sparse.voxels import Voxels, devoxelize, mean_features, voxelize

__all__ = [
    "BackendReport",
    "BatchNorm",
    "ReLU",
    "SparseConv3d",
    "SparseTensor",
    "Voxels",
    "backends_report",
    "concatenate",
    "devoxelize",
    "mean_features",
    "pool",
    "voxelize",
]
