# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbors among the points of a sweep: a k-d tree on the CPU, distances on a GPU."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

_ROWS = 1024  # queries whose distances to all points are held at once


def nearest(queries: Tensor, points: Tensor, count: int) -> Tensor:
    """Indices (Q, count) int64 of the nearest points, nearest first.

    Args:
        queries: (Q, 3) floating point [m].
        points: (N, 3) on the same device, N >= count.
        count: neighbors of each query.
    """
    if queries.device.type == "cpu":
        tree = cKDTree(points.detach().numpy(), balanced_tree=False, compact_nodes=False)
        columns = np.arange(1, count + 1)
        _, found = tree.query(queries.detach().numpy(), columns, workers=torch.get_num_threads())
        return torch.from_numpy(found)
    return torch.cat([_brute_force(rows, points, count) for rows in queries.split(_ROWS)])


def _brute_force(queries: Tensor, points: Tensor, count: int) -> Tensor:
    exact = "donot_use_mm_for_euclid_dist"  # the other mode loses the digits of near points
    distance = torch.cdist(queries, points, compute_mode=exact)
    return distance.topk(count, largest=False).indices


def neighborhoods(xyz: Tensor, batch: Tensor, count: int) -> Tensor:
    """The nearest other points of the same sweep for each point.

    Args:
        xyz: (N, 3) [m].
        batch: (N,) integer, ascending: sweep of each point.
        count: neighbors K.

    Returns:
        (N, K) int64 rows of `xyz`. A sweep of fewer than K + 1 points repeats its nearest ones; a
        point alone is its own neighbor.
    """
    parts, first = [], 0
    for size in torch.unique_consecutive(batch, return_counts=True)[1].tolist():
        points = xyz[first : first + size]
        found = nearest(points, points, min(count + 1, size))
        others = found[:, 1:] if size > 1 else found
        short = count - others.shape[1]
        parts.append(first + torch.cat([others, others[:, :1].expand(-1, short)], dim=1))
        first += size
    return torch.cat(parts)
