# SPDX-License-Identifier: Apache-2.0
"""Lost beams: some beams missing, and another sensor with fewer beams."""

from __future__ import annotations

import numpy as np

from pcseg_core.beams import beams_of
from pcseg_core.corruptions.corrupted import (
    Array,
    Corrupted,
    LabeledCloud,
    Rng,
    Severity,
    corrupted,
)

_QUARTERS: dict[Severity, int] = {"light": 1, "moderate": 2, "heavy": 3}
_STEP: dict[Severity, float] = {"light": 4, "moderate": 2, "heavy": 1.33}
# First and last beam that may be lost, of sensors whose definition is published.
_LOST_BETWEEN = {64: (4, 58), 32: (2, 28)}


def beam_missing(scene: LabeledCloud, severity: Severity, rng: Rng) -> Corrupted:
    """A quarter, half or three quarters of the beams are drawn, with replacement, and lost.

    Of 64 beams 16, 32 or 48 are drawn from 4 to 58, of 32 beams 8, 16 or 24 from 2 to 28, of
    other sensors the same shares. Drawn twice is lost once, so that fewer go.
    """
    beam, count = beams_of(scene.cloud)
    first, last = _LOST_BETWEEN.get(count, (round(count / 16), round(count * 0.9)))
    drawn = rng.integers(first, last + 1, 3 * count // 4)
    lost = drawn[: _QUARTERS[severity] * count // 4]
    return corrupted(scene.cloud, keep=~np.isin(beam, lost))


def cross_sensor(scene: LabeledCloud, severity: Severity, rng: Rng) -> Corrupted:
    """A quarter, half or three quarters of the beams go evenly, then every second point.

    Beams 1, 1 + step, ... go, for steps of 4, 2 and 1.33. Every second point of each beam goes:
    in clouds that are stored beam by beam, every second point.
    """
    beam, count = beams_of(scene.cloud)
    lost = np.arange(1, count, _STEP[severity]).astype(np.int64)
    keep = ~np.isin(beam, lost)
    left = np.flatnonzero(keep)
    keep[left[_rank(beam[left]) % 2 == 1]] = False
    return corrupted(scene.cloud, keep=keep)


def _rank(beam: Array) -> Array:
    """Position (N,) of each point among those of its beam."""
    order = np.argsort(beam, kind="stable")
    starts = np.flatnonzero(np.diff(beam[order], prepend=-1))
    lengths = np.diff(np.append(starts, len(beam)))
    rank = np.empty(len(beam), np.int64)
    rank[order] = np.arange(len(beam)) - np.repeat(starts, lengths)
    return rank
