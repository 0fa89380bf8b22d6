# SPDX-License-Identifier: Apache-2.0
"""Transforms, trajectories and deskew against hand-computed and closed-form cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcseg_core.errors import InputError
from pcseg_core.geometry import (
    Trajectory,
    compose,
    deskew,
    from_euler,
    from_quaternion,
    from_rotation,
    invert,
    to_quaternion,
    transform,
)

SECOND = 1_000_000_000
angles = st.floats(-np.pi, np.pi)
lengths = st.floats(-100, 100)
poses = st.builds(
    lambda r, p, y, a, b, c: from_euler(r, p, y, (a, b, c)), *[angles] * 3, *[lengths] * 3
)


def axis_angle(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rodrigues' formula, independent of the quaternions under test."""
    k = axis / np.linalg.norm(axis)
    K = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
    return np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K


def test_transform_maps_points_of_b_into_a() -> None:
    # b stands at (1, 2, 0) in a, turned left by 90 degrees: its x axis is a's y axis.
    T_a_b = from_euler(0, 0, np.pi / 2, (1, 2, 0))
    np.testing.assert_allclose(transform(T_a_b, np.array([[3.0, 0, 5]])), [[1, 5, 5]], atol=1e-12)


def test_euler_is_roll_then_pitch_then_yaw_about_fixed_axes() -> None:
    x, y, z = np.eye(3)
    expected = axis_angle(z, 0.3) @ axis_angle(y, -0.5) @ axis_angle(x, 1.1)
    np.testing.assert_allclose(from_euler(1.1, -0.5, 0.3)[:3, :3], expected, atol=1e-12)


def test_transform_keeps_float32_and_nan() -> None:
    xyz = np.array([[1, 2, 3], [np.nan, 0, 0]], dtype=np.float32)
    moved = transform(from_euler(0, 0, 0, (1, 1, 1)), xyz)
    assert moved.dtype == np.float32
    np.testing.assert_array_equal(moved[0], [2, 3, 4])
    assert np.isnan(moved[1, 0])


def test_transform_with_one_pose_each_equals_one_by_one() -> None:
    rng = np.random.default_rng(0)
    Ts = np.stack([from_euler(*rng.normal(size=3), rng.normal(size=3)) for _ in range(5)])
    xyz = rng.normal(size=(5, 3))
    expected = [transform(T, p[None])[0] for T, p in zip(Ts, xyz)]
    np.testing.assert_allclose(transform(Ts, xyz), expected, atol=1e-12)


@given(poses)
def test_invert_and_quaternion_round_trip(T: np.ndarray) -> None:
    np.testing.assert_allclose(compose(T, invert(T)), np.eye(4), atol=1e-9)
    q, t = to_quaternion(T)
    assert q[3] >= 0
    np.testing.assert_allclose(from_quaternion(q, t), T, atol=1e-9)
    np.testing.assert_allclose(from_quaternion(-3 * q, t), T, atol=1e-9)  # any length, any sign


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (-1, 2, 3)])
def test_quaternion_of_half_turns(axis: tuple[float, float, float]) -> None:
    """w = 0: where a formula that divides by w fails."""
    R = axis_angle(np.array(axis, dtype=float), np.pi)
    q, _ = to_quaternion(from_rotation(R))
    np.testing.assert_allclose(from_quaternion(q)[:3, :3], R, atol=1e-12)


@pytest.mark.parametrize("q", [(0, 0, 0, 0), (np.nan, 0, 0, 1), (np.inf, 0, 0, 1)])
def test_quaternion_that_is_none_is_refused(q: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="quaternion"):
        from_quaternion(q)


@pytest.mark.parametrize("x", [np.nan, np.inf, -np.inf, 1e10])
def test_translation_that_is_no_place_is_refused(x: float) -> None:
    with pytest.raises(InputError, match="translation"):
        from_quaternion((0, 0, 0, 1), (0.0, x, 0.0))


def turning_drive() -> tuple[np.ndarray, np.ndarray]:
    """11 poses, 0.1 s apart: driving 10 m/s and turning 0.5 rad/s about z."""
    stamps = 10**18 + np.arange(11) * SECOND // 10
    times = np.arange(11) * 0.1
    return stamps, np.stack([from_euler(0, 0, 0.5 * t, (10 * t, 0, 0)) for t in times])


def test_trajectory_interpolates_rotation_and_place() -> None:
    stamps, T = turning_drive()
    trajectory = Trajectory(stamps, T)
    np.testing.assert_allclose(trajectory.at(int(stamps[3])), T[3], atol=1e-15)
    expected = from_euler(0, 0, 0.5 * 0.325, (3.25, 0, 0))
    np.testing.assert_allclose(trajectory.at(10**18 + 325_000_000), expected, atol=1e-12)


def test_trajectory_slerps_about_any_axis() -> None:
    axis = np.array([1.0, -2.0, 0.5])
    ends = np.stack([from_rotation(axis_angle(axis, 0.2)), from_rotation(axis_angle(axis, 1.8))])
    middle = Trajectory([0, 4], ends).at(3)
    np.testing.assert_allclose(middle[:3, :3], axis_angle(axis, 0.2 + 0.75 * 1.6), atol=1e-12)


def test_trajectory_takes_the_short_way_round() -> None:
    """170 and -170 degrees are 20 degrees apart; their quaternions have opposite signs."""
    ends = np.stack([from_euler(0, 0, np.deg2rad(a)) for a in (170, -170)])
    middle = Trajectory([0, 2], ends).at(1)
    np.testing.assert_allclose(middle, from_euler(0, 0, np.pi), atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 20))
def test_a_pose_depends_on_its_two_neighbors_alone(seed: int, count: int) -> None:
    """Bit for bit, as the node keeps the last poses of what a recording has in full."""
    rng = np.random.default_rng(seed)
    steps = [from_euler(*rng.normal(0, 0.3, 3), rng.normal(0, 2, 3)) for _ in range(count)]
    T = np.stack([compose(*steps[: i + 1]) for i in range(count)])
    T[:, :3, :3] *= 1 + rng.choice([0, 1e-13, 1e-4], (count, 1, 1))  # as rigid as poses come
    stamps = 10**18 + np.cumsum(rng.integers(1, SECOND // 10, count))
    whole, mount = Trajectory(stamps, T), from_euler(0.1, 0.2, 0.3, (1, 2, 3))
    asked = rng.integers(stamps[0], stamps[-1], 40)
    poses, mounted = whole.at_many(asked), whole.mounted(mount).at_many(asked)
    for stamp, pose, sensor in zip(asked, poses, mounted, strict=True):
        left = int(np.searchsorted(stamps, stamp, side="right")) - 1
        pair = Trajectory(stamps[left : left + 2], T[left : left + 2])
        np.testing.assert_array_equal(pair.at(int(stamp)), pose)
        np.testing.assert_array_equal(pair.mounted(mount).at(int(stamp)), sensor)
    for k in range(1, count):  # at a pose, with later poses or without
        so_far = Trajectory(stamps[: k + 1], T[: k + 1])
        np.testing.assert_array_equal(so_far.at(int(stamps[k])), whole.at(int(stamps[k])))


def test_trajectory_extrapolates_a_little_and_no_more() -> None:
    stamps, T = turning_drive()
    trajectory = Trajectory(stamps, T)
    after = int(stamps[-1]) + SECOND // 10
    np.testing.assert_allclose(
        trajectory.at(after), from_euler(0, 0, 0.5 * 1.1, (11, 0, 0)), atol=1e-12
    )
    before = int(stamps[0]) - SECOND // 10
    np.testing.assert_allclose(
        trajectory.at(before), from_euler(0, 0, -0.05, (-1, 0, 0)), atol=1e-12
    )
    assert trajectory.covers(after)
    assert not trajectory.covers(after + SECOND)
    with pytest.raises(InputError, match="clock"):
        trajectory.at(after + SECOND)
    with pytest.raises(InputError, match="no pose at 0 ns"):
        trajectory.at_many([int(stamps[0]), 0])


def test_trajectory_of_one_pose_stands_still() -> None:
    T = from_euler(0.1, 0.2, 0.3, (1, 2, 3))
    trajectory = Trajectory([100], T[None])
    np.testing.assert_array_equal(trajectory.at_many([90, 110]), [T, T])
    assert not trajectory.covers(SECOND)


def test_trajectory_refuses_long_gaps() -> None:
    trajectory = Trajectory([0, SECOND, 9 * SECOND], np.stack([np.eye(4)] * 3), max_gap_s=2)
    assert trajectory.covers(SECOND // 2)
    assert trajectory.covers(9 * SECOND)  # on a pose, though the gap ends there
    assert not trajectory.covers(5 * SECOND)
    with pytest.raises(InputError, match=r"gap of 8\.00 s"):
        trajectory.at(5 * SECOND)


@pytest.mark.parametrize(
    ("stamps", "T", "message"),
    [
        ([], np.zeros((0, 4, 4)), "M >= 1"),
        ([0, 1], np.eye(4)[None], "M >= 1"),
        ([0, 5, 5], np.stack([np.eye(4)] * 3), "must increase.*entry 2"),
        ([5, 4], np.stack([np.eye(4)] * 2), "must increase"),
        ([0, 1], np.stack([np.eye(4), np.full((4, 4), np.nan)]), "pose 1 is not a rigid"),
        ([0, 1], np.stack([2 * np.eye(4), np.eye(4)]), "pose 0 is not a rigid"),
        ([0], np.diag([1.0, 1, -1, 1])[None], "pose 0 is not a rigid"),
    ],
)
def test_bad_trajectories_are_refused(stamps: list[int], T: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trajectory(stamps, T)


def test_trajectory_keeps_nanoseconds_of_real_stamps() -> None:
    """float64 holds 1.7e18 only to 256 ns; the interpolation must not go through it."""
    start = 1_700_000_000_000_000_001
    T = np.stack([np.eye(4), from_euler(0, 0, 0, (1000, 0, 0))])
    trajectory = Trajectory([start, start + 1000], T)
    assert trajectory.at(start + 1)[0, 3] == pytest.approx(1.0, abs=1e-9)


def test_relative_is_the_motion_between_two_stamps() -> None:
    stamps, T = turning_drive()
    relative = Trajectory(stamps, T).relative(int(stamps[2]), int(stamps[7]))
    np.testing.assert_allclose(relative, invert(T[2]) @ T[7], atol=1e-12)


def test_deskew_brings_a_fixed_point_back_together() -> None:
    """A post at rest, seen throughout a sweep from a turning car, is one place afterwards."""
    stamps, T = turning_drive()
    trajectory = Trajectory(stamps, T)
    post = np.array([[8.0, 3.0, 1.0]])
    time = np.linspace(-0.05, 0.05, 5000)
    stamp = int(stamps[5])
    at = trajectory.at_many(stamp + np.round(time * 1e9).astype(np.int64))
    seen = transform(invert(at), np.repeat(post, len(time), axis=0))
    assert np.ptp(seen, axis=0).max() > 0.8  # skewed by nearly a meter
    still = deskew(seen, time, trajectory, stamp)
    expected = transform(invert(trajectory.at(stamp)), post)
    np.testing.assert_allclose(still, np.broadcast_to(expected, still.shape), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_deskew_equals_one_exact_pose_a_point(seed: int, ordered: bool) -> None:
    rng = np.random.default_rng(seed)
    steps = [from_euler(*rng.normal(0, 0.02, 3), rng.normal(0, 0.5, 3)) for _ in range(8)]
    T = np.stack([compose(*steps[: i + 1]) for i in range(8)])
    trajectory = Trajectory(np.arange(8) * SECOND // 20, T)
    time = rng.uniform(-0.05, 0.05, 500)
    time = np.sort(time) if ordered else time
    xyz = rng.normal(0, 30, (500, 3))
    stamp = 3 * SECOND // 20 + 7
    exact = invert(trajectory.at(stamp)) @ trajectory.at_many(
        stamp + np.round(time * 1e9).astype(np.int64)
    )
    result = deskew(xyz, time, trajectory, stamp)
    np.testing.assert_allclose(result, transform(exact, xyz), atol=2e-3)
    assert np.median(np.abs(result - transform(exact, xyz))) < 1e-5


def test_deskew_keeps_type_nan_and_order() -> None:
    stamps, T = turning_drive()
    xyz = np.array([[np.nan] * 3, [1, 2, 3], [4, 5, 6]], dtype=np.float32)
    time = np.array([0.01, np.nan, 0.02])
    moved = deskew(xyz, time, Trajectory(stamps, T), int(stamps[3]))
    assert moved.dtype == np.float32
    assert np.isnan(moved[0]).all()
    np.testing.assert_allclose(moved[1], [1, 2, 3], atol=1e-5)  # no time: taken at the stamp
    assert np.abs(moved[2] - xyz[2]).max() > 0.1


def test_points_without_a_return_stay_without_one() -> None:
    """A driver writes (0, 0, 0) for no return; moved by the motion it would be a point."""
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, 0, 3] = 5.0
    xyz = np.array([[0, 0, 0], [1, 0, 0]], np.float32)
    moved = deskew(xyz, np.array([0.1, 0.1]), Trajectory([0, 10**9], poses), 0)
    np.testing.assert_allclose(moved, [[0, 0, 0], [1.5, 0, 0]], atol=1e-5)


def test_deskew_of_nothing_and_of_one_moment() -> None:
    stamps, T = turning_drive()
    trajectory, stamp = Trajectory(stamps, T), int(stamps[3])
    assert deskew(np.zeros((0, 3)), np.zeros(0), trajectory, stamp).shape == (0, 3)
    xyz = np.array([[1.0, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(deskew(xyz, np.zeros(2), trajectory, stamp), xyz, atol=1e-12)


def test_deskew_names_what_is_wrong() -> None:
    trajectory = Trajectory(*turning_drive())
    with pytest.raises(InputError, match=r"\(N, 3\) with times \(N,\)"):
        deskew(np.zeros((3, 3)), np.zeros(2), trajectory, 10**18)
    with pytest.raises(InputError, match="no pose at"):
        deskew(np.zeros((3, 3)), np.array([0, 0, 50.0]), trajectory, 10**18)
