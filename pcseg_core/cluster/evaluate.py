# SPDX-License-Identifier: Apache-2.0
"""The job of `pcseg evaluate` on several labeled recordings: a report of each, figures of all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from pcseg_core.bundled import checkpoint_file
from pcseg_core.cluster.job import Plan, Stretch, Summary, short_name, store_summary, stored_summary
from pcseg_core.data import find_source, fingerprint, open_recording, split_query
from pcseg_core.errors import InputError
from pcseg_core.evaluation.evaluator import evaluate
from pcseg_core.evaluation.report import Report
from pcseg_core.files import slug
from pcseg_core.labels import LabelSpace
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.metrics.figures import Figures, merge_of
from pcseg_core.online.pipeline import Pipeline
from pcseg_core.online.segmenter import Precision, Segmenter

if TYPE_CHECKING:
    from pcseg_core.data import Recording

Engine = tuple[str, Precision, str, float]
"""Device, precision, backend and largest entropy, as `Segmenter.load` takes them."""


@dataclass(frozen=True)
class EvaluateJob:
    """Reports of a checkpoint on labeled recordings.

    Attributes:
        checkpoint: run or checkpoint.
        out: folder of the reports.
        space: label space to measure in.
        engine: how the network runs.
    """

    checkpoint: str
    out: Path
    space: str = "street"
    engine: Engine = ("auto", "auto", "auto", 1.0)
    title: str = "measuring"

    def worker(self) -> EvaluateWorker:
        """Loads the network when it is needed first."""
        return EvaluateWorker(self)

    def report(self, source: str) -> Path:
        """File of the report of a recording."""
        digest = hashlib.sha256(source.encode()).hexdigest()[:8]
        return self.out / f"{slug(short_name(source))[:100]}-{digest}.json"


@dataclass
class EvaluateWorker:
    """Measures a checkpoint on one recording after the other. See `job.Worker`."""

    job: EvaluateJob
    _opened: dict[str, Recording] = field(default_factory=dict)

    @cached_property
    def segmenter(self) -> Segmenter:
        """The network."""
        found = Segmenter.load(self.job.checkpoint, *self.job.engine)
        found.keep_uncalibrated = True
        return found

    def load(self) -> None:
        """Load the network."""
        _ = self.segmenter

    def plan(self, source: str) -> Plan:
        """The whole recording: figures such as medians are of all its sweeps."""
        done = stored_summary(*self._note(source))
        if done is not None and self.job.report(source).is_file():
            return Plan(done.sweeps, (), done=done)
        recording = open_recording(source, trained=self.segmenter.trained_on)
        if recording.label_space is None:
            raise InputError(f"{recording.name} has no labels to measure against")
        self._opened = {source: recording}
        return Plan(len(recording), ((0, len(recording)),), whole=True)

    def run(self, source: str, stretch: Stretch) -> Summary:
        """Write the report of a recording."""
        recording = self._opened.pop(source, None)
        if recording is None:
            recording = open_recording(source, trained=self.segmenter.trained_on)
        pipeline, name = Pipeline(self.segmenter), self.job.checkpoint
        found = evaluate(pipeline, recording, space=self.job.space, checkpoint=name)
        found.write_json(self.job.report(source))
        return Summary(found.scans, skipped=found.skipped)

    def finish(self, source: str, results: Sequence[Any]) -> Summary:
        """Note that the report is written."""
        summary: Summary = results[0]
        store_summary(*self._note(source), summary)
        return summary

    def _note(self, source: str) -> tuple[Path, str]:
        """The file that says that a report is written, and what it depends on."""
        place = split_query(find_source(source)[1])[0]
        prints = fingerprint(place), fingerprint(checkpoint_file(self.job.checkpoint))
        key = f"{source} {' '.join(prints)} {self.job.space} {self.job.engine}"
        return self.job.out / "done" / self.job.report(source).stem, key


class RecordingFigures(BaseModel):
    """Figures of one recording; the whole report is in a file of its own."""

    model_config = ConfigDict(extra="forbid")

    scans: int
    points: int
    miou: float | None
    accuracy: float | None
    calibration_error: float | None


class JointReport(Figures):
    """Figures over the points of several recordings.

    Attributes:
        confusion: points by true (rows) and predicted (columns) class.
        unpredicted: points of each true class that got no label.
        recordings: source -> its figures.
        left_out: source -> reason.
    """

    checkpoint: str
    label_space: str
    classes: list[str]
    scans: int
    points: int
    confusion: list[list[int]]
    unpredicted: list[int]
    recordings: dict[str, RecordingFigures]
    left_out: dict[str, str]


def joint_report(
    job: EvaluateJob, sources: Sequence[str], left_out: Mapping[str, str]
) -> JointReport:
    """Figures over all recordings of a job that have a report.

    Args:
        job: after its work.
        sources: the recordings.
        left_out: source -> reason, for those without a report.

    Raises:
        InputError: none has a report.
    """
    space = LabelSpace.load(job.space)
    total, scans = Confusion(len(space)), 0
    own: dict[str, RecordingFigures] = {}
    for source in sources:
        if source in left_out:
            continue
        report = Report.model_validate_json(job.report(source).read_text(encoding="utf-8"))
        total.matrix += report.confusion
        total.unpredicted += report.unpredicted
        scans += report.scans
        kept = report.model_dump(include=set(RecordingFigures.model_fields))
        own[source] = RecordingFigures(**kept)
    if not own:
        reasons = "; ".join(dict.fromkeys(left_out.values()))
        raise InputError(f"no recording could be measured: {reasons}")
    return JointReport(
        **Figures.of(total, space.names, merge_of(space)).model_dump(),
        checkpoint=job.checkpoint,
        label_space=space.name,
        classes=list(space.names),
        scans=scans,
        points=total.points,
        confusion=total.matrix.tolist(),
        unpredicted=total.unpredicted.tolist(),
        recordings=own,
        left_out=dict(left_out),
    )
