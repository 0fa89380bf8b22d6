# SPDX-License-Identifier: Apache-2.0
"""Places that moving things have left: what earlier sweeps saw there is out of date."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import PointCloud
from pcseg_core.geometry import invert
from pcseg_core.labels import MOVING, LabelSpace
from pcseg_core.online.moving import cells, movable, near

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
        points: (3, M) float32, LiDAR frame [m]; thinned when they are compared.
        gone: (M,) bool: seen elsewhere since.
    """

    stamp_ns: int
    pose: Array
    points: Float32
    gone: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))

    def seen_from(self, pose: Array, rows: Array | slice) -> Float32:
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
        self._waiting: deque[_Moved] = deque()  # compared when somebody asks for voxels

    def reset(self) -> None:
        """Forget earlier sweeps."""
        self._sweeps.clear()
        self._waiting.clear()

    def add(self, cloud: PointCloud, moving: Array, pose: Array) -> None:
        """Add a sweep.

        Args:
            cloud: LiDAR frame.
            moving: (N,) UNKNOWN, STATIC or MOVING.
            pose: (4, 4) T_fixed_lidar in a frame without jumps.
        """
        last = self._waiting or self._sweeps
        if last and not 0 < cloud.stamp_ns - last[-1].stamp_ns < 1e9 * _MEMORY_S:
            self.reset()
        points = np.asarray(cloud.xyz[np.flatnonzero(moving == MOVING)].T, np.float32)
        self._waiting.append(_Moved(cloud.stamp_ns, np.asarray(pose), points))
        _forget(self._waiting)

    def _compare(self, now: _Moved) -> None:
        """Find the places of earlier sweeps that the things of the next one have left."""
        first = np.unique(cells(now.points, _CELL_M), return_index=True)[1]
        now.points = now.points[:, first]
        now.gone = np.zeros(now.points.shape[1], bool)
        for before in self._sweeps:
            if now.stamp_ns - before.stamp_ns <= 1e9 * _AGAIN_S:
                there = now.seen_from(before.pose, slice(None))
                before.gone |= near(before.points, there, _AGAIN_M)
        self._sweeps.append(now)
        _forget(self._sweeps)

    def outside(self, voxels: Voxels, space: LabelSpace) -> Voxels:
        """The voxels without those where something moved that is elsewhere now.

        Args:
            voxels: around the newest sweep; see `TemporalBuffer.remembered`.
            space: classes of their labels.
        """
        while self._waiting:
            self._compare(self._waiting.popleft())
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


def _forget(sweeps: deque[_Moved]) -> None:
    """Drop the sweeps that are too old."""
    while sweeps[-1].stamp_ns - sweeps[0].stamp_ns > 1e9 * _MEMORY_S:
        sweeps.popleft()
