# SPDX-License-Identifier: Apache-2.0
"""Findings about a bag and their remedies."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pcseg_core.config import Section
from pcseg_core.data.account import account, grouped
from pcseg_core.data.bag_reader import CLOUD, COMPRESSED_IMAGE, IMAGE, BagFile
from pcseg_core.data.diversity import STREETS_TO_CARRY, Diversity
from pcseg_core.data.sample import Sample
from pcseg_core.point_time import possible_time_fields

if TYPE_CHECKING:
    from pcseg_core.data.bag import BagRecording

FEW_SWEEPS = 30
LITTLE_OVERLAP = 0.02  # of the points
LARGE_OFFSET_MS = 40.0  # 0.4 m at 10 m/s, without poses to correct it
LARGE_CLOCK_DIFFERENCE_S = 1.0
USUAL_RANGE_M = 80.0  # of a network, by default; see `max_range_m` of its configuration
FEW_FAR = 0.01  # of the returns
MANY_FAR = 0.5
LITTLE_GROUND = 0.5  # of the ground within 8 m, seen from anywhere on the path
MUCH_STANDING = 0.5  # of the time
FEW_OF_CLASS = 0.001  # of the points that cameras see

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


def about_topics(topics: tuple[TopicReport, ...]) -> list[Finding]:
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


def about_files(bag: BagFile) -> list[Finding]:
    """What the files of the bag do not give."""
    do = "copy the bag again if it is a copy; 'mcap recover' or 'ros2 bag reindex' make it complete"
    findings = [Finding(level="warning", what=ending, do=do) for ending in bag.endings]
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


def about_account(recording: BagRecording) -> list[Finding]:
    """Messages that are held and neither used, left out nor failed."""
    return [
        Finding(
            level="error",
            what=f"{topic}: {count} messages are neither used nor left out for a reason",
            do="the bag is damaged; repair it: mcap recover, or ros2 bag reindex",
        )
        for topic, count in account(recording).unexplained().items()
    ]


def about_cloud(content: dict[str, Any], samples: list[Sample]) -> list[Finding]:
    """Findings about the clouds.

    Args:
        content: fields of the report about the sweeps.
        samples: inspected sweeps.
    """
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
        similar = possible_time_fields(content["fields"])
        do = "fine if the driver deskews; otherwise let it publish a time field"
        if similar:
            do = f"{', '.join(similar)} may hold them: try --time-field {similar[0]}"
        findings.append(Finding(level="note", what=what, do=do))
    return findings + _about_points(content) + _about_problems(samples)


def _about_points(content: dict[str, Any]) -> list[Finding]:
    """Points that are no returns, or out of range."""
    findings = []
    zeros, far = content["zeros"], content["beyond_range"]
    if zeros:
        what = f"{100 * zeros:.1f} % of the points are exactly (0, 0, 0)"
        do = "they are taken as no returns and get no label"
        findings.append(Finding(level="note", what=what, do=do))
    if far > FEW_FAR:
        level: Level = "warning" if far > MANY_FAR else "note"
        what = f"{100 * far:.1f} % of the returns are farther than {USUAL_RANGE_M:g} m"
        do = "networks of the default range give them no label"
        if far > MANY_FAR:
            do += "; coordinates must be meters in the frame of the sensor"
        findings.append(Finding(level=level, what=what, do=do))
    return findings


def _about_problems(samples: list[Sample]) -> list[Finding]:
    """Parts of the inspected clouds that were left out."""
    counts = Counter(f"{event}: {why}" for s in samples for event, why in s.cloud.problems)
    return [
        Finding(
            level="warning",
            what=f"{count} of {len(samples)} inspected sweeps: {problem}",
            do="the sweeps are used without them",
        )
        for problem, count in grouped(counts)
    ]


def about_cameras(recording: BagRecording, cameras: tuple[CameraReport, ...]) -> list[Finding]:
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


def about_poses(recording: BagRecording) -> list[Finding]:
    if recording.trajectory is not None:
        return []
    what = next(
        (p for p in recording.problems if not p.startswith("camera ")), "no poses requested"
    )
    if find_spec("kiss_icp") is not None:
        return [Finding(level="note", what=what, do="kiss-icp estimates them when needed")]
    do = "to estimate them run: pip install 'pcseg_ros[odometry]'; or record /tf"
    return [Finding(level="warning", what=what, do=do)]


def about_diversity(found: Diversity | None) -> list[Finding]:
    """What the places of a recording, and the ground that cameras see, let expect."""
    if found is None:
        return []
    what, _, do = found.summary().partition(": ")
    level: Level = "warning" if found.known_streets < STREETS_TO_CARRY else "note"
    findings = [Finding(level=level, what=what, do=do)]
    ground = found.ground_in_drive if found.posed else found.ground_in_sweep
    if ground is not None and ground < LITTLE_GROUND:
        what = f"cameras see {ground:.0%} of the ground within 8 m"
        do = "the rest gets no label: drive on, so that what was ahead comes near, or add a camera"
        if not found.posed:
            do = "poses let labels be seen from farther away on the path"
        findings.append(Finding(level="warning", what=what, do=do))
    if found.standing is not None and found.standing > MUCH_STANDING:
        what = f"the vehicle stands still for {found.standing:.0%} of the time"
        findings.append(Finding(level="note", what=what, do="these sweeps add little"))
    return findings


def about_classes(shares: dict[str, float]) -> list[Finding]:
    """Classes that cameras hardly ever show.

    Args:
        shares: of the points that cameras see, by class.
    """
    rare = [f"{name} ({share:.2%})" for name, share in shares.items() if share < FEW_OF_CLASS]
    if not rare:
        return []
    what = f"hardly any point of {', '.join(rare)} by this teacher"
    do = "record where there are some; the segmenter will not know them"
    return [Finding(level="warning", what=what, do=do)]
