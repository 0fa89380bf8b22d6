# SPDX-License-Identifier: Apache-2.0
"""Places that moving things have left: what earlier sweeps saw there is out of date."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import PointCloud
from pcseg_core.geometry import invert
from pcseg_core.labels import MOVING, LabelSpace
from pcseg_core.online.moving import cells, movable, moved, near

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
        rows = np.flatnonzero(moving == MOVING)
        points = np.array([axis[rows] for axis in cloud.xyz.T], np.float32)
        self._waiting.append(_Moved(cloud.stamp_ns, np.asarray(pose), points))
        _forget(self._waiting)

    def _compare(self, now: _Moved) -> None:
        """Find the places of earlier sweeps that the things of the next one have left."""
        first = np.unique(cells(now.points, _CELL_M), return_index=True)[1]
        now.points = now.points[:, first]
        now.gone = np.zeros(now.points.shape[1], bool)
        recent = [
            before
            for before in self._sweeps
            if now.stamp_ns - before.stamp_ns <= 1e9 * _AGAIN_S and not before.gone.all()
        ]
        for before, T_before_now in zip(recent, invert(_poses(recent)) @ now.pose):
            before.gone |= near(before.points, moved(T_before_now, now.points), _AGAIN_M)
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
        of_things = np.zeros(len(space) + 1, bool)
        of_things[movable(space)] = True
        suspects = np.flatnonzero((age > 0) & of_things.take(labels, mode="wrap"))
        places, left = self._places()
        for cell_m, gone in ((_CELL_M, True), (_THERE_M, False)):
            others = places.take(np.flatnonzero(left == gone), axis=1)
            found = near(points.take(suspects, axis=1), others, cell_m)
            suspects = suspects[found == gone]
        kept = np.ones(len(labels), bool)
        kept[suspects] = False
        rows = np.flatnonzero(kept)
        return points.take(rows, axis=1), labels[rows], age[rows]

    def _places(self) -> tuple[Float32, npt.NDArray[np.bool_]]:
        """(3, M) where things were, around the newest sweep, and (M,) which they have left."""
        T_newest_sweep = invert(self._sweeps[-1].pose) @ _poses(self._sweeps)
        parts = [moved(T, one.points) for T, one in zip(T_newest_sweep, self._sweeps)]
        return np.concatenate(parts, 1), np.concatenate([one.gone for one in self._sweeps])


def _poses(sweeps: Collection[_Moved]) -> Array:
    """(K, 4, 4) their poses."""
    return np.array([one.pose for one in sweeps]).reshape(-1, 4, 4)


def _forget(sweeps: deque[_Moved]) -> None:
    """Drop the sweeps that are too old."""
    while sweeps[-1].stamp_ns - sweeps[0].stamp_ns > 1e9 * _MEMORY_S:
        sweeps.popleft()
