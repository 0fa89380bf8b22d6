# SPDX-License-Identifier: Apache-2.0
"""The ray caster against hand-computed cases and against testing every ray with every solid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcseg_core.simulation.intersect import SHAPES
from pcseg_core.simulation.primitives import (
    Kind,
    corners,
    distance,
    join,
    rod,
    rotation_matrix,
    solid,
)
from pcseg_core.simulation.raycast import (
    Rays,
    angular_bounds,
    cast,
    grid_tiles,
    shadowed,
    sorted_tiles,
    surface,
)


def one(kind: Kind, center=(10.0, 0.0, 0.0), size=(2.0, 2.0, 2.0), **options) -> np.ndarray:
    return solid(kind, center, size, 0, 0, (0.5, 0.5, 0.5), **options)


def rays_from(origin, directions: np.ndarray, time=None, **options) -> Rays:
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return Rays(
        np.asarray(origin, float),
        np.zeros((1, 3), np.float32),
        unit.astype(np.float32),
        time,
        np.eye(3),
        sorted_tiles(unit),
        **options,
    )


def ranges(table: np.ndarray, origin, *directions) -> np.ndarray:
    rays = rays_from(origin, np.array(directions, float))
    return cast(table, rays, np.full(len(directions), np.inf, np.float32))[0]


def brute_force(table: np.ndarray, rays: Rays) -> tuple[np.ndarray, np.ndarray]:
    """Every ray with every primitive, in float64."""
    best, row = np.full(len(rays.direction), np.inf), np.full(len(rays.direction), -1)
    for k, primitive in enumerate(table):
        to_unit = primitive["rotation"].T / primitive["half"][:, None]
        time = np.zeros(len(best)) if rays.time is None else rays.time.astype(float)
        start = rays.reference + rays.origin - primitive["center"]
        start = start - time[:, None] * primitive["velocity"]
        o, d = start @ to_unit.T, rays.direction.astype(float) @ to_unit.T
        with np.errstate(all="ignore"):
            t = SHAPES[Kind(primitive["kind"])](
                tuple(o.T[:, None]), tuple(d.T[:, None]), table[k : k + 1]
            )[0]
        nearer = t < best
        best[nearer], row[nearer] = t[nearer], k
    return best, row


def random_table(rng: np.random.Generator, count: int) -> np.ndarray:
    parts = []
    for _ in range(count):
        parts.append(
            one(
                Kind(int(rng.integers(len(Kind)))),
                rng.uniform(-40, 40, 3) * (1, 1, 0.3),
                rng.uniform(0.1, 6, 3),
                turn=tuple(rng.uniform(-3, 3, 3)),
                taper=tuple(rng.uniform(0, 0.9, 3)),
                texture=(rng.uniform(0.3, 1.5), rng.uniform(0.3, 0.8), 0, 0),
            )
        )
    table = join(parts)
    return table[distance(table, np.zeros(3)) > 0.5]


def test_ranges_computed_by_hand():
    box = one(Kind.BOX)
    assert ranges(box, (0, 0, 0), (1, 0, 0), (-1, 0, 0), (1, 0.2, 0)) == pytest.approx(
        [9.0, np.inf, np.inf], rel=1e-6
    )
    ball = one(Kind.ELLIPSOID)
    assert ranges(ball, (0, 0, 0), (1, 0, 0))[0] == pytest.approx(9.0, abs=1e-5)
    assert ranges(ball, (0, 0, 0.6), (1, 0, 0))[0] == pytest.approx(10 - 0.8, abs=1e-5)
    post = rod((10, 0, -2), (10, 0, 2), 0.05, 0, 0, (1, 1, 1))
    assert ranges(post, (0, 0, 0), (1, 0, 0))[0] == pytest.approx(9.95, abs=1e-5)
    assert ranges(post, (0, 0, 3), (1, 0, 0), (10, 0, -1.001)) == pytest.approx(
        [np.inf, np.hypot(10, 1.001)], rel=6e-3
    )
    # a gable roof: at half its height its sides have moved halfway in
    roof = one(Kind.TAPERED, taper=(0, 0, 1.0))
    assert ranges(roof, (10, -5, 0), (0, 1, 0))[0] == pytest.approx(4.5, abs=1e-5)
    assert ranges(roof, (10, -5, 0.8), (0, 1, 0))[0] == pytest.approx(4.9, abs=1e-5)


def test_holes_are_open_and_rims_are_not():
    wheel = one(Kind.RING, size=(2, 2, 0.1), turn=(0, 0, np.pi / 2))  # its axis along y
    hub, rim = ranges(wheel, (10, -5, 0), (0, 1, 0))[0], ranges(wheel, (10.95, -5, 0), (0, 1, 0))[0]
    assert hub == np.inf and rim == pytest.approx(4.95, abs=1e-4)
    # bars of 0.1 m every 0.4 m, counted from the end at x = -1
    fence = one(Kind.FENCE, center=(0, 5, 0), size=(2, 0.05, 1), texture=(0.4, 0.25, 0, 0))
    at_bar, in_gap, at_rail = (
        ranges(fence, (x, 0, z), (0, 1, 0))[0] for x, z in ((-0.95, 0), (-0.75, 0), (-0.75, 0.45))
    )
    assert at_bar == pytest.approx(4.975, abs=1e-4) and in_gap == np.inf and at_rail < 5
    crown = one(Kind.FOLIAGE, texture=(0.3, 1.0, 0, 0))
    fan = np.stack([np.full(900, 10.0), *np.random.default_rng(0).uniform(-0.7, 0.7, (2, 900))], 1)
    t = ranges(crown, (0, 0, 0), *fan)
    assert 0.02 < np.isinf(t).mean() < 0.9  # some rays pass
    assert (t[np.isfinite(t)] > 10).any()  # some meet the far side from within


@pytest.mark.parametrize("seed", range(3))
def test_tiles_find_what_brute_force_finds(seed: int):
    rng = np.random.default_rng(seed)
    table = random_table(rng, 150)
    rays = rays_from((0, 0, 0), rng.normal(size=(4000, 3)))
    found, row = cast(table, rays, np.full(4000, np.inf, np.float32))
    truth, true_row = brute_force(table, rays)
    same = row == true_row
    # rays that graze an edge or the border of a hole may go either way in float32
    assert same.mean() > 0.998
    hit = same & (row >= 0)
    assert hit.sum() > 400
    assert np.abs(found[hit] - truth[hit]).max() < 2e-3


def test_rays_in_motion_and_moving_solids():
    rng = np.random.default_rng(5)
    table = random_table(rng, 120)
    table["velocity"] = rng.uniform(-15, 15, (len(table), 3))
    height, width = 32, 256
    azimuth, elevation = np.meshgrid(
        np.linspace(np.pi, -np.pi, width, endpoint=False), np.linspace(-0.4, 0.4, height)
    )
    directions = np.stack(
        [
            np.cos(azimuth) * np.cos(elevation),
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation),
        ],
        -1,
    )
    directions = directions.reshape(-1, 3)
    time = np.tile(np.linspace(-0.05, 0.05, width), height)
    yaw = 0.8 * time  # the sensor turns and drives while it scans
    cos, sin = np.cos(yaw), np.sin(yaw)
    x, y = directions[:, 0], directions[:, 1]
    world = np.stack([cos * x - sin * y, sin * x + cos * y, directions[:, 2]], 1)
    origin = np.stack([12 * time, 0 * time, 0 * time], 1)
    rays = Rays(
        np.zeros(3),
        origin.astype(np.float32),
        world.astype(np.float32),
        time.astype(np.float32),
        np.eye(3),
        grid_tiles(directions, height, width),
        0.61,
        0.041,
    )
    found, row = cast(table, rays, np.full(len(time), np.inf, np.float32))
    truth, true_row = brute_force(table, rays)
    assert (row == true_row).mean() > 0.998
    hit = (row == true_row) & (row >= 0)
    assert hit.sum() > 1000 and np.abs(found[hit] - truth[hit]).max() < 2e-3


def test_limit_hides_what_lies_beyond():
    box = one(Kind.BOX)
    rays = rays_from((0, 0, 0), np.array([[1.0, 0, 0], [1.0, 0, 0.01]]))
    found, row = cast(box, rays, np.array([5.0, 50.0], np.float32))
    assert found[0] == 5.0 and row.tolist() == [-1, 0]


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.floats(-30, 30)] * 3),
    st.tuples(*[st.floats(0.05, 20)] * 3),
    st.tuples(*[st.floats(-3, 3)] * 3),
    st.integers(0, 2**31),
)
def test_bounds_hold_every_point_of_a_box(center, size, turn, seed):
    box = one(Kind.BOX, center, size, turn=turn)
    middle, half = angular_bounds(corners(box), 0.0, 0.0)
    inside = np.random.default_rng(seed).uniform(-1, 1, (200, 3)) * box["half"][0]
    points = inside @ box["rotation"][0].T + box["center"][0]
    points = points[np.linalg.norm(points[:, :2], axis=1) > 0.1]
    azimuth = np.arctan2(points[:, 1], points[:, 0]) - middle[0, 0]
    azimuth = np.mod(azimuth + np.pi, 2 * np.pi) - np.pi
    elevation = np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])) - middle[0, 1]
    assert (np.abs(azimuth) <= half[0, 0] + 1e-4).all()
    assert (np.abs(elevation) <= half[0, 1] + 1e-4).all()


def test_shadow_is_what_brute_force_says():
    rng = np.random.default_rng(2)
    table = random_table(rng, 60)
    points = rng.uniform(-40, 40, (2000, 3)) * (1, 1, 0) + (0, 0, -12.0)
    points = points[[distance(table, p).min() > 0.05 for p in points]]
    sun = np.array([0.5, 0.3, 0.8]) / np.linalg.norm([0.5, 0.3, 0.8])
    dark = shadowed(table, np.zeros(3), points.astype(np.float32), sun)
    rays = Rays(
        np.zeros(3),
        points,
        np.broadcast_to(sun, points.shape),
        None,
        np.eye(3),
        sorted_tiles(np.broadcast_to(sun, points.shape)),
    )
    truth = np.isfinite(brute_force(table, rays)[0])
    assert 0.04 < truth.mean() < 0.9
    assert (dark == truth).mean() > 0.997


@pytest.mark.parametrize("kind", list(Kind))
def test_normals_point_back_along_rays_from_outside(kind: Kind):
    rng = np.random.default_rng(int(kind))
    table = one(
        kind,
        (6, 1, 0.5),
        (3, 2, 2.5),
        turn=(0.4, 0.3, 0.2),
        taper=(0.4, 0.2, 0.3),
        texture=(9.0, 1.0, 0, 0),
    )
    aim = table["center"][0] + rng.uniform(-1, 1, (800, 3))
    rays = rays_from((0, 0, 0), aim)
    t, row = cast(table, rays, np.full(800, np.inf, np.float32))
    hit = row >= 0
    points = t[hit, None].astype(float) * rays.direction[hit]
    normal, own, local = surface(table, row[hit], points)
    assert hit.sum() > 100
    assert np.linalg.norm(normal, axis=1) == pytest.approx(np.ones(hit.sum()), abs=1e-5)
    facing = (normal * rays.direction[hit]).sum(1)
    assert (facing < 1e-3).mean() > 0.99
    turned = own @ rotation_matrix(0.4, 0.3, 0.2).T
    assert np.abs(turned - normal).max() < 1e-5
    assert (np.abs(local) <= table["half"][0] + 1e-3).all()
