# SPDX-License-Identifier: Apache-2.0
"""Flicker: how often a place changes its label from one sweep to the next."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.labels import IGNORE

Array = npt.NDArray[Any]
Pairs = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]

REACH_M = 0.1
"""A point is at the place of the nearest one of the sweep before, if that is not farther."""


class Pairing:
    """Finds the points of successive sweeps that lie at the same place of the world.

    What moves faster than the reach per sweep finds no partner, so that almost all pairs are of
    what stands still; no label is needed to tell.
    """

    def __init__(self, stride: int = 4) -> None:
        """Every `stride`-th point of a sweep looks for a partner."""
        self._stride = stride
        self._before: Any = None  # KD tree of the last sweep, and which of its points it holds

    def add(self, world: Array) -> Pairs | None:
        """Pairs with the sweep before: positions in this sweep, and in that one.

        Args:
            world: (N, 3) points in a fixed frame [m]; NaN allowed.
        """
        from scipy.spatial import cKDTree

        kept = np.flatnonzero(np.isfinite(world).all(1))
        before, self._before = self._before, (cKDTree(world[kept]) if len(kept) else None, kept)
        if before is None or before[0] is None:
            return None
        chosen = kept[:: self._stride]
        distance, nearest = before[0].query(world[chosen], distance_upper_bound=REACH_M)
        found = np.isfinite(distance)
        return chosen[found], before[1][nearest[found]]


class Flicker:
    """Share of paired points whose label differs from that of their partner."""

    def __init__(self) -> None:
        self.pairs = 0
        self.changed = 0
        self.last: Array | None = None  # labels of the sweep before

    def add(self, labels: Array, pairs: Pairs | None) -> float | None:
        """Count a sweep and give its own share; None without pairs.

        Args:
            labels: (N,) class ids of the sweep, IGNORE for none; such points are left out.
            pairs: from `Pairing`, with the sweep that was added before.
        """
        last, self.last = self.last, labels
        if last is None or pairs is None:
            return None
        here, there = labels[pairs[0]], last[pairs[1]]
        known = (here != IGNORE) & (there != IGNORE)
        count, changed = int(known.sum()), int((here != there)[known].sum())
        self.pairs += count
        self.changed += changed
        return changed / count if count else None

    @property
    def share(self) -> float | None:
        """Of all sweeps, 0..1; None without pairs."""
        return self.changed / self.pairs if self.pairs else None
