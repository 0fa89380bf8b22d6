# SPDX-License-Identifier: Apache-2.0
"""Which vehicles stand: beams do not pass where they were, and did not where they are now."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import PointCloud
from pcseg_core.geometry import invert
from pcseg_core.online.boxes import Grouped
from pcseg_core.online.free_space import FreeSpace
from pcseg_core.online.thing_parts import VEHICLES

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

_FEW = np.arange(20) / 20  # places among the points of a thing, of those that are compared
_MARGIN_M = 0.3  # by which beams must reach beyond a place that they passed
_SWEEPS = 2  # before this one, which it is compared with
_LONG_M = 3.0  # a longer thing moves a smaller share of its points by its length
_GAIN = 0.3  # per sweep, of the share of points that moved
_STANDS_MPS = 0.3  # noise of the velocity 0 of a thing none of whose points moved
_SCALE = 0.06  # share that makes this noise e times as large
_UNKNOWN = 0.2  # share that may have moved of a thing that is seen at another place
_BEFORE_M = 2.0  # from the sensor to the nearest edge of a thing, which faces it
_SHIFT_M = 2.5  # from where it is expected to this edge
_SETTLED = 4  # sweeps that a track was seen in from which its motion is known
_MOVES = 0.3  # share of the points that moved of a vehicle that does
_FAST_MPS = 10.0  # such a thing would have moved from places that were seen


@dataclass(frozen=True)
class Look:
    """What the beams of a sweep passed.

    Attributes:
        cloud: LiDAR frame.
        pose: (4, 4) T_fixed_lidar.
        known: its free space, if that is known.
    """

    cloud: PointCloud
    pose: Float64
    known: FreeSpace | None = None

    @cached_property
    def free(self) -> FreeSpace:
        """In the LiDAR frame."""
        return self.known or FreeSpace.of(self.cloud)

    @cached_property
    def _T_lidar_fixed(self) -> Float64:
        return invert(self.pose)

    def local(self, points: Float64) -> Array:
        """(3, M) float32 in the LiDAR frame, of points (..., 3) in the fixed frame."""
        T = self._T_lidar_fixed
        return np.asarray(T[:3, :3] @ points.reshape(-1, 3).T + T[:3, 3:], np.float32)

    def passed(self, points: Float64) -> Float64:
        """(I,) share of the points (I, K, 3) of things in the fixed frame that beams passed."""
        if not len(points):
            return np.zeros(0)
        passed = self.free.passed(self.local(points), _MARGIN_M)
        return share_of(passed.reshape(points.shape[:2]))


class Evidence:
    """The last sweeps and their things."""

    def __init__(self) -> None:
        self._before: deque[tuple[Look, Float64, Array]] = deque(maxlen=_SWEEPS)

    def reset(self) -> None:
        """Forget all."""
        self._before.clear()

    def add(self, look: Look, points: Float64, ids: Array) -> None:
        """Add a sweep: points (I, K, 3) of things with ids (I,)."""
        self._before.append((look, points, ids))

    def gone(self, look: Look, ids: Array) -> Float64:
        """(T,) share of the earlier points of tracks that the beams of a sweep pass."""
        if not self._before or not len(ids):
            return np.zeros(len(ids))
        passed = look.passed(np.concatenate([points for _, points, _ in self._before]))
        owners = np.concatenate([owners for _, _, owners in self._before])
        share: Float64 = ((owners[:, None] == ids) * passed[:, None]).max(0, initial=0.0)
        return share

    def new(self, points: Float64) -> Float64:
        """(I,) share of the points of things at places that the first beams passed."""
        return self._before[0][0].passed(points) if self._before else np.zeros(len(points))


def few_points(things: Grouped, chosen: Array | slice = slice(None)) -> Float64:
    """(I, K, 3) some of the points of things, the same number of each."""
    starts, counts = things.starts[chosen, None], things.counts[chosen, None]
    return things.points.take(starts + (counts * _FEW).astype(np.int64), 0)


def share_of(chosen: npt.NDArray[np.bool_]) -> Float64:
    """(...) share of the few points of each thing (..., K) that are chosen; K < 256."""
    share: Float64 = np.einsum("...k->...", chosen.view(np.uint8)) / chosen.shape[-1]
    return share


def facing_edges(tracks: Array, low: Float64, high: Float64, sensor: Float64) -> Float64:
    """Edges (K, 2) of new vehicles that are seen to move, which tell where they are.

    They face the sensor. The others are where less is seen of what drives away, and more of what
    comes nearer.

    Args:
        tracks: (K,) STATE.
        low, high: (K, 2) of what is seen of each, along the axes of its box [m].
        sensor: (K, 2) its place in the same axes.

    Returns:
        1 for the lower edge, -1 for the upper one, 0 for none.
    """
    half = tracks["size"][:, :2] / 2
    lower = (sensor < low - _BEFORE_M) & (np.abs(low + half) < _SHIFT_M)
    upper = (sensor > high + _BEFORE_M) & (np.abs(high - half) < _SHIFT_M)
    edges = lower * 1.0 - upper
    moves = (tracks["group"] == VEHICLES) & (tracks["moves"] > _MOVES)
    facing: Float64 = edges * (moves & (tracks["hits"] < _SETTLED))[:, None]
    return facing


def stand(tracks: Array, passed: Float64, elsewhere: Float64) -> None:
    """Measure the velocity 0 of vehicles, with a noise that grows as they are seen to move.

    Args:
        tracks: (K,) STATE.
        passed: (K,) share of the points of each at places that beams pass at another time.
        elsewhere: (K,) share of the extent of each outside its last box.
    """
    passed = passed * np.maximum(tracks["size"][:, :2].max(1) / _LONG_M, 1)
    tracks["moves"] += np.maximum(_GAIN, 1 / tracks["hits"]) * (passed - tracks["moves"])
    speed = (tracks["velocity"] ** 2).sum(1) / _FAST_MPS**2
    moves = tracks["moves"] + _UNKNOWN * elsewhere / (1 + speed)
    noise = _STANDS_MPS**2 * np.exp(np.minimum(2 * moves / _SCALE, 50))
    noise[tracks["group"] != VEHICLES] = np.inf
    p, c, v = tracks["variance"].T
    gain, rate = c / (v + noise), v / (v + noise)
    tracks["position"] -= gain[:, None] * tracks["velocity"]
    tracks["velocity"] -= rate[:, None] * tracks["velocity"]
    tracks["variance"] = np.array([p - gain * c, (1 - rate) * c, (1 - rate) * v]).T
