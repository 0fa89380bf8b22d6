# SPDX-License-Identifier: Apache-2.0
"""Kalman filters of constant velocity for boxes in the ground plane, and their assignment."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from pcseg_core.online.boxes import Grouped
from pcseg_core.online.thing_parts import VEHICLES, Rectangles, is_vehicle, native_costs
from pcseg_core.online.track_motion import facing_edges, stand

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

STATE = np.dtype(
    [
        ("id", np.uint32),
        ("group", np.int64),
        ("label", np.int64),
        ("agreed", np.int64),  # sweeps that agreed on the label, less those that did not
        ("position", np.float64, 2),  # center in the fixed frame [m]
        ("velocity", np.float64, 2),  # [m/s]
        ("variance", np.float64, 3),  # of position, of both, of velocity; the same for x and y
        ("yaw", np.float64),
        ("size", np.float64, 3),
        ("bottom", np.float64),
        ("moves", np.float64),  # mean share of its points that are seen to have moved
        ("before", np.float64, 2),  # position at the sweep before
        ("hits", np.int64),
        ("missed_s", np.float64),
        ("age_s", np.float64),
    ],
    align=True,
)

_RAW = np.dtype(("V", STATE.itemsize))  # numpy copies records of fields field by field

_NOISE_M = 0.15  # of a measured edge
_ACCELERATION = 2.0  # spectral density of the acceleration [m^2/s^3]
_SPEED_MPS = 7.0  # standard deviation of the velocity of a new track
_NEW = (_NOISE_M**2, 0.0, _SPEED_MPS**2)  # variance of a new track
AT_REST = (0.25, 0.0, 0.25)  # the same of a vehicle that stands, not seen
_GATE = 11.0  # squared normalized distance
_STANDS_M = 1.0  # farthest that the edge of a vehicle that stands is from where it is expected
_EXCESS_M = 0.5  # by which a thing may be longer than a track at no cost
_MOST_EXCESS = 4.0  # the most that this costs: a side may be seen for the first time
_MIDDLE_M = 0.1  # least room of a thing in its box, or of the box in it, whose middle tells nothing
_LEAST_M = 0.5  # extent of a thing of which the share outside its box counts
_GROW, _SHRINK = 0.4, 0.02  # per sweep, of the difference between measured and known extent
_TURN = 0.3  # the same for the heading
_TURN_M = 1.0  # least extent, and
_CLEAR_POINTS = 15  # points, of a thing whose heading counts, and the edge that faces the sensor
_HEADED_MPS = 2.0  # speed from which the heading is that of the velocity
APART = 10  # sweeps that a track was seen in from which it is no part of another one
_COAST_PER_HIT_S = 0.2  # time that a track is predicted for each sweep it was seen in


@dataclass(frozen=True)
class Measured:
    """The things of a sweep.

    Attributes:
        grouped: their points in the fixed frame, (I) things.
        yaws: (I,) headings of their edges, modulo a right angle [rad].
        groups: (I,) group of classes.
        labels: (I,) classes.
    """

    grouped: Grouped
    yaws: Float64
    groups: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.yaws)

    @cached_property
    def extents(self) -> tuple[Float64, Float64]:
        """Lowest and highest coordinates (I, 3) along the headings, across them, and upward."""
        return self.grouped.extents(self.yaws)

    @cached_property
    def boxes(self) -> Rectangles:
        """The boxes of the things."""
        groups = np.ascontiguousarray(self.groups, np.int64)
        return Rectangles(self.grouped.boxes(self.yaws), groups)


def none() -> Array:
    """No tracks, (0,) of STATE."""
    return np.zeros(0, STATE)


def with_(tracks: Array, others: Array) -> Array:
    """Tracks, and others after them."""
    return np.concatenate([tracks.view(_RAW), others.view(_RAW)]).view(STATE)


def predict(tracks: Array, step_s: float) -> Array:
    """The tracks after a time: white noise acceleration.

    Bar-Shalom et al., "Estimation with Applications to Tracking and Navigation", 2001, 6.2.2.
    """
    tracks, t, q = tracks.copy(), step_s, _ACCELERATION
    tracks["before"] = tracks["position"]
    tracks["position"] += t * tracks["velocity"]
    p, c, v = tracks["variance"].T
    tracks["variance"] = np.array(
        [p + 2 * t * c + t * t * v + q * t**3 / 3, c + t * v + q * t * t / 2, v + q * t]
    ).T
    tracks["missed_s"] += t
    tracks["age_s"] += t
    return tracks


def assign(tracks: Array, things: Measured, still: Array) -> tuple[Array, Array]:
    """Tracks and things that belong together, most likely in total: rows (K,) of both.

    The cost is twice the negative logarithm of the likelihood. The normalized distance alone would
    favor the tracks with the largest variance.

    Args:
        tracks: (T,) STATE, predicted.
        things: (I) those of the sweep.
        still: (T, I) bool: the beams show no motion of either.
    """
    cost, variance = _distance(tracks, things.boxes), _spread(tracks)
    cost[tracks["group"][:, None] != things.groups] = np.inf
    still = still & (tracks["group"] == VEHICLES)[:, None]
    cost[still & (cost * variance[:, None] > _STANDS_M**2)] = np.inf
    return pairs(cost + 2 * np.log(variance)[:, None])


def measure_anew(tracks: Array, rows: Array | int) -> None:
    """Forget how fast tracks are."""
    tracks["variance"][rows] = _NEW


def pairs(cost: Float64) -> tuple[Array, Array]:
    """Rows and columns (K,) of least total cost, none of them infinite."""
    rows, columns = linear_sum_assignment(np.minimum(cost, 1e6))
    finite = np.isfinite(cost[rows, columns])
    return rows[finite], columns[finite]


def _distance(tracks: Array, boxes: Rectangles) -> Float64:
    """Squared normalized distance (T, I) of things from predicted boxes; infinite beyond the gate.

    Along the axes of the tracks or along those of the things, whichever is less.
    """
    variance = _spread(tracks)
    settings = _EXCESS_M, _MOST_EXCESS, _MIDDLE_M
    found = native_costs(boxes_of(tracks), boxes, variance, (*settings, _GATE))
    if found is not None:
        return found
    # Of shape (2, T, I): the axes of the tracks, and those of the things.
    yaw = np.stack(np.broadcast_arrays(tracks["yaw"][:, None], boxes.yaw))
    size = tracks["size"][:, None, :2]
    odd = np.round((yaw - tracks["yaw"][:, None]) / (np.pi / 2)).astype(np.int64) % 2 == 1
    along = np.abs(np.cos(boxes.yaw - yaw)), np.abs(np.sin(boxes.yaw - yaw))
    apart = boxes.center - tracks["position"][:, None]
    cos, sin = np.cos(yaw), np.sin(yaw)
    total, longer = np.zeros(yaw.shape), np.zeros(yaw.shape)
    for axis, way in enumerate(((cos, sin), (-sin, cos))):
        known = np.where(odd, size[..., 1 - axis], size[..., axis])
        seen = along[axis] * boxes.size[:, 0] + along[1 - axis] * boxes.size[:, 1]
        shift, _ = _shift(apart[..., 0] * way[0] + apart[..., 1] * way[1], known, seen)
        total += shift**2
        longer += np.maximum(seen - known - _EXCESS_M, 0) ** 2
    distance: Float64 = (total / variance[:, None] + np.minimum(longer, _MOST_EXCESS)).min(0)
    distance[distance > _GATE] = np.inf
    return distance


def _spread(tracks: Array) -> Float64:
    """(T,) variance of an edge that is measured where a track is expected [m^2]."""
    variance: Float64 = tracks["variance"][:, 0] + _NOISE_M**2
    return variance


def _shift(
    apart: Float64, known: Float64, seen: Float64, facing: Float64 | None = None
) -> tuple[Float64, Float64]:
    """How far a thing has moved along an axis, and which edge tells it; any shape.

    Each edge of the thing may be hidden, and may be seen now for the first time. The one that is
    nearer to its predicted place tells, if it is not known which one does. Of a thing in the middle
    of its box nothing is known else, nor of one that reaches beyond its box on both sides.

    Args:
        apart: center of what is seen from the predicted center [m].
        known, seen: extents of the box and of what is seen [m].
        facing: the edge that tells, as it is returned; None if that is known of none.

    Returns:
        The shift [m]; 1 for the lower edge, -1 for the upper one, 0 for none.
    """
    slack = (known - seen) / 2
    low, high = apart + slack, apart - slack
    facing = np.zeros(()) if facing is None else facing
    lower = np.where(facing == 0, np.abs(low) <= np.abs(high), facing > 0)
    shift = np.where(lower, low, high)
    room = np.abs(slack)
    middle = (room > _MIDDLE_M) & (np.abs(shift) > room / 2) & (np.abs(apart) < room)
    middle &= facing == 0
    return np.where(middle, 0.0, shift), np.where(middle, 0.0, np.where(lower, 1.0, -1.0))


def correct(
    tracks: Array, rows: Array, things: Measured, numbers: Array, passed: Float64, sensor: Float64
) -> None:
    """Update tracks by the things that are assigned to them.

    Args:
        tracks: (T,) STATE, predicted.
        rows, numbers: (K,) of tracks and their things.
        things: those of the sweep.
        passed: (K,) see `stand`.
        sensor: (3,) place of the sensor.
    """
    if not len(rows):
        return
    old = tracks.take(rows)
    old["yaw"] += _turn(old, things, numbers)
    low, high = _extents(old, things, numbers)
    seen, apart = high - low, (low + high)[:, :2] / 2
    at = _turned(old, sensor[:2] - old["position"])
    facing = facing_edges(old, low[:, :2], high[:, :2], at)
    facing[things.grouped.counts[numbers] < _CLEAR_POINTS] = 0
    shift, edge = _shift(apart, old["size"][:, :2], seen[:, :2], facing)
    elsewhere = _elsewhere(old, low, high)
    _filter(old, shift)
    stand(old, passed, elsewhere)
    _resize(old, seen, edge, apart)
    old["bottom"] += np.maximum(0.3, 1 / (1 + old["hits"])) * (low[:, 2] - old["bottom"])
    _head(old)
    agree = old["label"] == things.labels[numbers]
    old["agreed"] = np.where(agree, np.minimum(old["agreed"] + 1, 20), old["agreed"] - 1)
    old["label"] = np.where(old["agreed"] < 0, things.labels[numbers], old["label"])
    old["agreed"] = np.maximum(old["agreed"], 0)
    old["hits"] += 1
    old["missed_s"] = 0.0
    tracks.put(rows, old)


def _turn(old: Array, things: Measured, numbers: Array) -> Float64:
    """Change (K,) of the headings: toward the nearest edge of the things [rad]."""
    difference = (things.yaws[numbers] - old["yaw"] + np.pi / 4) % (np.pi / 2) - np.pi / 4
    length, width = things.boxes.size.take(numbers, 0).T
    clear = things.grouped.counts[numbers] >= _CLEAR_POINTS
    clear &= np.maximum(length, width) >= _TURN_M
    corner = np.minimum(length, width) >= _TURN_M
    gain = np.maximum(np.where(corner, 2 * _TURN, _TURN), 1 / (1 + old["hits"]))
    return np.where(clear, gain * difference, 0.0)


def _extents(old: Array, things: Measured, numbers: Array) -> tuple[Float64, Float64]:
    """Lowest and highest coordinates (K, 3) of things in the frames of their tracks."""
    yaws = np.zeros(len(things))
    yaws[numbers] = old["yaw"]
    low, high = (ends.take(numbers, 0) for ends in things.grouped.extents(yaws))
    center = _turned(old, old["position"])
    low[:, :2] -= center
    high[:, :2] -= center
    return low, high


def _elsewhere(old: Array, low: Float64, high: Float64) -> Float64:
    """(K,) share of the extents of things outside the boxes as they were before the prediction."""
    moved = _turned(old, old["position"] - old["before"])
    half, low, high = old["size"][:, :2] / 2, low[:, :2] + moved, high[:, :2] + moved
    beyond = np.maximum(high - half, 0) + np.maximum(-half - low, 0)
    along, across = (beyond / np.maximum(high - low, _LEAST_M)).T
    share: Float64 = np.minimum(np.maximum(along, across), 1)
    return share


def _filter(old: Array, shift: Float64) -> None:
    """Kalman update of position and velocity by a shift (K, 2) in the frames of the boxes [m]."""
    p, c, v = old["variance"].T
    gain, rate = p / (p + _NOISE_M**2), c / (p + _NOISE_M**2)
    move = _to_fixed(old, shift)
    old["position"] += gain[:, None] * move
    old["velocity"] += rate[:, None] * move
    rest = 1 - gain
    old["variance"] = np.array([rest * p, rest * c, v - rate * c]).T


def _turned(old: Array, vector: Float64) -> Float64:
    """Vectors (K, 2) of the fixed frame along and across the boxes."""
    cos, sin = np.cos(old["yaw"]), np.sin(old["yaw"])
    x, y = vector.T
    turned: Float64 = np.array([x * cos + y * sin, y * cos - x * sin]).T
    return turned


def _to_fixed(old: Array, vector: Float64) -> Float64:
    cos, sin = np.cos(old["yaw"]), np.sin(old["yaw"])
    x, y = vector.T
    turned: Float64 = np.array([x * cos - y * sin, x * sin + y * cos]).T
    return turned


def _resize(old: Array, seen: Float64, edge: Float64, apart: Float64) -> None:
    """Adapt the extents to those seen (K, 3); the edges (K, 2) of `_shift` stay where they are.

    A box that grows without such an edge grows over what is seen, whose center is `apart` (K, 2).
    That of a vehicle grows at once as long as it is no larger than one.
    """
    gap = seen - old["size"]
    at_once = is_vehicle(old["group"], np.maximum(old["size"], seen))
    grow = np.where(at_once, 1.0, np.maximum(_GROW, 1 / (1 + old["hits"])))[:, None]
    gain = np.where(gap > 0, grow, _SHRINK)
    growth = gain * gap
    over = (edge == 0) & (gap[:, :2] > 0)
    move = np.where(over, gain[:, :2] * apart, edge * growth[:, :2] / 2)
    old["position"] += _to_fixed(old, move)
    old["size"] += growth


def _head(old: Array) -> None:
    """Turn boxes by right angles: along the velocity, or at rest along their longer side."""
    x, y = old["velocity"].T
    speed, course = np.sqrt(x * x + y * y), np.arctan2(y, x)
    headed = speed > _HEADED_MPS
    quarter = np.round((course - old["yaw"]) / (np.pi / 2))
    wide = old["size"][:, 1] > 1.2 * old["size"][:, 0]
    quarter = np.where(headed, quarter, np.where(wide, 1, 0)).astype(np.int64)
    old["yaw"] = (old["yaw"] + quarter * np.pi / 2 + np.pi) % (2 * np.pi) - np.pi
    odd = quarter % 2 == 1
    old["size"][odd, :2] = old["size"][odd, 1::-1]


def begin(things: Measured, numbers: Array, first_id: int) -> Array:
    """Tracks (K,) of things that have none."""
    new = np.zeros(len(numbers), STATE)
    if not len(numbers):
        return new
    low, high = (ends[numbers] for ends in things.extents)
    new["id"] = first_id + np.arange(len(numbers))
    new["group"], new["label"] = things.groups[numbers], things.labels[numbers]
    new["yaw"] = things.yaws[numbers]
    new["size"], new["bottom"] = high - low, low[:, 2]
    new["position"] = _to_fixed(new, (low + high)[:, :2] / 2)
    new["variance"] = _NEW
    new["hits"] = 1
    _head(new)
    return new


def seen_within(tracks: Array, coast_s: float, times: float = 1.0) -> Array:
    """(K,) bool: seen within as many times the time for which a track is predicted."""
    longest = np.minimum(coast_s, _COAST_PER_HIT_S * tracks["hits"])
    within: Array = tracks["missed_s"] <= times * longest
    return within


def without_copies(tracks: Array) -> tuple[Array, dict[int, int]]:
    """Tracks but vehicles whose center is in an older one; and that one of those left out."""
    boxes = boxes_of(tracks)
    covered = boxes.outside(boxes.center) < 0
    np.fill_diagonal(covered, False)
    if not covered.any():
        return tracks, {}
    chosen = (tracks["group"] == VEHICLES) & (tracks["missed_s"] == 0)
    covered &= chosen[:, None] & (chosen & (tracks["hits"] <= APART))
    covered &= (tracks["hits"][:, None] > tracks["hits"]) | (
        (tracks["hits"][:, None] == tracks["hits"]) & (tracks["id"][:, None] < tracks["id"])
    )
    older = np.where(covered, tracks["hits"][:, None], -1).argmax(0) if len(tracks) else []
    copies = covered.any(0)
    instead = {int(tracks["id"][k]): int(tracks["id"][older[k]]) for k in np.flatnonzero(copies)}
    return tracks[~copies], instead


def boxes_of(tracks: Array) -> Rectangles:
    """The boxes of tracks."""
    size, bottom = tracks["size"], tracks["bottom"]
    top = bottom + size[:, 2]
    return Rectangles.of(
        tracks["position"], tracks["yaw"], size[:, :2], bottom, top, tracks["group"]
    )
