# SPDX-License-Identifier: Apache-2.0
"""What is known of things from the sweeps before: what moves, and tracks. Labels do not need it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pcseg_core.labels import UNKNOWN
from pcseg_core.online.free_space import FreeSpace
from pcseg_core.online.moving import MovingThings
from pcseg_core.online.tracks import Tracked, Tracker, TrackRules
from pcseg_core.online.trails import Trails

if TYPE_CHECKING:
    from pcseg_core.online.pipeline import LabeledSweep, Voxels


class OverTime:
    """Adds `moving` and `tracked` to labeled sweeps. `reset` may be called from any thread."""

    def __init__(self) -> None:
        self._moving, self._trails, self._tracker = MovingThings(), Trails(), Tracker()
        self._forget = False

    @property
    def counters(self) -> dict[str, int]:
        """Number of tracks now, and since the start; empty without any."""
        begun = self._tracker.begun
        return {"tracks": self._tracker.count, "tracks begun": begun} if begun else {}

    def reset(self) -> None:
        """Forget earlier sweeps before the next one."""
        self._forget = True

    def add(self, labeled: LabeledSweep, moving: bool, tracks: TrackRules | None) -> None:
        """Fill in `moving`, and `tracked` if there are rules of tracks.

        Without a pose nothing is known: all points are UNKNOWN and in no track.
        """
        if self._forget:
            self._forget = False
            self._moving.reset()
            self._trails.reset()
            self._tracker.reset()
        arguments = labeled.cloud, labeled.labels, labeled.label_space
        count, pose = len(labeled.labels), labeled.pose
        free = None
        if moving:
            labeled.moving = np.full(count, UNKNOWN, np.uint8)
            if pose is not None:
                free = FreeSpace.of(labeled.cloud)
                labeled.moving = self._moving.update(*arguments, pose, free)
                self._trails.add(labeled.cloud, labeled.moving, pose)
        if tracks is not None:
            nothing = Tracked(np.zeros(count, np.uint32), ())
            labeled.tracked = (
                nothing if pose is None else self._tracker.update(*arguments, pose, tracks, free)
            )

    def without_trails(self, voxels: Voxels, labeled: LabeledSweep) -> Voxels:
        """Voxels around a sweep without those that moving things have left; see `Trails`."""
        if labeled.moving is None:
            return voxels
        return self._trails.outside(voxels, labeled.label_space)
