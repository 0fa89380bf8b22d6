# SPDX-License-Identifier: Apache-2.0
"""Tracks that turn out to be of one vehicle."""

from __future__ import annotations

import numpy as np
import pytest

from pcseg_core.online.boxes import Grouped
from pcseg_core.online.thing_parts import VEHICLES
from pcseg_core.online.track_filter import STATE, Measured, assign
from pcseg_core.online.track_unions import drive_as_one


@pytest.mark.parametrize(("aside_m", "left"), [(0.0, [1]), (1.75, [1, 2])])
def test_what_drives_beside_a_vehicle_is_no_part_of_it(aside_m: float, left: list[int]) -> None:
    """Not even if it is so high that both together are no larger than a truck."""
    pair = np.zeros(2, STATE)
    pair["id"], pair["group"], pair["hits"] = (1, 2), VEHICLES, (8, 4)
    pair["velocity"], pair["variance"] = (8.0, 0.0), (0.01, 0.0, 0.1)
    pair["position"] = (0.0, 0.0), (-1.5, aside_m)
    pair["size"], pair["bottom"] = ((2.8, 1.7, 1.3), (0.9, 1.2, 2.0)), (0.0, 1.0)
    assert drive_as_one(pair)["id"].tolist() == left


def pair_and_rear() -> tuple[np.ndarray, Measured]:
    """A track of a rear, a new one of a part 1.9 m ahead of it, and both as one thing."""
    pair = np.zeros(2, STATE)
    pair["id"], pair["group"], pair["hits"] = (1, 2), VEHICLES, (6, 1)
    pair["position"], pair["size"] = ((0.0, 0.0), (1.1, 0.0)), ((0.4, 1.8, 1.3), (0.1, 1.2, 0.2))
    pair["variance"] = ((0.02, 0.02, 0.4), (0.5, 4.9, 49.0))
    x, y, z = np.meshgrid([-0.2, 1.9], np.linspace(-0.9, 0.9, 7), [0.0, 1.3])
    points = np.stack([x.ravel(), y.ravel(), z.ravel()], 1)
    grouped, _ = Grouped.of(points, np.zeros(len(points), np.int64))
    return pair, Measured(grouped, np.zeros(1), np.full(1, VEHICLES), np.zeros(1, np.int64))


def test_a_thing_is_given_to_the_track_that_is_known_better() -> None:
    """Although it is nearer to the other one, in terms of its variance."""
    pair, thing = pair_and_rear()
    nothing = np.zeros((2, 1), bool)
    of_track, of_thing = assign(pair, thing, nothing)
    assert (of_track.tolist(), of_thing.tolist()) == ([0], [0])
    assert assign(pair[1:], thing, nothing[1:])[0].tolist() == [0]


@pytest.mark.parametrize(
    ("way_m", "stands", "found"), [(1.5, False, 1), (1.5, True, 0), (0.8, True, 1)]
)
def test_what_stands_is_no_vehicle_beside_its_place(way_m: float, stands: bool, found: int) -> None:
    pair, thing = pair_and_rear()
    new = pair[1:].copy()
    new["size"], new["position"] = (2.1, 1.8, 1.3), (0.85 - way_m, 0.0)
    assert len(assign(new, thing, np.full((1, 1), stands))[0]) == found
