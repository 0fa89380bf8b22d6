# SPDX-License-Identifier: Apache-2.0
"""Ground and way: heights, curbs, street plan, and a vehicle that keeps to its lane."""

from __future__ import annotations

import numpy as np
import pytest

from pcseg_core.simulation.ground import Ground
from pcseg_core.simulation.materials import Material
from pcseg_core.simulation.route import distances, plan_route
from pcseg_core.simulation.streets import Streets
from pcseg_core.simulation.towns import TOWNS, find_town


def make(town: str = "suburb", seed: int = 0) -> tuple[Ground, np.random.Generator]:
    rng = np.random.default_rng(seed)
    style = find_town(town)
    return Ground(Streets(style, rng, 400), rng, style.relief_m), rng


@pytest.fixture(scope="module", params=["suburb", "center"])
def hits(request: pytest.FixtureRequest):
    """Rays all around from above a street crossing: ground, ranges, curb flags, points."""
    ground, rng = make(request.param)
    azimuth, elevation = rng.uniform(0, 6.28, 40_000), np.radians(rng.uniform(-60, 4, 40_000))
    flat = np.cos(elevation)
    d = np.stack([np.cos(azimuth) * flat, np.sin(azimuth) * flat, np.sin(elevation)], 1)
    x, y = (float(c) for c in ground.streets.to_world(1.0, 2.0))
    origin = np.array([x, y, ground.height(x, y) + 1.8])
    t, curb = ground.cast(origin[None], d, 250.0)
    with np.errstate(invalid="ignore"):
        points = origin + t[:, None] * d
    return ground, t, curb, points, d


def test_rays_end_on_the_surface(hits):
    ground, t, curb, points, _ = hits
    flat = np.isfinite(t) & ~curb
    assert flat.mean() > 0.8
    x, y, z = points[flat].T
    off_border = np.abs(ground.streets.inside(x, y)) > 1e-3
    error = np.abs(z - ground.standing(x, y))[off_border]
    assert error.max() < 1e-4


def test_curbs_are_met_at_the_border_of_blocks(hits):
    ground, _, curb, points, _ = hits
    assert curb.sum() > 100
    x, y, z = points[curb].T
    assert np.abs(ground.streets.inside(x, y)).max() < 1e-3
    above = z - ground.height(x, y)
    assert above.min() > -1e-3 and above.max() < ground.curb_m + 1e-3


def test_nothing_is_passed_through(hits):
    """Along every ray, all points before the hit lie above the surface."""
    ground, t, _, points, d = hits
    origin = points[np.isfinite(t)][0] - t[np.isfinite(t)][0] * d[np.isfinite(t)][0]
    for share in np.linspace(0.02, 0.98, 25):
        reach = np.where(np.isfinite(t), t, 250.0) * share
        x, y, z = (origin + reach[:, None] * d).T
        assert np.mean(z - ground.standing(x, y) > -1e-3) > 0.9995


def test_normals_are_across_the_slope():
    ground, rng = make()
    x, y = rng.uniform(-100, 100, (2, 200))
    normal = ground.normals(x, y, np.zeros(200, bool), np.zeros((200, 3)))
    step = 1e-3
    rise_x = (ground.height(x + step, y) - ground.height(x - step, y)) / (2 * step)
    rise_y = (ground.height(x, y + step) - ground.height(x, y - step)) / (2 * step)
    one, none = np.ones(200), np.zeros(200)
    for tangent in (np.stack([one, none, rise_x], 1), np.stack([none, one, rise_y], 1)):
        assert np.abs((tangent * normal).sum(1)).max() < 1e-5


@pytest.mark.parametrize("town", TOWNS)
def test_plan_bends_into_the_world_and_back(town: str):
    ground, rng = make(town, 3)
    u, v = rng.uniform(-300, 300, (2, 500))
    back = ground.streets.to_plan(*ground.streets.to_world(u, v))
    assert np.stack(back) == pytest.approx(np.stack([u, v]), abs=1e-9)


def test_ground_materials_from_the_middle_of_a_street_outwards():
    ground, _ = make("avenue", 1)
    streets = ground.streets
    line = len(streets.lines[0]) // 2
    middle = float((streets.lines[1][line] + streets.lines[1][line + 1]) / 2)
    u0, half, bay = streets.lines[0][line], streets.half[0][line], streets.bays[0][line]
    assert bay > 0, "the street was chosen for its bays"
    town = streets.town
    for offset, expected in (
        (half - bay - 0.8, Material.ASPHALT),
        (half - bay, Material.ROAD_PAINT),
        (half + town.verge_m / 2, Material.GRASS),
        (half + town.verge_m + town.sidewalk_m / 2, Material.PAVING),
    ):
        x, y = streets.to_world(np.array([u0 + offset]), np.array([middle]))
        assert streets.materials(x, y)[0] == expected, offset
    along = middle + np.arange(160) / 20
    bays = streets.materials(*streets.to_world(np.full(160, u0 + half - 1.1), along))
    assert set(bays.tolist()) == {Material.BAYS, Material.ROAD_PAINT}


@pytest.mark.parametrize("town", TOWNS)
@pytest.mark.parametrize("seed", range(3))
def test_the_route_stays_on_the_road_and_on_the_right(town: str, seed: int):
    ground, rng = make(town, seed)
    route = plan_route(ground.streets, rng, 250, 0.8)
    assert route.distance[-1] > 250
    x, y = route.xy.T
    assert ground.streets.inside(x, y).max() < -0.7  # half a car's width from any curb
    left = route.xy + 1.2 * np.stack([-np.sin(route.yaw), np.cos(route.yaw)], 1)
    straight = np.abs(np.gradient(route.yaw, route.distance)) < 0.005
    inside_right = -ground.streets.inside(x, y)[straight]
    inside_left = -ground.streets.inside(*left.T)[straight]
    assert np.mean(inside_left > inside_right - 1e-6) > 0.8  # the curb is nearer on the right


def test_speed_falls_in_turns_and_time_never_runs_back():
    ground, rng = make("center", 2)
    route = plan_route(ground.streets, rng, 250, 1.0)
    times = np.arange(-1, 25, 0.01)
    along = distances(route, 9.0, 20.0, times)
    speed = np.gradient(along, times)[5:-5]
    assert np.interp(0.0, times, along) == pytest.approx(20.0, abs=0.01)
    assert speed.min() > 1.5 and speed.max() == pytest.approx(9.0, abs=0.1)
    yaw = np.interp(along, route.distance, route.yaw)
    sideways = np.abs(np.gradient(yaw, times)[5:-5] * speed)
    assert np.ptp(yaw) > 1.0 and sideways.max() < 4.0
