# SPDX-License-Identifier: Apache-2.0
"""Inspection of a bag: content, problems, and whether it can train a segmenter."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.config import Section
from pcseg_core.data.account import Entry, account, grouped
from pcseg_core.data.bag import BagCamera, BagRecording
from pcseg_core.data.bag_reader import CLOUD, COMPRESSED_IMAGE, IMAGE, STAMPED, BagFile, TopicIndex
from pcseg_core.data.sample import Sample
from pcseg_core.data.stamps import longest_increasing, nearest
from pcseg_core.errors import InputError
from pcseg_core.projection import project_sample

SAMPLES = 8  # inspected sweeps
FEW_SWEEPS = 30
LITTLE_OVERLAP = 0.02  # of the points
LARGE_OFFSET_MS = 40.0  # 0.4 m at 10 m/s, without poses to correct it
LARGE_CLOCK_DIFFERENCE_S = 1.0

Level = Literal["error", "warning", "note"]


class TopicReport(Section):
    """One topic; times are null if its messages have no stamps."""

    topic: str
    type: str
    messages: int
    rate_hz: float | None = Field(default=None, description="median rate by header stamps")
    missing: int = Field(default=0, description="messages lost, by the gaps in the stamps")
    backward: int = Field(default=0, description="stamps that repeat or go backwards")
    delay_ms: float | None = Field(default=None, description="median of recording time minus stamp")


class CameraReport(Section):
    """One usable camera."""

    name: str
    topic: str
    width: int
    height: int
    distortion_model: str
    distance_m: float = Field(description="from the LiDAR to the camera")
    images: int
    paired: float = Field(description="share of the sweeps with an image, 0..1")
    offset_ms: float | None = Field(description="median of image stamp minus sweep stamp")
    offset_spread_ms: float | None = Field(description="5 % to 95 % range of that offset")
    visible: float | None = Field(description="share of the points that the camera sees, 0..1")


class Finding(Section):
    """A finding and its remedy."""

    level: Level
    what: str
    do: str = ""


class BagReport(Section):
    """Report of `pcseg bag info`."""

    path: str
    duration_s: float
    cloud_topic: str | None = None
    sweeps: int = 0
    points: int | None = Field(default=None, description="median points of a sweep")
    finite: float | None = Field(
        default=None, description="share of the points with a position, 0..1"
    )
    fields: tuple[str, ...] = Field(default=(), description="data of the clouds besides x, y and z")
    poses: str = Field(default="none", description="tf, odometry, kiss-icp, file or none")
    distance_m: float | None = Field(default=None, description="length of the path")
    visible: float | None = Field(
        default=None, description="share of the points that any camera sees"
    )
    topics: tuple[TopicReport, ...] = ()
    cameras: tuple[CameraReport, ...] = ()
    skipped: dict[str, int] = Field(default_factory=dict, description="skipped items by reason")
    account: dict[str, Entry] = Field(
        default_factory=dict, description="messages held, used, left out and failed, by topic"
    )
    findings: tuple[Finding, ...] = ()
    trainable: bool = False


def inspect_bag(path: str | Path, **options: Any) -> tuple[BagReport, BagRecording | None]:
    """Inspect a bag.

    Args:
        path: bag folder or file.
        options: of `BagRecording`; the default of `poses` is "recorded".

    Returns:
        The report, and the opened recording; None if the bag has no clouds.

    Raises:
        InputError: the bag is unreadable.
    """
    bag = BagFile(path)
    findings: list[Finding] = []
    try:
        recording = BagRecording(path, **{"poses": "recorded", **options})
    except InputError as error:
        if bag.of_type(CLOUD):
            raise
        findings.append(Finding(level="error", what=str(error), do="record a PointCloud2 topic"))
        indices, _ = bag.index(bag.of_type(*STAMPED))
        return _report(bag, None, indices, [], findings), None
    return report_on(recording), recording


def report_on(recording: BagRecording) -> BagReport:
    """The report of `inspect_bag` for an opened recording."""
    findings: list[Finding] = []
    samples = _some_samples(recording, findings)
    return _report(recording.bag, recording, recording.indices, samples, findings)


def _some_samples(recording: BagRecording, findings: list[Finding]) -> list[Sample]:
    """Sweeps spread over the bag; unreadable ones become findings."""
    samples = []
    for index in np.unique(np.linspace(0, len(recording) - 1, SAMPLES).astype(int)).tolist():
        try:
            samples.append(recording[index])
        except InputError as error:
            findings.append(Finding(level="warning", what=str(error), do="such sweeps are skipped"))
    return samples


def _report(
    bag: BagFile,
    recording: BagRecording | None,
    indices: dict[str, TopicIndex],
    samples: list[Sample],
    findings: list[Finding],
) -> BagReport:
    topics = tuple(_topic(bag, topic, indices.get(topic)) for topic in sorted(bag.topics))
    topics += tuple(
        TopicReport(topic=topic, type=kind, messages=count)
        for (topic, kind), (_, count) in bag.left_out.items()
    )
    findings += _about_topics(topics) + _about_files(bag)
    content: dict[str, Any] = {"path": str(bag.path), "duration_s": _duration(indices)}
    cameras: tuple[CameraReport, ...] = ()
    if recording is not None:
        seen, any_camera = _visibility(recording, samples, findings)
        cameras = tuple(_camera(recording, camera, seen) for camera in recording.cameras)
        content |= _about_sweeps(recording, samples) | {"visible": any_camera}
        findings += (
            _about_cloud(content) + _about_cameras(recording, cameras) + _about_poses(recording)
        )
        findings += _about_account(recording)
    errors = any(finding.level == "error" for finding in findings)
    order = ("error", "warning", "note")
    findings.sort(key=lambda finding: order.index(finding.level))
    return BagReport(
        **content, topics=topics, cameras=cameras, findings=tuple(findings), trainable=not errors
    )


def _topic(bag: BagFile, topic: str, index: TopicIndex | None) -> TopicReport:
    kind, count = bag.topics[topic], bag.counts[topic]
    if index is None or len(index) < 2:
        return TopicReport(topic=topic, type=kind, messages=count)
    kept = longest_increasing(index.stamps_ns)
    steps = np.diff(index.stamps_ns[kept])
    period = float(np.median(steps)) if len(steps) else 0.0
    lost = np.rint(steps / period) - 1 if period else np.zeros(0)
    return TopicReport(
        topic=topic,
        type=kind,
        messages=count,
        rate_hz=1e9 / period if period else None,
        missing=int(lost[lost > 0].sum()),
        backward=len(index) - len(kept),
        delay_ms=float(np.median(index.bag_ns - index.stamps_ns)) * 1e-6,
    )


def _duration(indices: dict[str, TopicIndex]) -> float:
    ends = [(int(i.bag_ns.min()), int(i.bag_ns.max())) for i in indices.values()]
    return (max(e for _, e in ends) - min(s for s, _ in ends)) * 1e-9 if ends else 0.0


def _visibility(
    recording: BagRecording, samples: list[Sample], findings: list[Finding]
) -> tuple[dict[str, float], float | None]:
    """Share of the finite points that each camera sees, and that any camera sees."""
    shares: dict[str, list[float]] = {camera.topics.name: [] for camera in recording.cameras}
    together = []
    faults: dict[str, Counter[str]] = {name: Counter() for name in shares}
    for sample in samples:
        seen = np.zeros(len(sample.cloud), dtype=bool)
        total = int(sample.cloud.finite.sum())
        for k, frame in enumerate(sample.cameras):
            try:
                frame.image  # noqa: B018 - does it decode?
            except InputError as error:
                faults[frame.name][str(error)] += 1
                continue
            visible = project_sample(sample, k).visible
            shares[frame.name].append(float(visible.sum()) / total)
            seen |= visible
        together.append(float(seen.sum()) / total)
    for name, reasons in faults.items():
        level: Level = "warning" if any(shares.values()) else "error"
        for reason, count in grouped(reasons):
            what = f"{count} of {len(samples)} inspected images of {name} cannot be used: {reason}"
            do = "such images are skipped" if shares[name] else "the camera cannot be used"
            findings.append(Finding(level=level, what=what, do=do))
    means = {name: float(np.mean(values)) for name, values in shares.items() if values}
    return means, float(np.mean(together)) if together else None


def _camera(recording: BagRecording, camera: BagCamera, seen: dict[str, float]) -> CameraReport:
    offsets = _offsets_ms(recording, camera)
    spread = np.percentile(offsets, [5, 95]) if len(offsets) else None
    return CameraReport(
        name=camera.topics.name,
        topic=camera.topics.image,
        width=camera.model.width,
        height=camera.model.height,
        distortion_model=camera.model.distortion_model,
        distance_m=float(np.linalg.norm(camera.T_cam_lidar[:3, 3])),
        images=len(camera.index),
        paired=float(np.mean(recording.pairs(camera) >= 0)),
        offset_ms=float(np.median(offsets)) if len(offsets) else None,
        offset_spread_ms=None if spread is None else float(spread[1] - spread[0]),
        visible=seen.get(camera.topics.name),
    )


def _offsets_ms(recording: BagRecording, camera: BagCamera) -> npt.NDArray[np.float64]:
    """Stamp of the nearest image minus that of the sweep, for all sweeps."""
    stamps = camera.index.stamps_ns
    sweeps = recording.clouds.stamps_ns.tolist()
    return np.array([int(stamps[nearest(stamps, sweep)]) - sweep for sweep in sweeps]) * 1e-6


def _about_sweeps(recording: BagRecording, samples: list[Sample]) -> dict[str, Any]:
    content: dict[str, Any] = {
        "cloud_topic": recording.cloud_topic,
        "sweeps": len(recording),
        "poses": recording.pose_source,
        "skipped": dict(grouped(recording.skipped)),
        "account": account(recording).entries(),
    }
    if recording.trajectory is not None:
        places = recording.trajectory.at_many(recording.clouds.stamps_ns)[:, :3, 3]
        steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
        content["distance_m"] = float(steps.sum())
    if samples:
        clouds = [sample.cloud for sample in samples]
        content["points"] = int(np.median([len(cloud) for cloud in clouds]))
        content["finite"] = float(np.mean([cloud.finite.mean() for cloud in clouds]))
        first = clouds[0]
        named = [n for n in ("intensity", "time", "ring") if getattr(first, n) is not None]
        content["fields"] = (*named, *first.extra)
    return content


def _about_topics(topics: tuple[TopicReport, ...]) -> list[Finding]:
    findings = []
    for topic in topics:
        sensor = topic.type in (CLOUD, IMAGE, COMPRESSED_IMAGE)
        if sensor and topic.missing > 0.05 * topic.messages:
            what = f"{topic.topic}: about {topic.missing} messages are missing"
            do = "check the recorder's disk and the DDS buffers; the rest of the bag is usable"
            findings.append(Finding(level="warning", what=what, do=do))
        if sensor and topic.backward:
            what = f"{topic.topic}: {topic.backward} stamps repeat or go backwards"
            do = "these messages are skipped; check the clock synchronization of the driver"
            findings.append(Finding(level="warning", what=what, do=do))
        delay_s = (topic.delay_ms or 0.0) * 1e-3
        if abs(delay_s) > LARGE_CLOCK_DIFFERENCE_S:
            what = f"{topic.topic}: stamps and recording times differ by {delay_s:.1f} s"
            do = "make sure that all sensors share one clock (PTP); header stamps are used here"
            findings.append(Finding(level="warning", what=what, do=do))
    return findings


def _about_files(bag: BagFile) -> list[Finding]:
    """What the files of the bag do not give."""
    findings = []
    lost = sum(bag.damaged().values())
    if lost:
        do = "copy the bag again, or repair it: mcap recover"
        what = f"{lost} messages are lost in damaged chunks"
        findings.append(Finding(level="warning", what=what, do=do))
    missing = bag.missing()
    if any(missing.values()):
        what = f"metadata.yaml names {sum(missing.values())} messages that its files do not hold"
        findings.append(Finding(level="warning", what=what, do="copy the bag again"))
    for (topic, _), (reason, count) in bag.left_out.items():
        if count:
            what = f"{topic}: {count} messages are left out: {reason}"
            findings.append(Finding(level="note", what=what))
    return findings


def _about_account(recording: BagRecording) -> list[Finding]:
    """Messages that are held and neither used, left out nor failed."""
    return [
        Finding(
            level="error",
            what=f"{topic}: {count} messages are neither used nor left out for a reason",
            do="the bag is damaged; repair it: mcap recover, or ros2 bag reindex",
        )
        for topic, count in account(recording).unexplained().items()
    ]


def _about_cloud(content: dict[str, Any]) -> list[Finding]:
    findings = []
    if content.get("points") is None:
        do = "see the reasons above"
        findings.append(Finding(level="error", what="no sweep could be read", do=do))
        return findings
    if content["sweeps"] < FEW_SWEEPS:
        what = f"only {content['sweeps']} sweeps"
        do = (
            "record more, of many different places: diversity decides how well the result transfers"
        )
        findings.append(Finding(level="warning", what=what, do=do))
    if "intensity" not in content["fields"]:
        do = "let the driver publish it; it is worth several points of mIoU"
        findings.append(Finding(level="note", what="the clouds have no intensity", do=do))
    if "time" not in content["fields"]:
        what = "the points have no per-point times, so the sweeps cannot be deskewed"
        do = "fine if the driver deskews; otherwise let it publish a time field"
        findings.append(Finding(level="note", what=what, do=do))
    return findings


def _about_cameras(recording: BagRecording, cameras: tuple[CameraReport, ...]) -> list[Finding]:
    findings = [
        Finding(level="warning", what=problem)
        for problem in recording.problems
        if problem.startswith("camera ")
    ]
    if not cameras:
        missing = "no camera has images, CameraInfo and an extrinsic calibration"
        do = "record images, camera_info and /tf_static, or give --calibration FILE"
        findings.append(Finding(level="error", what=missing, do=do))
    usable = any(camera.paired and camera.visible for camera in cameras)
    for camera in cameras:
        findings += _about_camera(camera, recording.trajectory is not None, usable)
    return findings


def _about_camera(camera: CameraReport, moving_known: bool, other_usable: bool) -> list[Finding]:
    """Findings of a camera; what makes it useless is an error if no camera is useful."""
    findings = []
    useless: Level = "warning" if other_usable else "error"
    if camera.paired == 0:
        what = f"{camera.topic}: no image matches a sweep in time"
        do = "check that camera and LiDAR share one clock"
        findings.append(Finding(level=useless, what=what, do=do))
    elif camera.paired < 0.9:
        what = f"{camera.topic}: {1 - camera.paired:.0%} of the sweeps have no image"
        do = "raise the frame rate or trigger the camera"
        findings.append(Finding(level="warning", what=what, do=do))
    if camera.visible is not None and camera.visible < LITTLE_OVERLAP:
        what = f"{camera.topic}: sees only {camera.visible:.1%} of the points"
        do = "check the calibration in the picture (--picture)"
        level = useless if camera.visible == 0 else "warning"
        findings.append(Finding(level=level, what=what, do=do))
    if camera.offset_ms is not None and abs(camera.offset_ms) > LARGE_OFFSET_MS and camera.paired:
        what = f"{camera.topic}: images are {camera.offset_ms:+.0f} ms from the sweeps"
        made_up = "poses correct the motion of the robot, not that of other objects"
        do = made_up if moving_known else "without poses this shifts points against pixels"
        findings.append(Finding(level="warning", what=what, do=do))
    return findings


def _about_poses(recording: BagRecording) -> list[Finding]:
    if recording.trajectory is not None:
        return []
    what = next(
        (p for p in recording.problems if not p.startswith("camera ")), "no poses requested"
    )
    if find_spec("kiss_icp") is not None:
        return [Finding(level="note", what=what, do="kiss-icp estimates them when needed")]
    do = "to estimate them run: pip install 'pcseg_ros[odometry]'; or record /tf"
    return [Finding(level="warning", what=what, do=do)]
