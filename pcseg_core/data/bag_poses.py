# SPDX-License-Identifier: Apache-2.0
"""Poses of the LiDAR in a bag: from /tf, from Odometry, from a file, or estimated."""

from __future__ import annotations

from collections import Counter
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
from pcseg_core.geometry import Trajectory, from_quaternion, is_pose

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
    skipped: Counter[str] | None = None,
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
        skipped: counts Odometry that is no pose.

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
            odometry = _from_odometry(bag, indices, tree, clouds, T_body_lidar, skipped)
            return FoundPoses("odometry", odometry)
        except InputError as error:
            reasons.append(str(error))
    if mode == "kiss-icp":
        return FoundPoses("kiss-icp", estimate())
    if mode == "auto" and find_spec("kiss_icp") is not None:
        try:
            return FoundPoses("kiss-icp", estimate())
        except InputError as error:
            reasons.append(f"kiss-icp: {error}")
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
    skipped: Counter[str] | None,
) -> Trajectory:
    topics = [topic for topic in bag.of_type(ODOMETRY) if topic in indices]
    reason = "no Odometry topic"
    for topic in sorted(topics, key=lambda topic: -len(indices[topic])):
        try:
            found = odometry_trajectory(bag, topic, tree, clouds.frame_id, T_body_lidar, skipped)
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


def build_tree(transforms: Sequence[tuple[str, Any]], skipped: Counter[str]) -> TfTree:
    """Tree of the (topic, TFMessage) pairs of a bag; bad transforms are counted in `skipped`."""
    tree = TfTree()
    for topic, message in transforms:
        for moved in message.transforms:
            q, t = moved.transform.rotation, moved.transform.translation
            turn, place = (q.x, q.y, q.z, q.w), (t.x, t.y, t.z)
            parent, child = moved.header.frame_id, moved.child_frame_id
            if not is_pose(turn, place) or parent.lstrip("/") == child.lstrip("/"):
                skipped[f"{topic}: transform of '{child[:100]}' that is no pose"] += 1
                continue
            tree.add(
                parent,
                child,
                stamp_ns(moved.header),
                turn,
                place,
                static=topic.endswith("tf_static"),
            )
    return tree


def odometry_trajectory(
    bag: BagFile,
    topic: str,
    tree: TfTree,
    lidar_frame: str,
    T_body_lidar: Float64 | None = None,
    skipped: Counter[str] | None = None,
) -> Trajectory:
    """T_odom_lidar from a nav_msgs/Odometry topic and the static extrinsics of the LiDAR.

    Args:
        bag: the bag.
        topic: of the Odometry.
        tree: transforms of the bag.
        lidar_frame: frame of the LiDAR.
        T_body_lidar: (4, 4); None takes it from the tree.
        skipped: counts messages without a pose, or with other frames than most.

    Raises:
        InputError: no message has a pose, or no transform connects the body with the LiDAR.
    """
    skipped = Counter() if skipped is None else skipped
    rows: list[tuple[int, tuple[str, str], Sequence[float], Sequence[float]]] = []
    for _, _, raw in bag.messages([topic]):
        try:
            message = bag.deserialize(raw, ODOMETRY)
        except InputError:
            continue  # counted when the topic was indexed
        q, t = message.pose.pose.orientation, message.pose.pose.position
        turn, place = (q.x, q.y, q.z, q.w), (t.x, t.y, t.z)
        if is_pose(turn, place):
            frames = message.header.frame_id, message.child_frame_id
            rows.append((stamp_ns(message.header), frames, turn, place))
        else:
            skipped[f"{topic}: Odometry that is no pose"] += 1
    if not rows:
        raise InputError("none of its messages has a pose")
    ((frames, count), *_) = Counter(row[1] for row in rows).most_common()
    if count < len(rows):
        named = " and ".join(frame[:100] for frame in frames)
        skipped[f"{topic}: Odometry of other frames than {named}"] += len(rows) - count
        rows = [row for row in rows if row[1] == frames]
    stamps = np.array([row[0] for row in rows], dtype=np.int64)
    kept = longest_increasing(stamps)
    poses = from_quaternion(
        np.array([rows[i][2] for i in kept]), np.array([rows[i][3] for i in kept])
    )
    T_odom_body = Trajectory(stamps[kept], poses, max_gap_s=MAX_POSE_GAP_S)
    body = frames[1]
    if T_body_lidar is None and body.lstrip("/") == lidar_frame.lstrip("/"):
        return T_odom_body
    mounting = tree.static(body, lidar_frame) if T_body_lidar is None else T_body_lidar
    return T_odom_body.mounted(mounting)
