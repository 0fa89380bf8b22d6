# SPDX-License-Identifier: Apache-2.0
"""Standing vehicles that are not seen because something is in front of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.online import track_filter as filter_
from pcseg_core.online.thing_parts import VEHICLES
from pcseg_core.online.track_motion import Look

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_STANDS_MPS = 1.0  # speed below which a vehicle stands
_LONGER = 5.0  # times as long as others are vehicles predicted that are hidden
_MARGIN_M = 0.5  # by which returns must be nearer than a place that they hide
_SHARE = 0.5  # of the places in a box that are hidden
_PLACES = np.stack(np.meshgrid([-0.3, 0.0, 0.3], [-0.3, 0.0, 0.3], [0.3, 0.7]), -1).reshape(-1, 3)


def survivors(tracks: Array, coast_s: float, look: Look) -> Array:
    """Tracks that were seen lately, and those of standing vehicles that are hidden now.

    Those are taken to stand on. Where a driving one is grows unsure too fast to wait for it: the
    tracks of others would be taken for it.

    Args:
        tracks: (K,) STATE.
        coast_s: longest time that a track is predicted without being seen [s].
        look: the sweep.
    """
    kept = filter_.seen_within(tracks, coast_s)
    if kept.all():
        return tracks
    stands = np.hypot(*tracks["velocity"].T) < _STANDS_MPS
    late = ~kept & stands & (tracks["group"] == VEHICLES)
    late &= filter_.seen_within(tracks, coast_s, _LONGER)
    if late.any():
        kept[late] = _hidden(tracks.compress(late), look)
        late &= kept
        tracks["velocity"][late] = 0.0
        tracks["variance"][late] = filter_.AT_REST
    return tracks.compress(kept)


def _hidden(tracks: Array, look: Look) -> Mask:
    """(K,) bool: most of the predicted box is behind something; False where it is seen empty."""
    x, y, up = np.moveaxis(_PLACES * tracks["size"][:, None], -1, 0)
    cos, sin = np.cos(tracks["yaw"])[:, None], np.sin(tracks["yaw"])[:, None]
    places = np.stack([x * cos - y * sin, x * sin + y * cos, up], -1)
    places[..., :2] += tracks["position"][:, None]
    places[..., 2] += tracks["bottom"][:, None]
    hidden = look.free.behind(look.local(places), _MARGIN_M).reshape(len(tracks), -1)
    found: Mask = hidden.mean(1) >= _SHARE
    return found
