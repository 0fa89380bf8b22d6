# SPDX-License-Identifier: Apache-2.0
"""Places that moving things have left: what earlier sweeps saw there is out of date."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import PointCloud
from pcseg_core.geometry import invert
from pcseg_core.labels import MOVING, LabelSpace
from pcseg_core.online.moving import movable, near

if TYPE_CHECKING:
    from pcseg_core.online.pipeline import Voxels

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

_MEMORY_S = 10.0  # evidence of voxels fades sooner, unless it is set to fade very slowly
_AGAIN_S = 0.5  # in which a thing that moves is seen again, if nothing hides it
_AGAIN_M = 2.0  # in a cell where it was, or beside it
_CELL_M = 0.15  # a voxel in a cell of a point that moved, or beside it, is of the trail
_THERE_M = 1.5  # and one in a cell of where it is now, or beside it, can still be of the thing


@dataclass
class _Moved:
    """The points of a sweep that moved.

    Attributes:
        stamp_ns: of the sweep.
        pose: (4, 4) T_fixed_lidar.
        points: (3, M) float32, thinned, LiDAR frame [m].
        gone: (M,) bool: seen elsewhere since.
    """

    stamp_ns: int
    pose: Array
    points: Float32
    gone: npt.NDArray[np.bool_]

    def seen_from(self, pose: Array, rows: Array) -> Float32:
        """(3, K) some of the points in the LiDAR frame of another pose."""
        T = (invert(pose) @ self.pose).astype(np.float32)
        moved: Float32 = T[:3, :3] @ self.points[:, rows] + T[:3, 3:]
        return moved


class Trails:
    """Remembers where the points were that moved.

    A thing that is seen again nearby has left the places of before. One that is not, such as one
    behind another, is taken to be where it was.
    """

    def __init__(self) -> None:
        self._sweeps: deque[_Moved] = deque()

    def reset(self) -> None:
        """Forget earlier sweeps."""
        self._sweeps.clear()

    def add(self, cloud: PointCloud, moving: Array, pose: Array) -> None:
        """Add a sweep.

        Args:
            cloud: LiDAR frame.
            moving: (N,) UNKNOWN, STATIC or MOVING.
            pose: (4, 4) T_fixed_lidar in a frame without jumps.
        """
        stamp_ns, memory_ns = cloud.stamp_ns, 1e9 * _MEMORY_S
        if self._sweeps and not 0 < stamp_ns - self._sweeps[-1].stamp_ns < memory_ns:
            self.reset()
        points = np.asarray(cloud.xyz[np.flatnonzero(moving == MOVING)].T, np.float32)
        cells = np.floor(points[:2] / np.float32(_CELL_M)).astype(np.int32)
        points = points[:, np.unique(cells, axis=1, return_index=True)[1]]
        now = _Moved(stamp_ns, np.asarray(pose), points, np.zeros(points.shape[1], bool))
        for before in self._sweeps:
            if stamp_ns - before.stamp_ns <= 1e9 * _AGAIN_S:
                there = now.seen_from(before.pose, np.arange(points.shape[1]))
                before.gone |= near(before.points, there, _AGAIN_M)
        self._sweeps.append(now)
        while stamp_ns - self._sweeps[0].stamp_ns > memory_ns:
            self._sweeps.popleft()

    def outside(self, voxels: Voxels, space: LabelSpace) -> Voxels:
        """The voxels without those where something moved that is elsewhere now.

        Args:
            voxels: around the newest sweep; see `TemporalBuffer.remembered`.
            space: classes of their labels.
        """
        if not self._sweeps:
            return voxels
        points, labels, age = voxels
        suspects = np.flatnonzero((age > 0) & np.isin(labels, movable(space)))
        for cell_m, gone in ((_CELL_M, True), (_THERE_M, False)):
            found = near(points[:, suspects], self._places(gone), cell_m)
            suspects = suspects[found == gone]
        kept = np.ones(len(labels), bool)
        kept[suspects] = False
        rows = np.flatnonzero(kept)
        return points[:, rows], labels[rows], age[rows]

    def _places(self, gone: bool) -> Float32:
        """(3, M) places that things have left, or where they are, around the newest sweep."""
        pose = self._sweeps[-1].pose
        parts = [one.seen_from(pose, np.flatnonzero(one.gone == gone)) for one in self._sweeps]
        return np.concatenate(parts, 1)
