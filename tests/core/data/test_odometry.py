# SPDX-License-Identifier: Apache-2.0
import sys

import numpy as np
import pytest
from recordings import put

from pcseg_core.cloud import PointCloud
from pcseg_core.data import odometry
from pcseg_core.data.odometry import cached_trajectory, estimate_trajectory, read_tum
from pcseg_core.errors import InputError, MissingDependency
from pcseg_core.geometry import Trajectory, from_euler, invert, transform


def _street(seed: int) -> np.ndarray:
    """(N, 3) points on the ground and on pillars that stand irregularly on both sides."""
    rng = np.random.default_rng(seed)
    pillars = np.random.default_rng(99).uniform([-30, -9, 0], [40, 9, 0], size=(60, 3))
    pillars[:, 1] += 4 * np.sign(pillars[:, 1])
    angle = rng.uniform(0, 2 * np.pi, (60, 100))
    around = np.stack([np.cos(angle), np.sin(angle), rng.uniform(0, 5, angle.shape)], axis=-1)
    ground = rng.uniform([-30, -13, 0], [40, 13, 0], size=(4000, 3))
    return np.vstack([ground, (pillars[:, None] + around).reshape(-1, 3)])


def _drive(skewed: bool) -> tuple[list[PointCloud], Trajectory]:
    """Sweeps of 0.1 s at 10 m/s and 0.2 rad/s, each point seen at its own time when skewed."""
    stamps = np.arange(0, 1_300_000_000, 50_000_000)
    poses = np.stack([from_euler(0, 0, 0.2 * t, (10 * t, t * t, 1.5)) for t in stamps * 1e-9])
    truth = Trajectory(stamps, poses)
    sweeps = []
    for i in range(12):
        stamp = i * 100_000_000
        world = _street(i)
        start = transform(invert(truth.at(stamp)), world)
        turned = np.arctan2(start[:, 1], start[:, 0]) / (2 * np.pi) + 0.5
        time = 0.099 * turned if skewed else np.zeros(len(world))
        moments = stamp + np.rint(time * 1e9).astype(np.int64)
        own = transform(invert(truth.at_many(moments)), world)
        sweeps.append(PointCloud(xyz=own, time=time if skewed else None, stamp_ns=stamp))
    return sweeps, truth


@pytest.mark.parametrize("skewed", [False, True])
def test_estimate_follows_a_known_drive(skewed: bool) -> None:
    pytest.importorskip("kiss_icp")
    sweeps, truth = _drive(skewed)
    found = estimate_trajectory(sweeps)
    moved = found.relative(0, 1_100_000_000)
    expected = truth.relative(0, 1_100_000_000)
    assert np.linalg.norm(expected[:3, 3]) > 10
    assert np.linalg.norm(moved[:3, 3] - expected[:3, 3]) < 0.4
    assert np.abs(moved[:3, :3] - expected[:3, :3]).max() < 0.02


def test_estimate_is_kept_on_disk(tmp_path, monkeypatch) -> None:
    calls = []
    made = Trajectory([1, 2], np.stack([np.eye(4), from_euler(0, 0, 0.1)]))
    monkeypatch.setattr(odometry, "estimate_trajectory", lambda sweeps: calls.append(1) or made)
    for _ in range(2):
        found = cached_trajectory("bag 1", [], tmp_path)
        np.testing.assert_array_equal(found.poses, made.poses)
    assert len(calls) == 1
    cached_trajectory("bag 2", [], tmp_path)
    assert len(calls) == 2
    for path in tmp_path.iterdir():
        path.write_bytes(b"broken")
    cached_trajectory("bag 1", [], tmp_path)
    assert len(calls) == 3


def test_a_damaged_estimate_is_made_again(tmp_path, monkeypatch) -> None:
    made = Trajectory([1, 2], np.stack([np.eye(4), from_euler(0, 0, 0.1)]))
    monkeypatch.setattr(odometry, "estimate_trajectory", lambda sweeps: made)
    cached_trajectory("key", [], tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for length in {0, 1, 3, 4, 30, *range(0, len(whole), 97), len(whole) - 1}:
        file.write_bytes(whole[:length])
        assert np.array_equal(cached_trajectory("key", [], tmp_path).poses, made.poses)
        assert len(file.read_bytes()) == len(whole)


def test_no_sweeps_and_no_points() -> None:
    pytest.importorskip("kiss_icp")
    with pytest.raises(InputError, match="no sweeps"):
        estimate_trajectory([])
    with pytest.raises(InputError, match="no finite points"):
        estimate_trajectory([PointCloud(xyz=np.full((5, 3), np.nan))])


def test_missing_kiss_icp_names_the_pip_command(monkeypatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "kiss_icp"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kiss_icp", None)
    with pytest.raises(MissingDependency, match=r"pip install 'pcseg_ros\[odometry\]'"):
        estimate_trajectory([PointCloud(xyz=np.ones((5, 3)))])


def test_tum_files(tmp_path) -> None:
    path = put(
        tmp_path / "poses.tum",
        "# stamp tx ty tz qx qy qz qw\n"
        "1317042651.158069617 1 2 3 0 0 0 1\n"
        "1317042651.258069618 1 2 4 0 0 0.7071067811865476 0.7071067811865476\n",
    )
    found = read_tum(path)
    np.testing.assert_array_equal(found.stamps_ns, [1317042651158069617, 1317042651258069618])
    np.testing.assert_allclose(found.poses[1][:3, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(found.poses[1][:3, 3], [1, 2, 4])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no poses"),
        ("1.0 0 0 0", "line 1: 4 values"),
        ("1.0 a 0 0 0 0 0 1", "line 1: not numbers"),
        ("2 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 1", "poses.tum: trajectory: stamps must increase"),
        ("1.0 nan 0 0 0 0 0 1", r"poses.tum: not a place: translation of \[nan\] m"),
        ("1.0 0 0 0 0 0 0 0", "poses.tum: not a rotation"),
        ("1e30 0 0 0 0 0 0 1", "line 1: not numbers .*no number of seconds of a clock"),
        ("inf 0 0 0 0 0 0 1", "line 1: not numbers"),
    ],
)
def test_wrong_tum_files(tmp_path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_tum(put(tmp_path / "poses.tum", content))
