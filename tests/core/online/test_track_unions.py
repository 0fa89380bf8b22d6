# SPDX-License-Identifier: Apache-2.0
"""Tracks that turn out to be of one vehicle."""

from __future__ import annotations

import numpy as np
import pytest

from pcseg_core.online.thing_parts import VEHICLES
from pcseg_core.online.track_filter import STATE
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
