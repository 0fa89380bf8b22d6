# SPDX-License-Identifier: Apache-2.0
"""Several LiDARs as one, and several returns of one beam."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcseg_core.cloud import PointCloud, encode_cloud, read_cloud
from pcseg_core.geometry import compose, from_euler, invert, transform
from pcseg_core.labels import WIRE_UNLABELED
from pcseg_core.online.free_space import Beams, FreeSpace
from pcseg_core.online.pipeline import Sweep
from pcseg_core.returns import last_returns
from pcseg_core.uniting import Part, unite, united_message

STAMP = 1_700_000_000_000_000_000
MOUNTS = [from_euler(0, 0, 0, (0, 0, 1.8)), from_euler(0.1, 0.5, -0.8, (2.0, -0.8, 0.7))]
MOUNTS += [from_euler(0, 0.3, 2.5, (-1.5, 0.6, 1.0))]


def body(stamps_ns: np.ndarray) -> np.ndarray:
    """T_world_body: 15 m/s forward on a circle, 0.5 rad/s."""
    times = (np.asarray(stamps_ns) - STAMP) * 1e-9
    return np.stack([from_euler(0, 0, 0.5 * t, circle(t)) for t in times])


def circle(time_s: float) -> tuple[float, float, float]:
    angle = 0.5 * time_s
    return 30 * np.sin(angle), 30 * (1 - np.cos(angle)), 0.0


def measured(
    lidar: int, world: np.ndarray, stamp_ns: int, times: np.ndarray | None, **fields: np.ndarray
) -> PointCloud:
    """Points (N, 3) of the world as a LiDAR measures them at its times."""
    moments = np.zeros(len(world)) if times is None else times
    T = body(stamp_ns + np.round(1e9 * moments).astype(np.int64)) @ MOUNTS[lidar]
    xyz = np.einsum("nij,nj->ni", invert(T)[:, :3, :3], world) + invert(T)[:, :3, 3]
    return PointCloud(
        xyz.astype(np.float32), time=times, frame_id=f"l{lidar}", stamp_ns=stamp_ns, extra=fields
    )


def placed(lidar: int) -> np.ndarray:
    return compose(invert(MOUNTS[0]), MOUNTS[lidar])


def test_moving_lidars_of_different_stamps_meet_at_one_moment() -> None:
    """One has times of its points, one has times relative to the end, one has none."""
    world = np.random.default_rng(0).uniform((-40, -40, -2), (40, 40, 4), (300, 3))
    clouds = [
        measured(0, world, STAMP, np.linspace(0.0, 0.1, 300)),
        measured(1, world, STAMP + 130_000_000, np.linspace(-0.1, 0.0, 300)),
        measured(2, world, STAMP - 40_000_000, None),
    ]
    parts = [Part(cloud, placed(k), k) for k, cloud in enumerate(clouds)]
    united = unite(parts, STAMP, "l0")
    sweep = Sweep(united, poses=lambda stamps: body(stamps) @ MOUNTS[0])
    expected = transform(invert(body(np.array([STAMP]))[0] @ MOUNTS[0]), world)
    for k in range(3):
        found = sweep.deskewed().xyz[united.source == k]
        np.testing.assert_allclose(found, expected, atol=2e-4)
    before = united.xyz[united.source == 1] - expected
    assert np.median(np.linalg.norm(before, axis=1)) > 0.5  # without the correction
    np.testing.assert_allclose(united.origins, [placed(k)[:3, 3] for k in range(3)], atol=1e-6)


def test_points_without_a_return_stay() -> None:
    xyz = np.array([[0, 0, 0], [np.nan, 1, 1], [1, 2, 3]], np.float32)
    part = Part(PointCloud(xyz, time=np.array([0, np.nan, 0.01]), stamp_ns=10**9), placed(1), 1)
    united = unite([part], 10**9, "l0")
    np.testing.assert_array_equal(united.finite, [False, False, True])
    np.testing.assert_array_equal(united.time, [0, 0, 0.01])
    assert (united.xyz[0] == 0).all() and united.source.tolist() == [1, 1, 1]


def test_fields_of_one_lidar_only() -> None:
    """What a LiDAR lacks is 0, or unlabeled; rings are told apart; messages keep common fields."""
    xyz = np.ones((2, 3), np.float32)
    columns = dict(zip("xyz", xyz.T))
    ring, label = np.array([0, 4], np.uint8), np.array([3, 5], np.uint8)
    other = {"ring": ring, "t": np.zeros(2, np.uint32), "echo": ring.astype(np.float32)}
    messages = [
        encode_cloud({**columns, "ring": ring, "time": np.zeros(2), "echo": ring, "label": label}),
        encode_cloud({**columns, **other}),
    ]
    clouds = [read_cloud(message) for message in messages]
    united = unite([Part(cloud, placed(k), k) for k, cloud in enumerate(clouds)], 0, "l0")
    assert united.extra["label"].tolist() == [3, 5, WIRE_UNLABELED, WIRE_UNLABELED]
    assert united.ring is not None and united.ring.tolist() == [0, 4, 5, 9]
    encoded = united_message(messages, united, united.xyz)
    assert [f.name for f in encoded.fields] == ["x", "y", "z", "ring", "source"]
    assert read_cloud(encoded).extra["source"].tolist() == [0, 0, 1, 1]


def two_returns(numbers: tuple[int, int], shuffle: int = 0) -> tuple[PointCloud, np.ndarray]:
    """A fence at 10 m in front of a wall at 30 m, and beams beside it with one return."""
    azimuth, slope = np.meshgrid(np.arange(-0.5, 0.5, 0.004), np.arange(-0.1, 0.1, 0.004))
    ray = np.stack([np.cos(azimuth), np.sin(azimuth), slope], -1).reshape(-1, 3)
    fence = ray[np.abs(ray[:, 1]) < 0.25] * 10
    xyz = np.concatenate([fence, ray * 30])
    kinds = np.repeat(np.array(numbers, np.uint8), [len(fence), len(ray)])
    order = np.random.default_rng(shuffle).permutation(len(xyz))
    cloud = PointCloud(xyz[order].astype(np.float32), extra={"return_type": kinds[order]})
    return cloud, (order >= len(fence))


@pytest.mark.parametrize("numbers", [(3, 4), (4, 1), (2, 1)], ids=["autoware", "nebula", "other"])
def test_the_last_return_is_the_farthest_whatever_its_number(numbers: tuple[int, int]) -> None:
    cloud, last = two_returns(numbers)
    found = last_returns(cloud)
    assert found is not None
    # A few beams are on the border of two directions, where both returns count.
    assert np.mean(found == last) > 0.999 and found[last].all()


def test_returns_of_one_laser_and_time() -> None:
    """The returns of lasers that are not in the middle differ in direction, not in ring and time.

    The last two points are of different firings that the driver gives one time.
    """
    xyz = np.array([[10, 0, 0], [30, 0.15, 0], [10, 1, 0], [12, 5, 0], [30, -5, 0]], np.float32)
    cloud = PointCloud(
        xyz,
        time=np.array([0, 0, 1e-3, 2e-3, 2e-3]),
        ring=np.array([3, 3, 3, 4, 4]),
        extra={"echo": np.array([0, 1, 0, 0, 0])},
    )
    assert last_returns(cloud).tolist() == [False, True, True, True, True]


def test_a_topic_for_each_return() -> None:
    """Two clouds of one place and frame, as of an Ouster, are returns of the same beams."""
    cloud, last = two_returns((0, 0))
    both = [PointCloud(cloud.xyz[~last]), PointCloud(cloud.xyz[last])]
    united = unite([Part(one, np.eye(4), k) for k, one in enumerate(both)], 0, "os_lidar")
    found = last_returns(united)
    assert np.mean(found == (united.source == 1)) > 0.99
    fence = np.array([[10, 0, 0], [20, 0, 0]], np.float32).T
    free = FreeSpace(np.ascontiguousarray(united.xyz.T), Beams.of(united))
    assert free.passed(fence, 0.5).tolist() == [False, True]


def test_one_return_per_beam_needs_no_search() -> None:
    cloud, _ = two_returns((1, 1))
    assert last_returns(cloud) is None
    assert last_returns(PointCloud(cloud.xyz)) is None


def test_deskewed_returns_keep_which_is_the_last() -> None:
    """Moved by meters, the two returns of a beam are no longer in one direction."""
    cloud, last = two_returns((3, 4))
    cloud.time = np.linspace(0, 0.1, len(cloud))
    deskewed = Sweep(cloud, poses=lambda stamps: body(stamps + STAMP)).deskewed()
    assert np.mean(last_returns(deskewed) == last) > 0.999


def test_first_returns_carve_no_free_space() -> None:
    """Beams reach the wall behind the fence; the fence is not passed, what is behind it is."""
    cloud, _ = two_returns((3, 4))
    places = np.array([[5, 0, 0], [10, 0, 0], [20, 0, 0], [20, 8, 0], [35, 0, 0]], np.float32).T
    free = FreeSpace(np.ascontiguousarray(cloud.xyz.T), Beams.of(cloud))
    assert free.passed(places, 0.5).tolist() == [True, False, True, True, False]
    nearest_only = FreeSpace(np.ascontiguousarray(cloud.xyz.T))
    assert nearest_only.passed(places, 0.5).tolist() == [True, False, False, True, False]


def test_free_space_is_seen_from_each_lidar() -> None:
    """A wall hides a place from the first LiDAR; the second, beside it, looks along the wall."""
    angle, slope = np.meshgrid(np.arange(-np.pi, np.pi, 0.004), np.arange(-0.1, 0.1, 0.005))
    ray = np.stack([np.cos(angle), np.sin(angle), slope], -1).reshape(-1, 3).astype(np.float32)
    first = PointCloud(ray * 5)
    second = PointCloud(ray * 30)
    parts = [Part(first, np.eye(4), 0), Part(second, from_euler(0, 0, 0, (0, 8, 0)), 1)]
    united = unite(parts, 0, "l0")
    free = FreeSpace(np.ascontiguousarray(united.xyz.T), Beams.of(united))
    places = np.array([[0, 15, 0], [3, 0, 0], [60, 0, 0]], np.float32).T
    assert free.passed(places, 0.5).tolist() == [True, True, False]
    assert free.behind(places, 0.5).tolist() == [False, False, True]
    alone = FreeSpace(np.ascontiguousarray(first.xyz.T))
    assert alone.passed(places, 0.5).tolist() == [False, True, False]
    assert alone.behind(places, 0.5).tolist() == [True, False, True]


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    offsets=st.lists(st.integers(-(10**8), 10**8), min_size=4, max_size=4),
    seed=st.integers(0, 1000),
)
def test_uniting_loses_and_mixes_nothing(sizes: list[int], offsets: list[int], seed: int) -> None:
    """Every point is where its LiDAR is, at its time; parts are contiguous and in order."""
    rng = np.random.default_rng(seed)
    parts = []
    for k, count in enumerate(sizes):
        xyz = rng.uniform(-50, 50, (count, 3)).astype(np.float32)
        T = from_euler(*rng.uniform(-3, 3, 3), rng.uniform(-5, 5, 3))
        time = rng.uniform(-0.1, 0.1, count) if seed % 2 else None
        parts.append(Part(PointCloud(xyz, time=time, stamp_ns=STAMP + offsets[k]), T, 2 * k))
    united = unite(parts, STAMP, "base")
    assert united.source.tolist() == [2 * k for k, n in enumerate(sizes) for _ in range(n)]
    for k, part in enumerate(parts):
        own = united.source == 2 * k
        back = transform(invert(part.T_united_lidar), united.xyz[own].astype(np.float64))
        np.testing.assert_allclose(back, part.cloud.xyz, atol=1e-4)
        times = 0.0 if part.cloud.time is None else part.cloud.time
        np.testing.assert_allclose(united.time[own], times + 1e-9 * offsets[k], atol=1e-9)
