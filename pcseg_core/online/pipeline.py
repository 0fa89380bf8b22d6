# SPDX-License-Identifier: Apache-2.0
"""The pipeline from a decoded sweep to its labels.

Steps: deskew, segment, fuse with the cameras, smooth over time, threshold. The node, the commands,
the evaluation and the benchmarks all run this pipeline, so that what is measured is what runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import PointCloud
from pcseg_core.data import evenly_spaced
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.input_check import SWEEPS_TO_MATCH, InputCheck, InputStatistics, IntensityMatches
from pcseg_core.labels import IGNORE, LabelSpace
from pcseg_core.online.camera_fusion import CameraFusionConfig, fuse_cameras
from pcseg_core.online.camera_observers import CameraObserver, Evidence, ImmediateCameras
from pcseg_core.online.free_space import Beams
from pcseg_core.online.output_clouds import entropy
from pcseg_core.online.over_time import OverTime
from pcseg_core.online.pipeline_config import PipelineConfig
from pcseg_core.online.sweep import (
    NO_EVIDENCE,
    NO_MOTION,
    UNLIKE_TRAINING,
    LabeledSweep,
    Sweep,
    check_result,
    check_times,
)
from pcseg_core.online.temporal import TemporalBuffer
from pcseg_core.progress import note

if TYPE_CHECKING:
    from pcseg_core.data import Recording
    from pcseg_core.online.segmenter import Segmentation
    from pcseg_core.online.tracks import TrackRules

__all__ = [
    "ImmediateCameras",
    "LabeledSweep",
    "MotionError",
    "Pipeline",
    "SegmenterLike",
    "Sweep",
    "Voxels",
]

Float64 = npt.NDArray[np.float64]
Voxels: TypeAlias = "tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.float32]]"


class MotionError(PcsegError):
    """The motion of the platform is unknown, and `motion.required` asks for it."""


class SegmenterLike(Protocol):
    """The part of `pcseg_core.online.segmenter.Segmenter` that the pipeline uses."""

    @property
    def label_space(self) -> LabelSpace: ...

    def segment(self, cloud: PointCloud, probabilities: bool = False) -> Segmentation: ...

    def set_prompts(self, prompts: Sequence[str] | None) -> LabelSpace: ...


class Pipeline:
    """Labels sweeps one by one, in the order of their stamps.

    Only `reset` may be called from another thread.

    Args:
        segmenter: the network.
        config: settings; None takes the defaults: the network alone.
        cameras: labels images; None fuses no cameras.

    Attributes:
        segmenter: the network.
        config: settings; may be replaced between sweeps.
        trained_on: statistics of the sweeps that the network was trained on, or None.
        intensities: map of the intensities of another sensor.
    """

    def __init__(
        self,
        segmenter: SegmenterLike,
        config: PipelineConfig | None = None,
        cameras: CameraObserver | None = None,
    ) -> None:
        self.segmenter = segmenter
        self.config = config or PipelineConfig()
        self._cameras = cameras
        # Absent from stand-ins for a segmenter.
        self.trained_on: InputStatistics | None = getattr(segmenter, "trained_on", None)
        self._check_input = InputCheck(self.trained_on)
        target = self.trained_on if self.config.match_intensity else None
        self.intensities = IntensityMatches(target)
        self._buffer: TemporalBuffer | None = None
        self._forget = False
        self._over_time = OverTime()

    @property
    def label_space(self) -> LabelSpace:
        """Classes of the labels."""
        return self.segmenter.label_space

    @property
    def counters(self) -> dict[str, int]:
        """Counts of the events of the temporal buffer; see `TemporalBuffer.counters`."""
        return {} if self._buffer is None else dict(self._buffer.counters)

    @property
    def track_counters(self) -> dict[str, int]:
        """Number of tracks; see `OverTime.counters`."""
        return self._over_time.counters

    def set_prompts(self, prompts: Sequence[str] | None) -> LabelSpace:
        """Set the classes of the next sweeps; see `Segmenter.set_prompts`."""
        space = self.segmenter.set_prompts(prompts)
        self.reset()
        return space

    def reset(self) -> None:
        """Forget earlier sweeps before the next one."""
        self._forget = True
        self._over_time.reset()

    def match_intensities(self, recording: Recording) -> None:
        """Fit the map of the intensities to sweeps of a whole recording, hold it, and report it.

        The labels of a sweep then do not depend on the sweeps before it.
        """
        for index in evenly_spaced(len(recording), SWEEPS_TO_MATCH):
            if self.intensities.held:
                break
            with suppress(InputError):  # counted by whoever labels the sweeps
                self.intensities.observe(recording[index].cloud)
        self.intensities.hold()
        if text := str(self.intensities):
            note(f"{recording.name}: {text}")

    def warm_up(self, cloud: PointCloud) -> None:
        """Label a cloud and forget it: libraries compile and allocate before the first sweep.

        Args:
            cloud: as large as the sweeps that follow.
        """
        check, self._check_input = self._check_input, InputCheck(None)
        match, self.intensities = self.intensities, IntensityMatches(None)
        self.process(Sweep(cloud, poses=lambda stamps: np.tile(np.eye(4), (len(stamps), 1, 1))))
        self._check_input, self.intensities = check, match
        self.reset()

    def remembered(self, labeled: LabeledSweep, span_s: float) -> Voxels | None:
        """What the temporal buffer saw in the last seconds; see `TemporalBuffer.remembered`.

        Where it is known what moves, the places that it has left are not among them.

        Args:
            labeled: the newest sweep; None is returned if it was not smoothed.
            span_s: seconds.
        """
        if self._buffer is None or labeled.pose is None or not self.config.temporal.enabled:
            return None
        return self._over_time.without_trails(self._buffer.remembered(span_s), labeled)

    def process(
        self,
        sweep: Sweep,
        probabilities: bool = False,
        located: bool = False,
        moving: bool = False,
        tracks: TrackRules | None = None,
    ) -> LabeledSweep:
        """Label one sweep.

        Args:
            sweep: with its images and poses.
            probabilities: also return the probabilities of all classes.
            located: also return the pose, if there are poses.
            moving: also find what moves, compared with the earlier sweeps of such calls.
            tracks: also track these things, from the earlier sweeps of such calls.

        Raises:
            MotionError: the motion is unknown and required.
            InputError: `sweep` is not a Sweep.
        """
        if not isinstance(sweep, Sweep):
            raise InputError(
                f"process: expected a Sweep, got {type(sweep).__name__}; call "
                "pipeline.process(pcseg_core.Sweep(pcseg_core.PointCloud(xyz, intensity)))"
            )
        clock, problems = _Clock(), list[tuple[str, str]]()
        self.intensities.observe(sweep.cloud)
        matched = self.intensities(sweep.cloud)
        if difference := self._check_input(matched):
            problems.append((UNLIKE_TRAINING, difference))
        cloud, pose = self._locate(sweep, problems, located or moving or tracks is not None)
        clock.stop("motion")
        evidence_of = self._observe(sweep, cloud)
        smooth = self.config.temporal.enabled and pose is not None
        mapped = matched is not sweep.cloud
        seen = replace(cloud, intensity=matched.intensity) if mapped else cloud
        limited = self.config.max_entropy < 1
        wanted = probabilities or smooth or limited or evidence_of is not None
        result = self.segmenter.segment(seen, probabilities=wanted)
        clock.stop("inference")
        not_finite, out_of_range = result.not_finite, result.out_of_range
        result = self._fuse(result, cloud, evidence_of, problems)
        labels, confidence = result.labels, result.confidence
        if smooth and pose is not None:
            labels, confidence = self._smooth(result, cloud, pose, probabilities or limited)
        finite = np.isfinite(confidence)
        if not finite.all():
            not_finite += int(np.count_nonzero(~finite))
            confidence = np.where(finite, confidence, np.float32(0))
        keep = finite & (confidence >= self.config.min_confidence)
        if limited and result.probabilities is not None:
            keep &= entropy(result.probabilities, len(labels)) <= self.config.max_entropy
        labels = np.where(keep, labels, IGNORE).astype(np.int32, copy=False)
        clock.stop("fusion")
        problems += check_result(cloud, not_finite, out_of_range)
        space = result.label_space or self.label_space
        times = clock.stages_ms, result.timings_ms
        likely = result.probabilities if probabilities else None
        found = LabeledSweep(
            cloud, labels, confidence, space, *times, problems, out_of_range, likely, pose
        )
        found.uncalibrated = result.uncalibrated
        self._over_time.add(found, moving, tracks)
        return found

    def _locate(
        self, sweep: Sweep, problems: list[tuple[str, str]], located: bool
    ) -> tuple[PointCloud, Float64 | None]:
        """The cloud, deskewed if configured, and T_fixed_lidar at its stamp if it is needed."""
        cloud, motion = sweep.cloud, self.config.motion
        if motion.deskew:
            problems += check_times(cloud)
        deskew = motion.deskew or cloud.source is not None  # united sweeps are of several times
        needed = located or self.config.temporal.enabled or deskew
        if sweep.poses is None or not needed:
            return cloud, None
        try:
            pose = sweep.poses(np.array([cloud.stamp_ns], np.int64))[0]
            return (sweep.deskewed() if deskew else cloud), pose
        except PcsegError as error:
            if motion.required:
                raise MotionError(f"{NO_MOTION}: {error}") from None
            problems.append((NO_MOTION, str(error)))
            return sweep.cloud, None

    def _observe(self, sweep: Sweep, cloud: PointCloud) -> Callable[[], Evidence] | None:
        """Start labeling the images; the function that waits for evidence to fuse, or None."""
        if self._cameras is None or sweep.frames is None:
            return None
        evidence_of = self._cameras.observe(sweep, cloud, self.label_space)
        return evidence_of if self.config.teacher.fuse else None

    def _fuse(
        self,
        result: Segmentation,
        cloud: PointCloud,
        evidence_of: Callable[[], Evidence] | None,
        problems: list[tuple[str, str]],
    ) -> Segmentation:
        evidence = evidence_of() if evidence_of is not None else []
        if evidence is None:
            problems.append((NO_EVIDENCE, "the teacher was not done at its deadline"))
        if not evidence or result.probabilities is None:
            return result
        weight = CameraFusionConfig(camera_weight=self.config.teacher.camera_weight)
        fused = fuse_cameras(cloud.xyz, result.probabilities, evidence, weight)
        labels = np.where(result.labels == IGNORE, IGNORE, fused.argmax(1)).astype(np.int32)
        return replace(result, labels=labels, confidence=fused.max(1), probabilities=fused)

    def _smooth(
        self, result: Segmentation, cloud: PointCloud, pose: Float64, overwrite: bool
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Labels and confidence; the probabilities of the result become the smoothed ones."""
        observed = result.probabilities
        assert observed is not None
        classes = observed.shape[1]
        if self._buffer is None or self._buffer.classes != classes:
            self._buffer = TemporalBuffer(self.config.temporal, classes)
        elif self._forget:
            self._buffer.reset()  # reuses its large tables; a new buffer would allocate them again
        self._forget = False
        beams = Beams.of(cloud)
        return self._buffer.update(cloud.xyz, observed, pose, cloud.stamp_ns, overwrite, beams)


class _Clock:
    """Wall time of successive stages."""

    def __init__(self) -> None:
        self._last_s = time.perf_counter()
        self.stages_ms: dict[str, float] = {}

    def stop(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages_ms[stage] = 1e3 * (now - self._last_s)
        self._last_s = now
