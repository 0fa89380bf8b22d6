# SPDX-License-Identifier: Apache-2.0
"""The account of a bag recording: what becomes of the messages of each topic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pcseg_core.data.account import Account
from pcseg_core.data.bag_cameras import no_picture
from pcseg_core.data.bag_reader import CAMERA_INFO, CLOUD, COMPRESSED_IMAGE, IMAGE, ODOMETRY, TF

if TYPE_CHECKING:
    from pcseg_core.data.bag import BagRecording
    from pcseg_core.data.bag_reader import BagFile

_FAILED = "message that does not deserialize"
_UNCOVERED = "sweep outside the time of the poses"
_OF_SWEEPS = ("no image near the sweep", "image outside the time of the poses")


def bag_account(recording: BagRecording) -> Account:
    """Account of all topics of the bag; the topic of the sweeps is first."""
    bag, found = recording.bag, Account()
    explain_files(found, bag, recording.cloud_topic)
    damaged = bag.damaged()
    for topic in found.held:
        _explain(found, recording, topic, bag.counts[topic] - damaged[topic])
    return found


def explain_files(found: Account, bag: BagFile, first: str = "") -> None:
    """Account for what a bag holds, and for the messages that its files do not give.

    Args:
        found: is added to.
        bag: the bag.
        first: topic of the first entry.
    """
    damaged, missing = bag.damaged(), bag.missing()
    found.remarks += bag.endings
    for topic in sorted(bag.held, key=lambda topic: (topic != first, topic)):
        found.held[topic] = bag.held[topic]
        for (name, _), (reason, count) in bag.left_out.items():
            if name == topic and count:
                found.left_out[topic][reason] += count
        if missing[topic]:
            found.left_out[topic]["named in metadata.yaml and not in its files"] = missing[topic]
        if damaged[topic]:
            found.failed[topic]["lost in a damaged chunk"] += damaged[topic]


def _explain(found: Account, recording: BagRecording, topic: str, readable: int) -> None:
    """Account for the messages of a topic that the files give."""
    if not readable:
        return
    reason = _unused(recording, topic)
    if reason:
        found.left_out[topic][reason] += readable
        return
    explained = 0
    for why, count in _skipped(recording, topic):
        (found.failed if why == _FAILED else found.left_out)[topic][why] += count
        explained += count
    camera = next((c for c in recording.cameras if c.topics.image == topic), None)
    if topic in recording.cloud_topics:
        found.used[topic] = recording.sweeps.counts()[topic]
        rest = readable - explained - found.used[topic]
        if rest > 0 and len(recording.cloud_topics) > 1:
            found.left_out[topic]["joins no sweep, or is outside the time of the poses"] = rest
    elif camera is None:
        found.used[topic] = readable - explained
    else:
        pairs = recording.pairs(camera)
        paired = len(np.unique(pairs[pairs >= 0]))
        fault = recording.camera_faults.get(topic, "")
        if fault and paired:
            found.failed[topic][f"no inspected image can be used: {fault}"] = paired
        else:
            found.used[topic] = paired
        other = len(camera.index) - paired
        if other:
            found.left_out[topic]["not the image nearest to a sweep"] += other


def _skipped(recording: BagRecording, topic: str) -> Iterator[tuple[str, int]]:
    """(reason, count) of the messages of a topic that the reader skipped."""
    for text, count in recording.skipped.items():
        kind, _, why = text.partition(": ")
        if text == _UNCOVERED:
            if (topic,) == recording.cloud_topics:  # of several topics a sweep is several messages
                yield text, count
        elif kind == topic and why not in _OF_SWEEPS and not why.startswith("transform"):
            yield why, count


def _unused(recording: BagRecording, topic: str) -> str:
    """Why no message of a topic is used; empty if some are."""
    kind = recording.bag.topics.get(topic, "")
    if topic in recording.cloud_topics or kind in (TF, CAMERA_INFO, ODOMETRY):
        return ""
    if kind in (IMAGE, COMPRESSED_IMAGE):
        if any(camera.topics.image == topic for camera in recording.cameras):
            return ""
        problem = next((p for p in recording.problems if f"camera {topic} cannot" in p), "")
        by_name = no_picture(topic)
        return problem or (by_name and f"{by_name}, by its name") or "not a chosen camera"
    if kind == CLOUD:
        return "not the chosen cloud topic"
    return points_elsewhere(kind) or f"{kind} is not used"


def points_elsewhere(msgtype: str) -> str:
    """What to do with points recorded in another type than PointCloud2; empty for no points."""
    package, _, name = msgtype.partition("/msg/")
    if package.startswith("livox") and name == "CustomMsg":
        return "livox CustomMsg: set xfer_format 0 or 2 in the driver to record PointCloud2"
    if "Packet" in name or name in ("VelodyneScan", "PandarScan", "RslidarScan"):
        return f"{msgtype}: packets of the sensor; replay them through the driver and record points"
    if msgtype in ("sensor_msgs/msg/PointCloud", "sensor_msgs/msg/LaserScan"):
        return f"{msgtype} is not read; convert it to PointCloud2"
    return ""
