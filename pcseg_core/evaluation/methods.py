# SPDX-License-Identifier: Apache-2.0
"""Methods under evaluation: pipelines with a name and a checkpoint."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from pcseg_core.labels import LabelSpace
from pcseg_core.online.camera_observers import Evidence
from pcseg_core.online.pipeline import ImmediateCameras, MotionError, Pipeline, SegmenterLike, Sweep
from pcseg_core.online.pipeline_config import PipelineConfig

if TYPE_CHECKING:
    from pcseg_core.cloud import PointCloud
    from pcseg_core.input_check import InputStatistics
    from pcseg_core.online.segmenter import Segmentation
    from pcseg_core.vision.pixel_classes import PixelClasses

_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class Prediction:
    """Labels of a sweep.

    Attributes:
        labels: (N,) class ids of the method's label space, IGNORE for none.
        milliseconds: from sweep to labels; None if unknown for single sweeps.
    """

    labels: npt.NDArray[np.int32]
    milliseconds: float | None = None


class Method(Protocol):
    """Predicts the labels of sweeps, which are given to it once each, in order.

    Attributes:
        name, checkpoint: for the report.
        live: the predictions come from a node over DDS.
        dropped: reason -> number of sweeps without a prediction.
    """

    name: str
    checkpoint: str
    live: bool

    @property
    def label_space(self) -> LabelSpace: ...

    @property
    def dropped(self) -> Mapping[str, int]: ...

    @property
    def latency_ms(self) -> tuple[float, float] | None:
        """Median and 95th percentile; None without predictions."""

    def predict(self, sweep: Sweep) -> Prediction | None: ...


@dataclass
class SavedTime:
    """Wall time that sharing results between pipelines saves [ms]."""

    total_ms: float = 0.0


class PipelineMethod:
    """A pipeline in this process.

    Args:
        name, checkpoint: for the report.
        pipeline: labels the sweeps.
        saved: time that its parts save by sharing; it counts as spent.
    """

    live = False

    def __init__(
        self, name: str, checkpoint: str, pipeline: Pipeline, saved: SavedTime | None = None
    ) -> None:
        self.name, self.checkpoint, self.pipeline = name, checkpoint, pipeline
        self.dropped: Counter[str] = Counter()
        self._saved = saved or SavedTime()
        self._milliseconds: list[float] = []

    @property
    def label_space(self) -> LabelSpace:
        """Classes of the predictions."""
        return self.pipeline.label_space

    @property
    def latency_ms(self) -> tuple[float, float] | None:
        """See `Method`."""
        if not self._milliseconds:
            return None
        p50, p95 = np.percentile(self._milliseconds, (50, 95)).round(2).tolist()
        return p50, p95

    def predict(self, sweep: Sweep) -> Prediction | None:
        """Label a sweep; the time is the sum of the stages as if no other method had run."""
        saved_ms = self._saved.total_ms
        try:
            labeled = self.pipeline.process(sweep)
        except MotionError:
            self.dropped["motion not known"] += 1
            return None
        spent_ms = sum(labeled.stages_ms.values()) + self._saved.total_ms - saved_ms
        self._milliseconds.append(spent_ms)
        return Prediction(labeled.labels, spent_ms)


class SharedSegmenter:
    """A network for several pipelines, which runs once per sweep.

    Args:
        segmenter: the network.
        saved: gets the time of repeated requests for the same points.
    """

    def __init__(self, segmenter: SegmenterLike, saved: SavedTime) -> None:
        self._segmenter, self._saved = segmenter, saved
        self.trained_on: InputStatistics | None = getattr(segmenter, "trained_on", None)
        self._last: tuple[PointCloud, Segmentation, float] | None = None

    @property
    def label_space(self) -> LabelSpace:
        """See `SegmenterLike`."""
        return self._segmenter.label_space

    def set_prompts(self, prompts: Sequence[str] | None) -> LabelSpace:
        """See `SegmenterLike`."""
        self._last = None
        return self._segmenter.set_prompts(prompts)

    def segment(self, cloud: PointCloud, probabilities: bool = False) -> Segmentation:
        """See `SegmenterLike`."""
        if self._last is not None:
            before, result, spent_ms = self._last
            complete = not probabilities or result.probabilities is not None
            if complete and _same_points(before, cloud):
                self._saved.total_ms += spent_ms
                return result
        result, spent_ms = _timed(lambda: self._segmenter.segment(cloud, probabilities))
        self._last = cloud, result, spent_ms
        return result


class SharedCameras:
    """A teacher for several pipelines, which labels the images of a sweep once.

    Args:
        teacher: pixel classes.
        saved: gets the time of repeated requests for the same sweep.
    """

    def __init__(self, teacher: PixelClasses, saved: SavedTime) -> None:
        self._cameras, self._saved = ImmediateCameras(teacher), saved
        self._last: tuple[Sweep, Evidence, float] | None = None

    def observe(self, sweep: Sweep, cloud: PointCloud, space: LabelSpace) -> Callable[[], Evidence]:
        """See `CameraObserver`."""
        return lambda: self._evidence(sweep, cloud, space)

    def _evidence(self, sweep: Sweep, cloud: PointCloud, space: LabelSpace) -> Evidence:
        if self._last is not None and self._last[0] is sweep:
            self._saved.total_ms += self._last[2]
            return self._last[1]
        evidence, spent_ms = _timed(self._cameras.observe(sweep, cloud, space))
        self._last = sweep, evidence, spent_ms
        return evidence


def variants(
    name: str,
    checkpoint: str,
    segmenter: SegmenterLike,
    config: PipelineConfig,
    teacher: PixelClasses | None = None,
) -> list[PipelineMethod]:
    """A pipeline as configured, then without smoothing, then without cameras.

    Args:
        name, checkpoint: for the report.
        segmenter: the network of all variants.
        config: what the first one does.
        teacher: labels the images if the configuration fuses them.
    """
    fuses = config.teacher.fuse and teacher is not None
    with_cameras = f"{name} + cameras" if fuses else name
    unsmoothed = _updated(config, "temporal", enabled=False)
    configs = {with_cameras: unsmoothed}
    if config.temporal.enabled:
        configs = {f"{with_cameras}, smoothed": config, **configs}
    if fuses:
        configs[name] = _updated(unsmoothed, "teacher", fuse=False)
    saved = SavedTime()
    shared = SharedSegmenter(segmenter, saved)
    cameras = SharedCameras(teacher, saved) if teacher is not None and fuses else None
    return [
        PipelineMethod(title, checkpoint, Pipeline(shared, chosen, cameras), saved)
        for title, chosen in configs.items()
    ]


def peak_rss_mb(children: bool = False) -> float:
    """Highest resident memory of this process so far, or of its largest ended child [MB]."""
    who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    return resource.getrusage(who).ru_maxrss / 1024


def _updated(config: PipelineConfig, section: str, **values: bool) -> PipelineConfig:
    changed = getattr(config, section).model_copy(update=values)
    return config.model_copy(update={section: changed})


def _same_points(a: PointCloud, b: PointCloud) -> bool:
    """Whether two clouds of one sweep agree; each pipeline makes arrays of its own."""
    return a.stamp_ns == b.stamp_ns and _same(a.xyz, b.xyz) and _same(a.intensity, b.intensity)


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return a is b
    return a is b or np.array_equal(a, b, equal_nan=True)


def _timed(action: Callable[[], _Result]) -> tuple[_Result, float]:
    """Result of an action and its wall time [ms]."""
    started = time.perf_counter()
    result = action()
    return result, 1e3 * (time.perf_counter() - started)
