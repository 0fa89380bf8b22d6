# SPDX-License-Identifier: Apache-2.0
"""Inspection of a bag: content, problems, and whether it can train a segmenter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.cloud import PointCloud
from pcseg_core.config import Section
from pcseg_core.data.account import Entry, account, grouped
from pcseg_core.data.bag import BagRecording
from pcseg_core.data.bag_calibration import BagCamera
from pcseg_core.data.bag_findings import (
    USUAL_RANGE_M,
    CameraReport,
    Finding,
    Level,
    TopicReport,
    about_account,
    about_cameras,
    about_classes,
    about_cloud,
    about_diversity,
    about_files,
    about_poses,
    about_topics,
)
from pcseg_core.data.bag_lidars import LidarReport, about_lidars, compare_lidars, must_choose
from pcseg_core.data.bag_reader import CLOUD, STAMPED, BagFile, TopicIndex
from pcseg_core.data.diversity import Diversity, diversity
from pcseg_core.data.sample import Sample
from pcseg_core.data.stamps import longest_increasing, nearest
from pcseg_core.errors import InputError
from pcseg_core.projection import project_sample

SAMPLES = 8  # inspected sweeps


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
    zeros: float | None = Field(
        default=None, description="share of the points at exactly (0, 0, 0), 0..1"
    )
    beyond_range: float | None = Field(
        default=None, description="share of the returns beyond the usual range of a network, 0..1"
    )
    fields: tuple[str, ...] = Field(default=(), description="data of the clouds besides x, y and z")
    intensity_scale: float | None = Field(
        default=None, description="factor that maps the intensities to 0..1"
    )
    intensity_source: str = Field(default="", description="where the factor comes from")
    poses: str = Field(default="none", description="tf, odometry, kiss-icp, file or none")
    distance_m: float | None = Field(default=None, description="length of the path")
    visible: float | None = Field(
        default=None, description="share of the points that any camera sees"
    )
    diversity: Diversity | None = Field(
        default=None, description="streets, places, and what to expect; null without sweeps"
    )
    topics: tuple[TopicReport, ...] = ()
    lidars: tuple[LidarReport, ...] = Field(
        default=(), description="other LiDARs of the bag, compared with the first of the sweeps"
    )
    cameras: tuple[CameraReport, ...] = ()
    skipped: dict[str, int] = Field(default_factory=dict, description="skipped items by reason")
    account: dict[str, Entry] = Field(
        default_factory=dict, description="messages held, used, left out and failed, by topic"
    )
    findings: tuple[Finding, ...] = ()
    trainable: bool = False

    def with_classes(self, shares: dict[str, float]) -> BagReport:
        """The report with the share of each class among the points that cameras see."""
        if self.diversity is None:
            return self
        diverse = self.diversity.model_copy(update={"classes": shares})
        return self.with_findings(about_classes(shares)).model_copy(update={"diversity": diverse})

    def with_findings(self, findings: list[Finding]) -> BagReport:
        """The report with more findings."""
        return self.model_copy(update={"findings": _sorted([*self.findings, *findings])})


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
    options = {"poses": "recorded", "index_all": True, **options}
    try:
        recording = BagRecording(path, **options)
    except InputError as error:
        bag = BagFile(path)
        clouds = bag.of_type(CLOUD)
        if len(clouds) > 1 and options.get("cloud_topic") is None:
            recording = BagRecording(path, **{**options, "cloud_topic": clouds[0]})
            report = report_on(recording).with_findings([must_choose(clouds)])
            return report.model_copy(update={"trainable": False}), recording
        if clouds:
            raise
        findings = [Finding(level="error", what=str(error), do="record a PointCloud2 topic")]
        indices, _ = bag.index(bag.of_type(*STAMPED))
        return _report(bag, None, indices, [], findings), None
    return report_on(recording), recording


def report_on(recording: BagRecording) -> BagReport:
    """The report of `inspect_bag` for an opened recording; compares the LiDARs that it indexed."""
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
    findings += about_topics(topics) + about_files(bag)
    content: dict[str, Any] = {"path": str(bag.path), "duration_s": _duration(indices)}
    cameras: tuple[CameraReport, ...] = ()
    if recording is not None:
        seen, any_camera = _visibility(recording, samples, findings)
        cameras = tuple(_camera(recording, camera, seen) for camera in recording.cameras)
        content |= _about_sweeps(recording, samples) | {"visible": any_camera}
        content["lidars"] = compare_lidars(recording)
        findings += about_lidars(recording, content["lidars"])
        findings += (
            about_cloud(content, samples)
            + about_cameras(recording, cameras)
            + about_poses(recording)
            + about_diversity(content["diversity"])
        )
        findings += about_account(recording)
    errors = any(finding.level == "error" for finding in findings)
    return BagReport(
        **content, topics=topics, cameras=cameras, findings=_sorted(findings), trainable=not errors
    )


def _sorted(findings: list[Finding]) -> tuple[Finding, ...]:
    """The findings, errors first."""
    order = ("error", "warning", "note")
    return tuple(sorted(findings, key=lambda finding: order.index(finding.level)))


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
                visible = project_sample(sample, k).visible
            except InputError as error:
                faults[frame.name][str(error)] += 1
                continue
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
    diverse = diversity([recording], samples) if samples else None
    content: dict[str, Any] = {
        "diversity": diverse,
        "distance_m": diverse.distance_m if diverse else None,
        "cloud_topic": recording.cloud_topic,
        "sweeps": len(recording),
        "poses": recording.pose_source,
        "skipped": dict(grouped(recording.skipped)),
        "account": account(recording).entries(),
    }
    if samples:
        clouds = [sample.cloud for sample in samples]
        content["points"] = int(np.median([len(cloud) for cloud in clouds]))
        content["finite"] = float(np.mean([cloud.finite.mean() for cloud in clouds]))
        content["zeros"] = float(np.mean([(cloud.xyz == 0).all(axis=1).mean() for cloud in clouds]))
        far = [_range(cloud)[cloud.finite] > USUAL_RANGE_M for cloud in clouds]
        content["beyond_range"] = float(np.mean(np.concatenate(far)))
        first = clouds[0]
        named = [n for n in ("intensity", "time", "ring") if getattr(first, n) is not None]
        content["fields"] = (*named, *first.extra)
        if first.intensity is not None:
            content["intensity_scale"] = recording.scale.factor
            content["intensity_source"] = recording.scale.source
    return content


def _range(cloud: PointCloud) -> npt.NDArray[np.float64]:
    """(N,) distance of the points from the sensor [m]."""
    distance: npt.NDArray[np.float64] = np.linalg.norm(cloud.xyz.astype(np.float64), axis=1)
    return distance
