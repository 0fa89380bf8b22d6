# SPDX-License-Identifier: Apache-2.0
"""What labels the sweeps of a replay: a network, with more beside it, or the node over DDS."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from pcseg_core.geometry import deskew
from pcseg_core.labels import LabelSpace
from pcseg_core.online.camera_fusion import CameraFusionConfig, CameraLabeler, fuse_cameras
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.online.temporal import TemporalBuffer, TemporalBufferConfig

if TYPE_CHECKING:
    from pcseg_core.data import Sample
    from pcseg_core.demo.live import ReplayResult
    from pcseg_core.vision.pixel_classes import PixelClasses

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Moment:
    """A sweep, and what all contenders need of it."""

    sample: Sample

    @cached_property
    def still(self) -> Array:
        """(N, 3) points corrected for the motion within the sweep, where time and poses are known;
        LiDAR frame at the sweep's stamp [m]."""
        cloud, trajectory = self.sample.cloud, self.sample.trajectory
        if trajectory is None or cloud.time is None:
            return cloud.xyz
        return deskew(cloud.xyz, cloud.time, trajectory, cloud.stamp_ns)


@dataclass(frozen=True, eq=False)
class Answer:
    """Labels of a sweep.

    Attributes:
        labels: (N,) class ids of the contender's label space, -1 for none.
        probabilities: (N, C), or None.
        milliseconds: from sweep to labels; None where it is not known sweep by sweep.
    """

    labels: Array
    probabilities: Array | None = None
    milliseconds: float | None = None


class Contender(Protocol):
    """Labels sweeps, which are shown to it once each, in order."""

    name: str
    checkpoint: str

    @property
    def label_space(self) -> LabelSpace: ...

    def answer(self, moment: Moment) -> Answer | None: ...


@dataclass(eq=False)
class Network:
    """A checkpoint in this process, one sweep at a time.

    The last answer is kept for what builds on it, so that a sweep is segmented once.
    """

    name: str
    checkpoint: str
    segmenter: Segmenter
    probabilities: bool = False
    _last: tuple[Moment, Answer] | None = field(default=None, repr=False)

    @property
    def label_space(self) -> LabelSpace:
        return self.segmenter.label_space

    def answer(self, moment: Moment) -> Answer:
        if self._last is None or self._last[0] is not moment:
            started = time.perf_counter()
            result = self.segmenter.segment(moment.sample.cloud, probabilities=self.probabilities)
            spent = 1e3 * (time.perf_counter() - started)
            self._last = moment, Answer(result.labels, result.probabilities, spent)
        return self._last[1]


@dataclass(eq=False)
class WithCameras:
    """A network with the pixel classes of the sweep's own images."""

    name: str
    network: Network
    teacher: PixelClasses
    config: CameraFusionConfig = field(default_factory=CameraFusionConfig)
    _last: tuple[Moment, Answer] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.checkpoint = self.network.checkpoint
        self._eyes = CameraLabeler(self.teacher, self.network.label_space)

    @property
    def label_space(self) -> LabelSpace:
        return self.network.label_space

    def answer(self, moment: Moment) -> Answer:
        if self._last is None or self._last[0] is not moment:
            self._last = moment, self._look(moment)
        return self._last[1]

    def _look(self, moment: Moment) -> Answer:
        own = self.network.answer(moment)
        assert own.probabilities is not None and own.milliseconds is not None
        started = time.perf_counter()
        sample = moment.sample
        seen = [self._eyes.label(frame) for frame in sample.frames_at_sweep()]
        fused = fuse_cameras(moment.still, own.probabilities, seen, self.config)
        labels = np.where(own.labels < 0, -1, fused.argmax(1))
        spent = own.milliseconds + 1e3 * (time.perf_counter() - started)
        return Answer(labels, fused, spent)


@dataclass(eq=False)
class Smoothed:
    """Any of these, smoothed over time; needs poses."""

    name: str
    inner: Network | WithCameras
    config: TemporalBufferConfig = field(default_factory=TemporalBufferConfig)

    def __post_init__(self) -> None:
        self.checkpoint = self.inner.checkpoint
        self._buffer = TemporalBuffer(self.config, len(self.label_space))

    @property
    def label_space(self) -> LabelSpace:
        return self.inner.label_space

    def answer(self, moment: Moment) -> Answer:
        own = self.inner.answer(moment)
        pose = moment.sample.T_world_lidar
        assert own.probabilities is not None and own.milliseconds is not None and pose is not None
        still = moment.still  # the node has it from the odometry anyway
        started = time.perf_counter()
        labels, _ = self._buffer.update(still, own.probabilities, pose, moment.sample.stamp_ns)
        spent = own.milliseconds + 1e3 * (time.perf_counter() - started)
        return Answer(labels, None, spent)


@dataclass(eq=False)
class Live:
    """What the node answered when the bag was played to it."""

    name: str
    checkpoint: str
    label_space: LabelSpace
    result: ReplayResult

    def answer(self, moment: Moment) -> Answer | None:
        labels = self.result.labels.get(moment.sample.stamp_ns)
        return None if labels is None else Answer(labels)


def peak_rss_mb(children: bool = False) -> float:
    """Highest resident memory so far of this process, or of the largest of its ended children."""
    who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    return resource.getrusage(who).ru_maxrss / 1024
