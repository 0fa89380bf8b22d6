# SPDX-License-Identifier: Apache-2.0
"""Transforms and Odometry: trees of any shape, quaternions and stamps of any value."""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from pcseg_core.data.bag_poses import build_tree, odometry_trajectory
from pcseg_core.data.bag_reader import ODOMETRY, BagFile, stamp_ns, type_store
from pcseg_core.data.messages import odometry, tf
from pcseg_core.data.tf_tree import TfTree
from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory, from_euler

from .harness import Target
from .mutations import FLOATS, mutated
from .valid import check_pose

FRAMES = ("map", "odom", "base_link", "lidar", "/lidar", "camera", "", "\u00e9")
STEP = 10**8
START = 1_600_000_000 * 10**9


@st.composite
def transforms(draw: st.DrawFn) -> bytes:
    """JSON rows of topic, parent, child, stamp, quaternion and translation."""
    rows = [
        ["/tf_static", "base_link", "lidar", START, [0, 0, 0, 1], [0, 0, 1]],
        ["/tf_static", "lidar", "camera", START, [0.5, -0.5, 0.5, -0.5], [0, 0, 0.1]],
    ]
    for i in range(draw(st.integers(0, 5))):
        rows.append(["/tf", "odom", "base_link", START + i * STEP, [0, 0, 0.01 * i, 1], [i, 0, 0]])
    for _ in range(draw(st.integers(0, 4))):
        rows.insert(draw(st.integers(0, len(rows))), draw(_row()))
    return json.dumps(rows).encode()


@st.composite
def _row(draw: st.DrawFn) -> list[Any]:
    stamps = st.sampled_from([START, START + STEP // 2, START + 3 * STEP, 0, -(10**9), 2**62])
    numbers = st.one_of(st.floats(-3, 3, width=32), st.sampled_from(FLOATS))
    names = st.sampled_from(FRAMES)
    turn = draw(st.lists(numbers, min_size=4, max_size=4))
    place = draw(st.lists(numbers, min_size=3, max_size=3))
    topic = draw(st.sampled_from(["/tf", "/tf", "/tf_static", "/robot/tf_static"]))
    return [topic, draw(names), draw(names), draw(stamps), turn, place]


def check_tree(case: bytes, folder: Path) -> None:
    """Each pair of frames has a rigid transform or an error, and a bad row changes nothing."""
    rows = json.loads(case)
    skipped: Counter[str] = Counter()
    messages = [(row[0], _message(row)) for row in rows]
    tree = build_tree(messages, skipped)
    bad = [
        _message(["/tf", "odom", "base_link", START, [0, 0, 0, float("nan")], [0, 0, 0]]),
        _message(["/tf", "odom", "base_link", START + 2 * STEP, [0, 0, 0, 1], [1e30, 0, 0]]),
    ]
    more = build_tree([*messages, *(("/tf", message) for message in bad)], Counter())
    for target in FRAMES:
        for source in FRAMES:
            found = _static(tree, target, source)
            again = _static(more, target, source)
            assert (found is None) == (again is None)
            if found is not None:
                check_pose(found)
                back = _static(tree, source, target)
                assert back is not None
                size = max(1.0, float(np.abs(found).max()))
                assert np.abs(found @ back - np.eye(4)).max() < 1e-6 * size
            _check_trajectory(tree, target, source)
    try:
        tree.find_trajectory("lidar")
    except InputError as error:
        assert "lidar" in str(error) and len(str(error)) < 1000
    assert all(len(reason) < 500 for reason in skipped)


def _message(row: list[Any]) -> Any:
    """A TFMessage of one transform."""
    _, parent, child, stamp, turn, place = row
    message = tf({(parent, child): np.eye(4)}, stamp if abs(stamp) < 2**60 else START)
    moved = message.transforms[0].transform
    for name, value in zip("xyzw", turn):
        setattr(moved.rotation, name, float(value))
    for name, value in zip("xyz", place):
        setattr(moved.translation, name, float(value))
    return message


def _static(tree: TfTree, target: str, source: str) -> np.ndarray | None:
    try:
        return tree.static(target, source)
    except InputError as error:
        assert len(str(error)) < 1000
        return None


def _check_trajectory(tree: TfTree, target: str, source: str) -> None:
    try:
        found = tree.trajectory(target, source)
    except InputError as error:
        assert len(str(error)) < 1000
        return
    if found is not None:
        _check_poses(found)


def _check_poses(found: Trajectory) -> None:
    assert np.isfinite(found.poses).all() and (np.diff(found.stamps_ns) > 0).all()
    middle = int(found.stamps_ns[0]) // 2 + int(found.stamps_ns[-1]) // 2
    for stamp in (int(found.stamps_ns[0]), middle, int(found.stamps_ns[-1])):
        if found.covers(stamp):
            check_pose(found.at(stamp))


@functools.cache
def _drive() -> list[bytes]:
    """Serialized Odometry of a platform that drives along x."""
    found = []
    for i in range(6):
        pose = from_euler(0, 0, 0.1 * i, (1.0 * i, 0, 0))
        message = odometry(pose, "odom", "base_link", START + i * STEP, (0, 0, 0), (0, 0, 0))
        found.append(bytes(type_store().serialize_cdr(message, ODOMETRY)))
    return found


@st.composite
def odometries(draw: st.DrawFn) -> bytes:
    """The number of a message, a newline, and its new content."""
    number = draw(st.integers(0, len(_drive()) - 1))
    if draw(st.booleans()):
        return f"{number}\n".encode() + draw(mutated([_drive()[number]]))
    message = type_store().deserialize_cdr(_drive()[number], ODOMETRY)
    place = message.pose.pose
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from([place.position, place.orientation]))
        setattr(part, draw(st.sampled_from("xyz")), draw(st.sampled_from(FLOATS)))
    message.child_frame_id = draw(st.sampled_from(["base_link", "x" * 2000, ""]))
    return f"{number}\n".encode() + bytes(type_store().serialize_cdr(message, ODOMETRY))


class _Messages:
    """Stands in for a bag with one topic."""

    def __init__(self, raw: list[bytes]) -> None:
        self._raw = raw

    def messages(self, topics: list[str]) -> Any:
        """As `BagFile.messages`."""
        return ((None, 0, raw) for raw in self._raw)

    def deserialize(self, raw: bytes, msgtype: str) -> Any:
        """As `BagFile.deserialize`."""
        bag: Any = BagFile.__new__(BagFile)
        bag.path = Path("odometry")
        return BagFile.deserialize(bag, raw, msgtype)


def check_odometry(case: bytes, folder: Path) -> None:
    """One bad message costs one pose."""
    number, _, content = case.partition(b"\n")
    raw = [content if i == int(number) else m for i, m in enumerate(_drive())]
    tree = build_tree([("/tf_static", tf({("base_link", "lidar"): np.eye(4)}, START))], Counter())
    skipped: Counter[str] = Counter()
    bag: Any = _Messages(raw)
    found = odometry_trajectory(bag, "/odometry", tree, "lidar", skipped=skipped)
    _check_poses(found)
    assert all(len(reason) < 500 for reason in skipped), max(skipped, key=len)[:300]
    expected = {START + i * STEP: float(i) for i in range(len(raw))}
    kept = {int(stamp): float(T[0, 3]) for stamp, T in zip(found.stamps_ns, found.poses)}
    lost = [stamp for stamp, x in expected.items() if abs(kept.get(stamp, np.inf) - x) > 1e-6]
    most = 2 if _fits_instead(content, int(number)) else 1
    assert len(lost) <= most, f"one message costs {len(lost)}"


def _fits_instead(content: bytes, number: int) -> bool:
    """Whether a changed stamp fits in the place of a neighbor: either of the two may be wrong."""
    try:
        stamp = stamp_ns(type_store().deserialize_cdr(content, ODOMETRY).header)
    except Exception:  # no stamp to fit
        return False
    stamps = [START + i * STEP for i in range(len(_drive()))]
    stamps[number] = stamp
    neighbors = [i for i in (number - 1, number + 1) if 0 <= i < len(stamps)]
    others = [stamps[:i] + stamps[i + 1 :] for i in neighbors]
    return not _increase(stamps) and any(_increase(kept) for kept in others)


def _increase(stamps: list[int]) -> bool:
    return all(a < b for a, b in itertools.pairwise(stamps))


TARGETS = (
    Target("tf", transforms, check_tree, ("transform", "frame", "trajectory"), 40),
    Target("odometry", odometries, check_odometry, ("odometry", "transform", "pose"), 80),
)
