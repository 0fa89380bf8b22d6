# SPDX-License-Identifier: Apache-2.0
"""A sweep with its images and poses, the same with its labels, and the problems of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import TIME_PROBLEM, PointCloud
from pcseg_core.geometry import undo_motion
from pcseg_core.labels import LabelSpace
from pcseg_core.point_time import possible_time_fields
from pcseg_core.returns import last_returns

if TYPE_CHECKING:
    from pcseg_core.data.sample import CameraFrame, Sample
    from pcseg_core.geometry import Poses
    from pcseg_core.online.tracks import Tracked

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

NO_MOTION = "motion not known"
NO_EVIDENCE = "camera evidence late"
NO_TIMES = "no point times to deskew with"
OUT_OF_RANGE = "most points out of range"
NOT_FINITE = "confidence not finite"
UNLIKE_TRAINING = "input unlike the training"
# Share of the returns beyond the range of the checkpoint that is reported.
_FAR_SHARE = 0.5


@dataclass
class Sweep:
    """One sweep with its images and the motion of the platform.

    Attributes:
        cloud: points as measured, LiDAR frame.
        frames: returns the images, each with `T_cam_lidar` from the LiDAR frame at the sweep's
            stamp to the camera frame at the image's stamp; None without images.
        poses: stamps (K,) int64 ns -> T_fixed_lidar (K, 4, 4) in a frame without jumps; raises
            `PcsegError` for a stamp whose pose is unknown. None for a platform without poses.
    """

    cloud: PointCloud
    frames: Callable[[], Sequence[CameraFrame]] | None = None
    poses: Poses | None = None

    @classmethod
    def of(cls, sample: Sample) -> Sweep:
        """The sweep of a recorded sample."""
        frames = sample.frames_at_sweep if sample.cameras else None
        poses = None if sample.trajectory is None else sample.trajectory.at_many
        return cls(sample.cloud, frames, poses)

    def deskewed(self) -> PointCloud:
        """The cloud, corrected for the motion within the sweep where times and poses are given.

        Raises:
            PcsegError: a pose is unknown.
        """
        cloud = self.cloud
        if self.poses is None or cloud.time is None:
            return cloud
        xyz = undo_motion(cloud.xyz, cloud.time, self.poses, cloud.stamp_ns)
        # Moved to one moment, the returns of a beam are no longer in one direction.
        return replace(cloud, xyz=xyz, last=last_returns(cloud))


@dataclass
class LabeledSweep:
    """A sweep with its labels.

    Attributes:
        cloud: the points, deskewed if the configuration says so; intensities as measured.
        labels: (N,) int32 class ids; IGNORE for points without a label, with too low confidence or
            too high entropy.
        confidence: (N,) float32 in 0..1; 0 for points that the network gave no label.
        label_space: meaning of the ids.
        stages_ms: wall time of each stage: motion, inference, fusion [ms].
        inference_ms: wall time of the steps of inference; see `Segmentation.timings_ms` [ms].
        problems: (event, reason) of each input that is missing or unusable; the sweep was labeled
            without it. Events: NO_MOTION, NO_EVIDENCE, NO_TIMES, OUT_OF_RANGE, NOT_FINITE
            and UNLIKE_TRAINING of this module, `pcseg_core.cloud.TIME_PROBLEM`.
        out_of_range: number of returns beyond the range of the checkpoint, unlabeled.
        probabilities: (N, C) float32 of all classes after fusion and smoothing, rows of 0 for
            points without a label; None if they were not requested.
        pose: (4, 4) T_fixed_lidar at the stamp; None if it is unknown or was not needed.
        uncalibrated: (N,) float32 confidence of the network before calibration, if the segmenter
            was asked to keep it, else None.
        moving: (N,) uint8 UNKNOWN, STATIC or MOVING of `pcseg_core.labels`, all UNKNOWN
            without a pose; None if it was not requested.
        tracked: tracks of things, empty without a pose; None if they were not requested.
    """

    cloud: PointCloud
    labels: npt.NDArray[np.int32]
    confidence: npt.NDArray[np.float32]
    label_space: LabelSpace
    stages_ms: dict[str, float] = field(default_factory=dict)
    inference_ms: dict[str, float] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    out_of_range: int = 0
    probabilities: npt.NDArray[np.float32] | None = None
    pose: Float64 | None = None
    uncalibrated: npt.NDArray[np.float32] | None = None
    moving: npt.NDArray[np.uint8] | None = None
    tracked: Tracked | None = None

    def part(self, rows: slice) -> LabeledSweep:
        """Some of the points with their labels; of the cloud the positions alone."""

        def own(values: Array | None) -> Array | None:
            return None if values is None else values[rows]

        tracked = self.tracked
        if tracked is not None:
            tracked = replace(tracked, instances=tracked.instances[rows])
        return replace(
            self,
            cloud=PointCloud(
                self.cloud.xyz[rows], frame_id=self.cloud.frame_id, stamp_ns=self.cloud.stamp_ns
            ),
            labels=self.labels[rows],
            confidence=self.confidence[rows],
            probabilities=own(self.probabilities),
            uncalibrated=own(self.uncalibrated),
            moving=own(self.moving),
            tracked=tracked,
        )


def check_times(cloud: PointCloud) -> list[tuple[str, str]]:
    """Problems of the times of a sweep that is to be deskewed."""
    problems = [(event, why) for event, why in cloud.problems if event == TIME_PROBLEM]
    if problems or (cloud.time is not None and np.isfinite(cloud.time).any()):
        return problems
    similar = ", ".join(possible_time_fields(cloud.extra))
    hint = f"set motion.time_field to one of: {similar}" if similar else "let the driver send them"
    return [(NO_TIMES, f"deskewing is on and no point has a time; {hint}")] if len(cloud) else []


def check_result(cloud: PointCloud, not_finite: int, out_of_range: int) -> list[tuple[str, str]]:
    """Problems that the labels of a sweep show."""
    problems = []
    if not_finite:
        why = f"{not_finite} points; the checkpoint or the teacher is damaged; they get no label"
        problems.append((NOT_FINITE, why))
    returns = np.count_nonzero(cloud.finite) if out_of_range else 0
    if out_of_range > _FAR_SHARE * returns:
        why = (
            f"{100 * out_of_range / returns:.0f} % of the points are beyond the range of the "
            "checkpoint and get no label; coordinates must be meters in the frame of the sensor"
        )
        problems.append((OUT_OF_RANGE, why))
    return problems
