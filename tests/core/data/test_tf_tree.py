# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from pcseg_core.data.tf_tree import TfTree
from pcseg_core.errors import InputError
from pcseg_core.geometry import compose, from_euler, invert, to_quaternion


def _add(tree: TfTree, parent: str, child: str, T: np.ndarray, stamp: int = 0, static=True) -> None:
    quaternion, translation = to_quaternion(T)
    tree.add(parent, child, stamp, quaternion.tolist(), translation.tolist(), static)


A = from_euler(0.1, 0.2, 0.3, (1.0, 2.0, 3.0))
B = from_euler(-0.4, 0.1, 1.0, (0.0, -1.0, 0.5))


def test_static_chain_over_a_common_parent() -> None:
    tree = TfTree()
    _add(tree, "base", "lidar", A)
    _add(tree, "/base", "/mount", B)
    _add(tree, "mount", "camera", A)
    expected = compose(invert(compose(B, A)), A)  # camera <- base <- lidar
    np.testing.assert_allclose(tree.static("camera", "lidar"), expected, atol=1e-12)
    np.testing.assert_allclose(tree.static("lidar", "camera"), invert(expected), atol=1e-12)
    np.testing.assert_allclose(tree.static("lidar", "lidar"), np.eye(4))


def test_frames_that_are_not_connected() -> None:
    tree = TfTree()
    _add(tree, "base", "lidar", A)
    with pytest.raises(InputError, match=r"no transform from 'lidar' to 'camera'.*base, lidar"):
        tree.static("camera", "lidar")


def test_a_moving_mount_is_not_static() -> None:
    tree = TfTree()
    for i in range(3):
        _add(tree, "lidar", "arm", from_euler(0, 0, 0.1 * i), stamp=i, static=False)
    _add(tree, "arm", "camera", A)
    with pytest.raises(InputError, match="moves"):
        tree.static("camera", "lidar")


def test_a_still_transform_on_tf_is_static() -> None:
    tree = TfTree()
    for i in range(3):
        _add(tree, "lidar", "camera", A, stamp=i, static=False)
    np.testing.assert_allclose(tree.static("lidar", "camera"), A, atol=1e-12)


def test_trajectory_through_two_moving_edges() -> None:
    """map -> odom jumps slowly, odom -> base moves quickly; stamps differ, repeat and come late."""
    tree = TfTree()
    _add(tree, "base", "lidar", A)
    for stamp in (0, 400, 200, 200):
        _add(tree, "map", "odom", from_euler(0, 0, 0, (0.01 * stamp, 0, 0)), stamp, static=False)
    for stamp in range(100, 500, 100):
        _add(tree, "odom", "base", from_euler(0, 0, 0, (0, 0.1 * stamp, 0)), stamp, static=False)
    found = tree.trajectory("map", "lidar")
    np.testing.assert_array_equal(found.stamps_ns, [100, 200, 300, 400])  # all parts known
    expected = compose(from_euler(0, 0, 0, (3.0, 30.0, 0)), A)
    np.testing.assert_allclose(found.at(300), expected, atol=1e-12)


def test_fixed_frame_odom_comes_before_map() -> None:
    tree = TfTree()
    for stamp in (0, 100):
        _add(tree, "map", "odom", from_euler(0, 0, 0, (stamp, 0, 0)), stamp, static=False)
        _add(tree, "odom", "base", from_euler(0, 0, 0, (0, stamp, 0)), stamp, static=False)
    np.testing.assert_allclose(tree.find_trajectory("base").at(100)[:3, 3], [0, 100, 0])
    np.testing.assert_allclose(tree.find_trajectory("base", "map").at(100)[:3, 3], [100, 100, 0])
    np.testing.assert_allclose(tree.trajectory("base", "odom").at(100)[:3, 3], [0, -100, 0])


def test_without_motion_there_is_no_trajectory() -> None:
    tree = TfTree()
    _add(tree, "odom", "base", A)
    assert tree.find_trajectory("base") is None and tree.find_trajectory("nowhere") is None
    with pytest.raises(InputError, match="does not move"):
        tree.find_trajectory("base", "odom")


def test_a_loop_of_frames_ends() -> None:
    tree = TfTree()
    _add(tree, "a", "b", A)
    _add(tree, "b", "a", A)
    with pytest.raises(InputError, match="no transform"):
        tree.static("c", "a")


def test_a_child_that_changes_its_parent_keeps_the_last() -> None:
    tree = TfTree()
    _add(tree, "old", "camera", A)
    _add(tree, "lidar", "camera", B)
    np.testing.assert_allclose(tree.static("lidar", "camera"), B, atol=1e-12)


def test_one_transform_of_another_parent_does_not_replace_many() -> None:
    tree = TfTree()
    for stamp in range(3):
        T = A.copy()
        T[0, 3] += stamp
        _add(tree, "odom", "base", T, stamp * 10**8, static=False)
    _add(tree, "base", "lidar", B)
    _add(tree, "lidar", "base", A, 2 * 10**8, static=False)  # would close a circle
    found = tree.find_trajectory("lidar")
    assert found is not None and len(found) == 3
    _add(tree, "odom", "lidar", A, 0, static=False)  # a static transform comes first
    np.testing.assert_allclose(tree.static("base", "lidar"), B, atol=1e-12)
