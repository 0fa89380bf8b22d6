# SPDX-License-Identifier: Apache-2.0
"""The sweeps of a bag: those of one cloud topic, or united ones of several."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import IntensityScale, PointCloud, read_cloud
from pcseg_core.data.bag_account import points_elsewhere
from pcseg_core.data.bag_reader import CLOUD, BagFile, TopicIndex
from pcseg_core.data.lidar_sets import OTHER_CLOCK_S, LidarSet, join_stamps
from pcseg_core.errors import InputError
from pcseg_core.labels import WIRE_UNLABELED, LabelSpace
from pcseg_core.uniting import Part, unite

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LidarTopic:
    """The clouds of one LiDAR.

    Attributes:
        index: its messages, with increasing stamps.
        T_united_lidar: (4, 4) its place in the frame of the sweeps.
        scale: of its intensities.
        reading: options of `read_cloud`.
    """

    index: TopicIndex
    T_united_lidar: Float64
    scale: IntensityScale
    reading: Mapping[str, Any]


def choose_topics(bag: BagFile, wanted: str | None) -> tuple[str, ...]:
    """The cloud topics to read.

    Args:
        bag: the bag.
        wanted: one topic, or several with commas between them; None takes the only one.

    Raises:
        InputError: there are several and none is wanted, or one that is wanted is not there.
    """
    topics = bag.of_type(CLOUD)
    if wanted is not None:
        chosen = tuple(dict.fromkeys(name.strip() for name in wanted.split(",")))
        for name in chosen:
            if name not in topics:
                known = ", ".join(topics) or "none"
                raise InputError(f"{bag.path}: no clouds on {name}; PointCloud2 topics: {known}")
        return chosen
    if len(topics) != 1:
        what = "several PointCloud2 topics, choose one" if topics else "no PointCloud2 topic"
        listed = ", ".join(topics or sorted(bag.topics)) or "none at all"
        hints = sorted(set(map(points_elsewhere, bag.topics.values())) - {""})
        hints += bag.endings
        if topics:
            hints.append("or several with commas between them, which are then united")
        raise InputError(f"{bag.path}: {'; '.join([f'{what} (topics: {listed})', *hints])}")
    return (topics[0],)


class BagClouds:
    """The sweeps of a bag.

    Args:
        bag: the bag.
        indices: messages of the topics, in their order, with increasing stamps.
        frame: of the sweeps; that of the clouds if there is one topic.
        place: gives T_united_lidar (4, 4) of a topic and its frame, or raises InputError.
        scale: of the intensities; each topic gets one like it.
        reading: further options of `read_cloud`.
        tolerance_s: maximum time between sweeps that are united [s].

    Raises:
        InputError: a topic has no place, or stamps of another clock.

    Attributes:
        topics: of the sweeps.
        index: one entry per sweep; of several topics only stamps and frame have a meaning.
        lidars: by topic.
    """

    def __init__(
        self,
        bag: BagFile,
        indices: Sequence[TopicIndex],
        frame: str,
        place: Callable[[str, str], Float64],
        scale: IntensityScale,
        reading: Mapping[str, Any],
        tolerance_s: float,
    ) -> None:
        self._bag = bag
        self.topics = tuple(index.topic for index in indices)
        self.lidars: dict[str, LidarTopic] = {}
        for index in indices:
            own = scale if not self.lidars else copy.deepcopy(scale)
            T = place(index.topic, index.frame_id)
            factor = self._guess_scale(index, own)
            self.lidars[index.topic] = LidarTopic(
                index, T, own, {**reading, "intensity_scale": factor}
            )
        self.index = indices[0]
        self._sets: list[LidarSet[int]] | None = None
        if len(indices) > 1:
            for index in indices[1:]:
                _check_clock(indices[0], index)
            stamps = {index.topic: index.stamps_ns for index in indices}
            self._sets = join_stamps(stamps, tolerance_s)
            self.index = _index_of(self._sets, indices[0], frame)

    def take(self, kept: npt.NDArray[np.int64]) -> None:
        """Keep some of the sweeps."""
        self.index = self.index.take(kept)
        if self._sets is not None:
            self._sets = [self._sets[k] for k in kept.tolist()]

    def counts(self) -> Counter[str]:
        """Topic -> number of its messages in the sweeps."""
        if self._sets is None:
            return Counter({self.topics[0]: len(self.index)})
        return Counter(topic for one in self._sets for topic in one.items)

    def members(self, sweep: int) -> dict[str, int]:
        """Topic -> position in its index of the messages of a sweep."""
        if self._sets is None:
            return {self.topics[0]: sweep}
        return dict(self._sets[sweep].items)

    def read(self, sweep: int) -> PointCloud:
        """One sweep.

        Raises:
            InputError: a message cannot be read.
        """
        members = self.members(sweep)
        if self._sets is None:
            return self.read_own(self.topics[0], sweep)
        parts = [
            Part(self.read_own(topic, position), self.lidars[topic].T_united_lidar, number)
            for number, topic in enumerate(self.topics)
            if (position := members.get(topic)) is not None
        ]
        return unite(parts, int(self.index.stamps_ns[sweep]), self.index.frame_id)

    def read_own(self, topic: str, position: int) -> PointCloud:
        """The sweep of one LiDAR, in its own frame."""
        lidar = self.lidars[topic]
        return read_cloud(self._bag.read(lidar.index, position), **lidar.reading)

    def _guess_scale(self, index: TopicIndex, scale: IntensityScale) -> float | None:
        """One intensity scale for the whole bag, from sweeps spread over it."""
        for position in np.unique(np.linspace(0, len(index) - 1, 5).astype(int)).tolist():
            try:
                message = self._bag.read(index, position)
                read_cloud(message, intensity_scale=scale, time_field="none")
            except InputError:
                continue  # reported when the sweep itself is read
        return scale.factor


def clock_ahead_s(first: TopicIndex, other: TopicIndex) -> float:
    """By how much the stamps of a topic are ahead of those of another, by recording times [s]."""
    delays = [float(np.median(index.bag_ns - index.stamps_ns)) for index in (first, other)]
    return 1e-9 * (delays[0] - delays[1])


def _check_clock(first: TopicIndex, other: TopicIndex) -> None:
    ahead_s = clock_ahead_s(first, other)
    if abs(ahead_s) > OTHER_CLOCK_S:
        raise InputError(
            f"{other.topic} cannot be united with {first.topic}: by the recording times its stamps "
            f"are {ahead_s:+.3f} s ahead, of another clock; expected one clock (PTP or the host's)"
        )


def _index_of(sets: Sequence[LidarSet[int]], first: TopicIndex, frame: str) -> TopicIndex:
    stamps = np.array([one.stamp_ns for one in sets], np.int64)
    none = np.zeros(len(stamps), np.int64)
    return TopicIndex(first.topic, first.msgtype, frame, stamps, stamps, none)


def read_labels(
    cloud: PointCloud, space: LabelSpace | None, topic: str
) -> npt.NDArray[np.int16] | None:
    """Class ids of the field `label`; 65535 in the message is -1 here.

    Raises:
        InputError: a label that is not in the space.
    """
    wire = cloud.extra.get("label")
    if wire is None or wire.ndim != 1:
        return None
    unlabeled = (wire == WIRE_UNLABELED) | (wire < 0)
    labels = np.where(unlabeled, -1, wire.astype(np.int64))
    largest = int(labels.max(initial=-1))
    if largest >= (len(space) if space is not None else WIRE_UNLABELED // 2):
        name = f"label space '{space.name}'" if space is not None else "any label space"
        raise InputError(f"{topic}: label {largest} is not in {name}; name the right space")
    return labels.astype(np.int16)
