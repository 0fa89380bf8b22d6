# SPDX-License-Identifier: Apache-2.0
"""Compare the LiDARs of a bag: offsets in time, overlap, and which of them can be united."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field
from scipy.spatial import cKDTree

from pcseg_core.cloud import read_cloud
from pcseg_core.config import Section
from pcseg_core.data import evenly_spaced
from pcseg_core.data.bag_clouds import clock_ahead_s
from pcseg_core.data.bag_findings import Finding
from pcseg_core.data.bag_reader import CLOUD, TopicIndex
from pcseg_core.data.lidar_sets import MAX_LIDAR_OFFSET_S, OTHER_CLOCK_S
from pcseg_core.data.sample import Sample
from pcseg_core.data.stamps import nearest
from pcseg_core.errors import InputError
from pcseg_core.uniting import Part, unite

if TYPE_CHECKING:
    from pcseg_core.data.bag import BagRecording

NEAR_M = 0.5
_SWEEPS = 4
_POINTS = 2000
_FEW_PAIRS = 0.5


class LidarReport(Section):
    """One more LiDAR of a bag, compared with the one of the sweeps."""

    topic: str
    frame_id: str
    offset_ms: float = Field(description="median of its stamps minus the nearest of the sweeps")
    clock_ms: float = Field(
        description="by how much its stamps are ahead of those of the sweeps, by recording times"
    )
    paired: float = Field(
        description=f"share of the sweeps with one of it within {MAX_LIDAR_OFFSET_S} s, 0..1"
    )
    overlap: float | None = Field(
        default=None,
        description=f"share of its points with a point of the sweep within {NEAR_M} m, 0..1",
    )
    problem: str = Field(default="", description="why it cannot be united; empty if it can")


def compare_lidars(recording: BagRecording) -> tuple[LidarReport, ...]:
    """The other LiDARs of a bag, compared with that of the recording (the first of several).

    Args:
        recording: opened with `index_all`, else topics that it does not read are left out.
    """
    first = recording.sweeps.lidars[recording.cloud_topic].index
    return tuple(
        _compare(recording, first, index.ordered())
        for topic, index in sorted(recording.indices.items())
        if index.msgtype == CLOUD and topic != recording.cloud_topic
    )


def _compare(recording: BagRecording, first: TopicIndex, other: TopicIndex) -> LidarReport:
    stamps = first.stamps_ns.tolist()
    steps = np.array([int(other.stamps_ns[nearest(other.stamps_ns, s)]) - s for s in stamps])
    ahead_s = clock_ahead_s(first, other)
    paired = float(np.mean(np.abs(steps) <= 1e9 * MAX_LIDAR_OFFSET_S))
    problem, overlap = "", None
    if abs(ahead_s) > OTHER_CLOCK_S:
        problem = "its stamps are of another clock"
    elif paired < _FEW_PAIRS:
        problem = f"{paired:.0%} of the sweeps have one of it near in time"
    else:
        try:
            overlap = _overlap(recording, first, other)
        except InputError as error:
            problem = str(error)
    return LidarReport(
        topic=other.topic,
        frame_id=other.frame_id,
        offset_ms=1e-6 * float(np.median(steps)),
        clock_ms=1e3 * ahead_s,
        paired=paired,
        overlap=overlap,
        problem=problem,
    )


def _overlap(recording: BagRecording, first: TopicIndex, other: TopicIndex) -> float:
    """Mean share of the points of some sweeps that have a neighbor of the first LiDAR."""
    T = recording.place_lidar(other.topic, other.frame_id)
    shares = []
    for position in evenly_spaced(len(first), _SWEEPS):
        stamp = int(first.stamps_ns[position])
        if recording.trajectory is not None and not recording.trajectory.covers(stamp):
            continue
        own = recording.sweeps.read_own(first.topic, position)
        message = recording.bag.read(other, nearest(other.stamps_ns, stamp))
        cloud = read_cloud(message, **{**recording.reading, "intensity_scale": None})
        own_T = recording.sweeps.lidars[first.topic].T_united_lidar
        united = unite([Part(own, own_T, 0), Part(cloud, T, 1)], stamp, recording.lidar_frame)
        xyz = Sample(united, trajectory=recording.trajectory).deskewed()
        assert united.source is not None
        theirs = np.flatnonzero(united.finite & (united.source == 1))
        chosen = theirs[:: max(1, len(theirs) // _POINTS)]
        tree = cKDTree(xyz[united.finite & (united.source == 0)])
        distance, _ = tree.query(xyz[chosen], distance_upper_bound=NEAR_M)
        shares.append(float(np.mean(np.isfinite(distance))))
    return float(np.mean(shares)) if shares else 0.0


def about_lidars(recording: BagRecording, lidars: Sequence[LidarReport]) -> list[Finding]:
    """Which LiDARs can be united with that of the sweeps, and why others cannot."""
    findings = [
        Finding(level="note", what=f"{lidar.topic} cannot be united: {lidar.problem}")
        for lidar in lidars
        if lidar.problem
    ]
    united = [lidar.topic for lidar in lidars if not lidar.problem]
    if united and len(recording.cloud_topics) == 1:
        topics = ",".join([recording.cloud_topic, *united])
        what = f"{' and '.join(united)} can be united with {recording.cloud_topic}"
        findings.append(Finding(level="note", what=what, do=f"cloud_topic={topics}"))
    return findings


def must_choose(topics: Sequence[str]) -> Finding:
    """The finding about a bag with several cloud topics of which none was chosen."""
    what = f"several PointCloud2 topics ({', '.join(topics)}): this is about the first"
    do = "choose one with --cloud-topic (cloud_topic= in a source), or several, comma-separated"
    return Finding(level="error", what=what, do=do)
