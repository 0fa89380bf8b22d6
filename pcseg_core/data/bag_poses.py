# SPDX-License-Identifier: Apache-2.0
"""Poses of the LiDAR in a bag: from /tf, from Odometry, from a file, or estimated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.data.bag_reader import ODOMETRY, BagFile, TopicIndex, stamp_ns
from pcseg_core.data.odometry import read_tum
from pcseg_core.data.stamps import longest_increasing
from pcseg_core.data.tf_tree import MAX_POSE_GAP_S, TfTree
from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory, from_quaternion

Float64 = npt.NDArray[np.float64]

POSES = ("auto", "recorded", "tf", "odometry", "kiss-icp", "none")


@dataclass(frozen=True)
class FoundPoses:
    """T_world_lidar and its source; `problem` is the reason if there are no poses."""

    source: str
    trajectory: Trajectory | None
    problem: str = ""


def find_poses(
    mode: str,
    bag: BagFile,
    indices: Mapping[str, TopicIndex],
    tree: TfTree,
    clouds: TopicIndex,
    fixed_frame: str | None,
    estimate: Callable[[], Trajectory],
    T_body_lidar: Float64 | None = None,
) -> FoundPoses:
    """Find poses that cover the sweeps of a bag.

    Args:
        mode: one of `POSES`, or the path of a TUM file (see `BagRecording`).
        bag: the bag.
        indices: its topics.
        tree: its transforms.
        clouds: the sweeps.
        fixed_frame: world frame of the poses in /tf, or None.
        estimate: runs LiDAR odometry.
        T_body_lidar: (4, 4) pose of the LiDAR in the body frame of Odometry; None takes it from
            the tree.

    Raises:
        InputError: the mode is unknown, or the bag has no poses of that kind.
    """
    if mode == "none":
        return FoundPoses("none", None)
    if mode not in POSES:
        if not Path(mode).is_file():
            raise InputError(
                f"poses '{mode}': expected {', '.join(POSES)}, or a file in TUM format"
            )
        return FoundPoses("file", _covering(read_tum(mode), clouds))
    reasons = []
    if mode in ("auto", "recorded", "tf"):
        try:
            return FoundPoses("tf", _from_tf(tree, clouds, fixed_frame))
        except InputError as error:
            reasons.append(str(error))
    if mode in ("auto", "recorded", "odometry"):
        try:
            return FoundPoses("odometry", _from_odometry(bag, indices, tree, clouds, T_body_lidar))
        except InputError as error:
            reasons.append(str(error))
    if mode == "kiss-icp" or (mode == "auto" and find_spec("kiss_icp") is not None):
        return FoundPoses("kiss-icp", estimate())
    problem = f"no poses: {'; '.join(reasons)}"
    if mode in ("tf", "odometry"):
        raise InputError(f"{bag.path}: {problem}")
    return FoundPoses("none", None, problem)


def _from_tf(tree: TfTree, clouds: TopicIndex, fixed_frame: str | None) -> Trajectory:
    found = tree.find_trajectory(clouds.frame_id, fixed_frame)
    if found is None:
        raise InputError(f"/tf has no moving transform above '{clouds.frame_id}'")
    return _covering(found, clouds)


def _from_odometry(
    bag: BagFile,
    indices: Mapping[str, TopicIndex],
    tree: TfTree,
    clouds: TopicIndex,
    T_body_lidar: Float64 | None,
) -> Trajectory:
    topics = [topic for topic in bag.of_type(ODOMETRY) if topic in indices]
    reason = "no Odometry topic"
    for topic in sorted(topics, key=lambda topic: -len(indices[topic])):
        try:
            found = odometry_trajectory(bag, topic, tree, clouds.frame_id, T_body_lidar)
            return _covering(found, clouds)
        except InputError as error:
            reason = f"{topic}: {error}"
    raise InputError(reason)


def _covering(trajectory: Trajectory, clouds: TopicIndex) -> Trajectory:
    """The trajectory, if it covers a sweep."""
    if not any(trajectory.covers(stamp) for stamp in clouds.stamps_ns.tolist()):
        raise InputError(
            f"the poses, from {trajectory.stamps_ns[0]} to {trajectory.stamps_ns[-1]} ns, cover "
            f"none of the sweeps, from {clouds.stamps_ns[0]} to {clouds.stamps_ns[-1]} ns; are "
            "they on one clock?"
        )
    return trajectory


def build_tree(transforms: Sequence[tuple[str, Any]]) -> TfTree:
    """Tree of the (topic, TFMessage) pairs of a bag."""
    tree = TfTree()
    for topic, message in transforms:
        for moved in message.transforms:
            q, t = moved.transform.rotation, moved.transform.translation
            tree.add(
                moved.header.frame_id,
                moved.child_frame_id,
                stamp_ns(moved.header),
                (q.x, q.y, q.z, q.w),
                (t.x, t.y, t.z),
                static=topic.endswith("tf_static"),
            )
    return tree


def odometry_trajectory(
    bag: BagFile, topic: str, tree: TfTree, lidar_frame: str, T_body_lidar: Float64 | None = None
) -> Trajectory:
    """T_odom_lidar from a nav_msgs/Odometry topic and the static extrinsics of the LiDAR.

    Args:
        bag: the bag.
        topic: of the Odometry.
        tree: transforms of the bag.
        lidar_frame: frame of the LiDAR.
        T_body_lidar: (4, 4); None takes it from the tree.

    Raises:
        InputError: the child frame is empty, or no transform connects it with the LiDAR.
    """
    messages = [bag.deserialize(raw, ODOMETRY) for _, _, raw in bag.messages([topic])]
    stamps = np.array([stamp_ns(message.header) for message in messages], dtype=np.int64)
    kept = longest_increasing(stamps)
    poses = [messages[i].pose.pose for i in kept]
    q = np.array(
        [[p.orientation.x, p.orientation.y, p.orientation.z, p.orientation.w] for p in poses]
    )
    t = np.array([[p.position.x, p.position.y, p.position.z] for p in poses])
    body = messages[0].child_frame_id
    T_odom_body = Trajectory(stamps[kept], from_quaternion(q, t), max_gap_s=MAX_POSE_GAP_S)
    if T_body_lidar is None and body.lstrip("/") == lidar_frame.lstrip("/"):
        return T_odom_body
    place = tree.static(body, lidar_frame) if T_body_lidar is None else T_body_lidar
    return T_odom_body.mounted(place)
