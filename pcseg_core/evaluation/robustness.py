# SPDX-License-Identifier: Apache-2.0
"""Measure a checkpoint on whole drives under the corruptions of `pcseg_core.corruptions`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pcseg_core.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    Corrupted,
    LabeledCloud,
    Severity,
    corrupt,
    find_corruption,
)
from pcseg_core.data import readable
from pcseg_core.errors import InputError
from pcseg_core.evaluation.methods import SavedTime, SharedSegmenter
from pcseg_core.evaluation.robustness_report import (
    SINGLE,
    SMOOTHED,
    ConditionFigures,
    MethodFigures,
    RobustnessReport,
)
from pcseg_core.evaluation.robustness_tally import ConditionTally
from pcseg_core.labels import LabelSpace, grouping, regroup, truth_of
from pcseg_core.metrics.robustness import normalized_entropy
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.pipeline_config import PipelineConfig, SmoothingConfig

if TYPE_CHECKING:
    from pcseg_core.cloud import PointCloud
    from pcseg_core.data import Recording, Sample
    from pcseg_core.online.pipeline import LabeledSweep, SegmenterLike
    from pcseg_core.online.segmenter import Segmentation

Array: TypeAlias = npt.NDArray[Any]
Labels = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
Place: TypeAlias = tuple[int, int]
"""Number of the source and of the sweep in it."""
Done: TypeAlias = MutableMapping[str, dict[str, dict[str, object]]]
"""Condition -> method -> figures, as plain values that JSON holds."""

_CLEAN = "clean"
_KEPT_BYTES = 512 * 2**20  # of clouds in memory, so that they are read once


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        corruptions: names of `CORRUPTIONS`; empty for all that can be applied.
        severities: in the order of the report.
        space: label space of the figures; None takes "street" with ground truth, else the classes
            of the checkpoint.
        stability: compare with the clean prediction even where there is ground truth.
        temporal: also smooth over time; None does where all recordings have poses.
        every: measure every so many sweeps.
        seed: of the corruptions.
    """

    corruptions: tuple[str, ...] = ()
    severities: tuple[Severity, ...] = SEVERITIES
    space: str | None = None
    stability: bool = False
    temporal: bool | None = None
    every: int = 1
    seed: int = 1205

    def __post_init__(self) -> None:
        for name in self.corruptions:
            find_corruption(name)
        unknown = [severity for severity in self.severities if severity not in SEVERITIES]
        if unknown or not self.severities:
            raise InputError(
                f"no severity '{', '.join(unknown)}'; expected one or more of "
                f"{', '.join(SEVERITIES)}"
            )

    def conditions(self, corruptions: Sequence[str]) -> list[tuple[str, Severity]]:
        """All pairs of corruption and severity."""
        return [(name, severity) for name in corruptions for severity in self.severities]


def measure_robustness(
    checkpoint: str,
    segmenter: SegmenterLike,
    recordings: Sequence[Recording],
    plan: Plan,
    *,
    done: Done | None = None,
    progress: Progress | None = None,
) -> RobustnessReport:
    """Label whole drives clean and under each corruption, and compare.

    Args:
        checkpoint: name of the model for the report.
        segmenter: the network.
        recordings: drives, all with ground truth or none of them, unless `plan.stability`.
        plan: what is measured.
        done: figures of conditions that were measured before; new ones are added.
        progress: called with (sweeps done, sweeps in all), over all conditions.

    Returns:
        The report, with the checkpoint as its own baseline.

    Raises:
        InputError: no sweeps, points or labels to measure on, label spaces without a grouping, a
            corruption that cannot be applied, or smoothing without poses.
    """
    run = _Run(segmenter, recordings, plan, progress)
    conditions = plan.conditions(run.corruptions)
    run.expect(1 + sum(f"{name} {severity}" not in (done or {}) for name, severity in conditions))
    figures: Done = {} if done is None else done
    figures[_CLEAN] = run.condition(None, None)
    for name, severity in conditions:
        key = f"{name} {severity}"
        if key not in figures:
            figures[key] = run.condition(name, severity)
    return run.report(checkpoint, figures)


class _Watched(SharedSegmenter):
    """A network that runs once for all methods, and whose entropy is kept."""

    def __init__(self, segmenter: SegmenterLike) -> None:
        super().__init__(segmenter, SavedTime())
        self.entropy: Array = np.zeros(0)
        self._seen: Segmentation | None = None

    def segment(self, cloud: PointCloud, probabilities: bool = False) -> Segmentation:
        """See `SegmenterLike`."""
        result = super().segment(cloud, probabilities=True)
        if result is not self._seen and result.probabilities is not None:
            self.entropy, self._seen = normalized_entropy(result.probabilities), result
        return result


class _Source:
    """The sweeps of one recording, kept in memory as far as they fit."""

    def __init__(self, recording: Recording, every: int) -> None:
        self.recording = recording
        self.indices = range(0, len(recording), every)
        self._kept: dict[int, Sample] = {}
        self._bytes = 0

    def samples(self) -> Iterator[tuple[int, Sample]]:
        """(index, sample without images) of each sweep that can be read."""
        for index in self.indices:
            if index in self._kept:
                yield index, self._kept[index]
                continue
            for _, sample in readable(self.recording, [index]):
                bare = replace(sample, cameras=[], cloud=replace(sample.cloud, extra={}))
                self._keep(index, bare)
                yield index, bare

    def _keep(self, index: int, sample: Sample) -> None:
        self._bytes += 40 * len(sample.cloud)
        if self._bytes <= _KEPT_BYTES:
            self._kept[index] = sample


class _Run:
    """State of one study: the pipelines of each source, and the clean predictions."""

    def __init__(
        self,
        segmenter: SegmenterLike,
        recordings: Sequence[Recording],
        plan: Plan,
        progress: Progress | None,
    ) -> None:
        self.plan, self.progress = plan, progress
        self.sources = [_Source(recording, plan.every) for recording in recordings]
        self.graded = _has_truth(recordings, plan)
        own = segmenter.label_space
        chosen = plan.space or ("street" if self.graded else None)
        self.space = own if chosen is None else LabelSpace.load(chosen)
        self.groups = grouping(own, self.space)
        self.watched = _Watched(segmenter)
        smooth = _smooths(recordings, plan.temporal)
        self.pipelines = [self._pipelines(recording, smooth) for recording in recordings]
        self.corruptions, self.left_out = self._applicable(own)
        self.clean: dict[tuple[str, Place], npt.NDArray[np.int16]] = {}
        self.roles: dict[Place, npt.NDArray[np.int16]] = {}
        self.skipped: Counter[str] = Counter()
        self.sweeps = Counter[str]()
        self._done = self._expected = 0

    def expect(self, conditions: int) -> None:
        """Set the number of conditions, for the progress."""
        self._expected = conditions * sum(len(source.indices) for source in self.sources)

    def _pipelines(self, recording: Recording, smooth: bool) -> dict[str, Pipeline]:
        """A pipeline per method; they share the network and the map of the intensities."""
        single = Pipeline(self.watched)
        single.match_intensities(recording)
        pipelines = {SINGLE: single}
        if smooth:
            smoothing = PipelineConfig(temporal=SmoothingConfig(enabled=True))
            pipelines[SMOOTHED] = Pipeline(self.watched, smoothing)
            pipelines[SMOOTHED].intensities = single.intensities
        return pipelines

    def _applicable(self, own: LabelSpace) -> tuple[list[str], dict[str, str]]:
        """Corruptions that all recordings allow, and why the others are left out."""
        reasons: dict[str, str] = {}
        for source in self.sources:
            cloud = next((s.cloud for _, s in source.samples() if s.cloud.finite.any()), None)
            if cloud is None:
                raise InputError(
                    f"{source.recording.name}: none of its {len(source.indices)} sweeps has "
                    "points; expected a recording with returns"
                )
            space = source.recording.label_space if self.graded else own
            for name in self.plan.corruptions or CORRUPTIONS:
                missing = CORRUPTIONS[name].missing(cloud, space or own)
                if missing:
                    reasons.setdefault(name, f"{source.recording.name}: {missing}")
        wanted = [name for name in reasons if name in self.plan.corruptions]
        if wanted:
            raise InputError(f"{wanted[0]} cannot be applied: {reasons[wanted[0]]}")
        chosen = self.plan.corruptions or tuple(CORRUPTIONS)
        return [name for name in chosen if name not in reasons], reasons

    def condition(
        self, name: str | None, severity: Severity | None
    ) -> dict[str, dict[str, object]]:
        """Figures of all methods under a corruption, or clean, as plain values."""
        methods = self.pipelines[0]
        tallies = {method: ConditionTally(len(self.space), self.graded) for method in methods}
        for number, source in enumerate(self.sources):
            scene = None
            for index, sample in source.samples():
                if sample.scene != scene:
                    self._reset(number)
                    scene = sample.scene
                self._add(tallies, (number, index), sample, name, severity)
                self._done += 1
                if self.progress:
                    self.progress(self._done, self._expected)
        figures = {method: tally.figures(self.space) for method, tally in tallies.items()}
        if name is None and not figures[SINGLE].points:
            raise InputError(
                f"{', '.join(source.recording.name for source in self.sources)}: no point has a "
                f"label that groups into '{self.space.name}'"
            )
        return {method: figure.model_dump(mode="json") for method, figure in figures.items()}

    def _reset(self, number: int) -> None:
        for pipeline in self.pipelines[number].values():
            pipeline.reset()

    def _add(
        self,
        tallies: dict[str, ConditionTally],
        place: Place,
        sample: Sample,
        name: str | None,
        severity: Severity | None,
    ) -> None:
        """Corrupt and label one sweep, and compare."""
        truth = None
        if self.graded:
            if sample.labels is None:
                if name is None:
                    self.skipped["sweep without labels"] += 1
                return
            truth = truth_of(sample, self.space)
        changed = self._corrupted(place, sample, name, severity)
        for method, pipeline in self.pipelines[place[0]].items():
            sweep = replace(Sweep.of(sample), cloud=changed.cloud, frames=None)
            labeled = pipeline.process(sweep)
            pred = regroup(labeled.labels, self.groups)
            if name is None:
                self._remember(method, place, pred, labeled)
            clean = self.clean[method, place].astype(np.int64)
            reference = changed.carry(clean if truth is None else truth)
            entropy = self.watched.entropy if method == SINGLE else np.zeros(0)
            tally = tallies[method]
            tally.add(pred, reference, changed.carry(clean), labeled.confidence, entropy)
            tally.count(len(sample.cloud), changed)
        if name is None:
            self.sweeps[self.sources[place[0]].recording.name] += 1

    def _corrupted(
        self, place: Place, sample: Sample, name: str | None, severity: Severity | None
    ) -> Corrupted:
        cloud = sample.cloud
        if name is None or severity is None:
            return Corrupted(cloud, np.arange(len(cloud)), np.zeros(len(cloud), bool))
        labels, space = sample.labels, sample.label_space
        if not self.graded:
            labels, space = self.roles[place], self.watched.label_space
        scene = LabeledCloud(cloud, labels, space)
        seed = self.plan.seed + place[0]
        return corrupt(name, severity, scene, seed, place[1])

    def _remember(self, method: str, place: Place, pred: Labels, labeled: LabeledSweep) -> None:
        """Keep the clean prediction, by which points are compared and chosen."""
        self.clean[method, place] = pred.astype(np.int16)
        if method == SINGLE and not self.graded:
            self.roles[place] = labeled.labels.astype(np.int16)

    def report(self, checkpoint: str, done: Done) -> RobustnessReport:
        skipped = Counter(self.skipped)
        for source in self.sources:
            skipped.update(source.recording.skipped)
        report = RobustnessReport(
            checkpoint=checkpoint,
            sources=dict(self.sweeps),
            label_space=self.space.name,
            reference="ground truth" if self.graded else "clean prediction",
            corruptions=self.corruptions,
            severities=list(self.plan.severities),
            every=self.plan.every,
            seed=self.plan.seed,
            baseline=checkpoint,
            methods={method: self._method(method, done) for method in self.pipelines[0]},
            left_out=self.left_out,
            skipped=dict(skipped),
        )
        return report.compared_with(report)

    def _method(self, method: str, done: Done) -> MethodFigures:
        def figures(key: str) -> ConditionFigures:
            return ConditionFigures.model_validate(done[key][method])

        return MethodFigures(
            clean=figures(_CLEAN),
            corrupted={
                name: {severity: figures(f"{name} {severity}") for severity in self.plan.severities}
                for name in self.corruptions
            },
        )


def _has_truth(recordings: Sequence[Recording], plan: Plan) -> bool:
    """Whether the figures refer to ground truth; refuses a mixture, and empty recordings."""
    for recording in recordings:
        if not len(recording):
            raise InputError(f"{recording.name}: no sweeps to measure on")
    labeled = [recording.label_space is not None for recording in recordings]
    if plan.stability or not any(labeled):
        return False
    if not all(labeled):
        bare = next(r.name for r in recordings if r.label_space is None)
        raise InputError(
            f"{bare} has no labels and others have; measure them apart, or all against the clean "
            "prediction with --stability"
        )
    space = LabelSpace.load(plan.space or "street")
    for recording in recordings:
        assert recording.label_space is not None
        grouping(recording.label_space, space)  # fails before the long part
    return True


def _smooths(recordings: Sequence[Recording], wanted: bool | None) -> bool:
    """Whether labels are also smoothed over time."""
    without = [recording.name for recording in recordings if recording.pose_source == "none"]
    if wanted and without:
        raise InputError(
            f"smoothing needs poses, and {', '.join(without)} has none; record /tf or Odometry, "
            "install kiss-icp, or leave out --temporal"
        )
    return not without if wanted is None else wanted
