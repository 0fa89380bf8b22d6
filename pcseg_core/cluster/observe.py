# SPDX-License-Identifier: Apache-2.0
"""The labeling stage of `pcseg distill`: what the teachers say about each sweep, into the cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pcseg_core.cluster.job import Plan, Stretch, Summary, stretches
from pcseg_core.data import Recording
from pcseg_core.distill.lidar_teacher import LidarTeacher, store_targets
from pcseg_core.distill.observation import StoredObservation
from pcseg_core.learning.recipe import Recipe
from pcseg_core.learning.run_folder import identity
from pcseg_core.learning.runs import open_recordings, torch_device
from pcseg_core.learning.sweep_labels import new_observer
from pcseg_core.learning.teachers import Teachers, load_lidar, load_teachers, student_space

_PART = 50  # sweeps


@dataclass(frozen=True)
class ObserveJob:
    """Observations and targets of recordings, for a training by the same recipe.

    Attributes:
        recipe: names the teachers.
        run: directory of the run, whose files are not part of the recordings.
        out: folder of the prepared sweeps, as `distill` takes it.
        device: "auto", "cpu" or "cuda".
    """

    recipe: Recipe
    run: Path
    out: Path
    device: str = "auto"
    title: str = "labeling sweeps"

    def worker(self) -> ObserveWorker:
        """Loads the teachers when they are needed first."""
        return ObserveWorker(self)


@dataclass
class ObserveWorker:
    """Runs the teachers on sweeps. See `job.Worker`."""

    job: ObserveJob
    _opened: dict[str, tuple[str, Recording]] = field(default_factory=dict)

    @cached_property
    def lidar(self) -> LidarTeacher | None:
        """The 3D teacher, or None."""
        return load_lidar(self.job.recipe, torch_device(self.job.device))

    @cached_property
    def teachers(self) -> Teachers:
        """All teachers of the recipe."""
        space = student_space(self.job.recipe, self.lidar)
        return load_teachers(self.job.recipe, self.lidar, space, torch_device(self.job.device))

    def load(self) -> None:
        """Load the teachers."""
        _ = self.teachers

    def plan(self, source: str) -> Plan:
        """Parts of a recording. The teachers look at one sweep at a time."""
        recording = self.open(source)[1]
        count = len(recording)
        return Plan(count, stretches(count, _PART), recording.pose_source == "kiss-icp")

    def run(self, source: str, stretch: Stretch) -> Counter[str]:
        """Store what the teachers say about the sweeps of a part; number of skipped ones."""
        skipped = Counter[str]()
        self.observe(source, stretch, skipped)
        return skipped

    def observe(
        self, source: str, stretch: Stretch, skipped: Counter[str]
    ) -> list[StoredObservation]:
        """As `run`, with the observations; counts the skipped sweeps."""
        name, recording = self.open(source)
        observer = new_observer(self.job.recipe, self.teachers, self.job.out)
        found = observer.observe_sweeps(name, recording, range(*stretch))
        if self.lidar is not None and found:
            store_targets(found, self.lidar, self.job.out, lambda done, total: None)
        skipped.update(observer.skipped)
        return found

    def finish(self, source: str, results: Sequence[Counter[str]]) -> Summary:
        """The sum of the parts."""
        recording = self.open(source)[1]
        skipped = sum(results, Counter(recording.skipped))
        self._opened.pop(source)
        return Summary(len(recording), skipped=skipped)

    def open(self, source: str) -> tuple[str, Recording]:
        """What identifies the recording in the cache, and the recording."""
        if source not in self._opened:
            self._opened.clear()  # one at a time
            name = identity(source, (self.job.run, self.job.out))
            trained = self.lidar.inputs if self.lidar else None
            self._opened[source] = next(iter(open_recordings([source], [name], trained).items()))
        return self._opened[source]
