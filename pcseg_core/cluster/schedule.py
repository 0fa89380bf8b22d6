# SPDX-License-Identifier: Apache-2.0
"""Which task is next: parts of open recordings first, then new ones; failures are tried again.

A worker stays with the recording that it opened. Where no new recording is left, it helps others.
A task that fails on one machine goes to another one, with a bound on its tries, and the worker
that it failed on pauses.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pcseg_core.cluster.job import Failure, Plan, Stretch, Summary, Task
from pcseg_core.errors import InputError

TRIES = 3
"""How often a task is tried."""

_LONGEST_PAUSE_S = 60.0
_HOPELESS = 10  # failures in a row, at least, that end a job


@dataclass
class _Open:
    """A recording that is worked on; `owner` is the worker that opened it, None if it is gone."""

    plan: Plan
    owner: str | None
    waiting: deque[Stretch]
    running: int = 0
    results: dict[Stretch, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return not self.waiting and not self.running


@dataclass
class Outcome:
    """What a job did so far.

    Attributes:
        recordings: number of recordings that are complete.
        earlier: number of those that an earlier run completed.
        sweeps: number of sweeps that were used.
        kept: number of those, or of images, that an earlier run made.
        counts: numbers of points, of images, ... as in `Summary`.
        skipped: reason -> number of sweeps or images that were left out.
        lines: remark -> number of recordings.
        left_out: source -> reason, for the recordings that are not complete.
    """

    recordings: int = 0
    earlier: int = 0
    sweeps: int = 0
    kept: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, summary: Summary, earlier: bool = False) -> None:
        """Count a complete recording."""
        self.recordings += 1
        self.earlier += earlier
        self.sweeps += summary.sweeps
        self.kept += summary.sweeps if earlier else summary.kept
        self.counts.update(summary.counts)
        self.skipped.update(summary.skipped)
        self.lines.update(summary.lines)


class Schedule:
    """The tasks of a job.

    Attributes:
        outcome: what was done so far.
        done_sweeps: sweeps that are done, with those of recordings that earlier runs completed.
        earlier_sweeps: the latter.
    """

    def __init__(
        self,
        sources: Iterable[str],
        clock: Callable[[], float] = time.monotonic,
        tries: int = TRIES,
    ) -> None:
        """Sources in the order in which they are opened."""
        self.outcome, self.done_sweeps, self.earlier_sweeps = Outcome(), 0, 0
        self._new = deque(dict.fromkeys(sources))
        self._total, self._planned, self._planned_sweeps = len(self._new), 0, 0
        self._open: dict[str, _Open] = {}
        self._busy: dict[str, Task] = {}
        self._places: dict[str, str] = {}
        self._tries: Counter[tuple[str, str, Stretch]] = Counter()
        self._failed_on: dict[tuple[str, str, Stretch], set[str]] = {}
        self._nodes: dict[str, str] = {}
        self._paused: dict[str, float] = {}
        self._in_a_row: Counter[str] = Counter()
        self._clock, self._most = clock, tries

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return not (self._new or self._open or self._busy)

    @property
    def recordings(self) -> tuple[int, int]:
        """Number of recordings that are complete or left out, and of all."""
        return self.outcome.recordings + len(self.outcome.left_out), self._total

    @property
    def total_sweeps(self) -> int:
        """Sweeps in all; those of recordings that were not opened are taken as the mean."""
        if not self._planned:
            return 0
        return round(self._planned_sweeps * self._total / self._planned)

    def take(self, worker: str, node: str = "") -> Task | None:
        """The next task of a worker; None for none now."""
        self._nodes[worker] = node
        if self._paused.get(worker, 0.0) > self._clock():
            return None
        task = self._own(worker, node) or self._first_new(node) or self._of_others(worker, node)
        if task is not None:
            self._busy[worker] = task
            if task.kind == "run":
                self._open[task.source].running += 1
        return task

    def done(self, worker: str, result: Any) -> None:
        """Take the result of the task of a worker, which may be a `Failure`."""
        task = self._busy.pop(worker)
        if task.kind == "run":
            self._open[task.source].running -= 1
        if isinstance(result, Failure):
            self._failed(worker, task, result)
        else:
            self._succeeded(worker, task, result)
        recording = self._open.get(task.source)
        if recording and recording.complete and task.source in self.outcome.left_out:
            self._close(task.source)

    def _succeeded(self, worker: str, task: Task, result: Any) -> None:
        self._in_a_row.clear()
        self._tries.pop(task.key, None)
        self._failed_on.pop(task.key, None)
        if task.kind == "plan":
            self._opened(worker, task.source, result)
        elif task.kind == "run":
            self._open[task.source].results[task.stretch] = result
            self.done_sweeps += task.stretch[1] - task.stretch[0]
        else:
            self._close(task.source)
            self.outcome.add(result)

    def lost(self, worker: str, reason: str) -> None:
        """A worker ended; its task is tried again, and its recordings go to others."""
        task = self._busy.get(worker)
        for recording in self._open.values():
            if recording.owner == worker:
                recording.owner = None
        if task is not None:
            self.done(worker, Failure(reason, again=True))
        for by_worker in (self._nodes, self._paused, self._in_a_row):
            by_worker.pop(worker, None)

    def _own(self, worker: str, node: str) -> Task | None:
        """A part of a recording that the worker opened, or whose worker is gone."""
        for source, recording in self._open.items():
            if recording.owner in (worker, None) and (found := self._part(source, node)):
                recording.owner = worker
                return found
        return None

    def _first_new(self, node: str) -> Task | None:
        for _ in range(len(self._new)):
            task = Task("plan", self._new.popleft())
            if self._suits(task, node):
                return task
            self._new.append(task.source)
        return None

    def _of_others(self, worker: str, node: str) -> Task | None:
        """A part of the recording with most parts left that other workers may help with."""
        shared = [
            (len(r.waiting), source)
            for source, r in self._open.items()
            if not r.plan.whole and r.waiting
        ]
        for _, source in sorted(shared, reverse=True):
            if self._suits(Task("run", source, self._open[source].waiting[-1]), node):
                return Task("run", source, self._open[source].waiting.pop())
        return None

    def _part(self, source: str, node: str) -> Task | None:
        """The next part of an open recording, or its end if no part is left."""
        recording = self._open[source]
        for _ in range(len(recording.waiting)):
            task = Task("run", source, recording.waiting.popleft())
            if self._suits(task, node):
                return task
            recording.waiting.append(task.stretch)
        if recording.complete and not any(t.source == source for t in self._busy.values()):
            results = tuple(recording.results[stretch] for stretch in recording.plan.stretches)
            task = Task("finish", source, results=results)
            return task if self._suits(task, node) else None
        return None

    def _suits(self, task: Task, node: str) -> bool:
        """Whether the task did not fail on this machine, or on all of them."""
        failed = self._failed_on.get(task.key, set())
        return node not in failed or failed >= set(self._nodes.values())

    def _opened(self, worker: str, source: str, plan: Plan) -> None:
        other = self._places.setdefault(plan.place, source) if plan.place else source
        if other != source:
            self.outcome.left_out[source] = f"its results would go to {plan.place}, as do {other}'s"
            return
        self._planned += 1
        self._planned_sweeps += plan.sweeps
        if plan.done is not None:
            self.done_sweeps += plan.sweeps
            self.earlier_sweeps += plan.sweeps
            self.outcome.add(plan.done, earlier=True)
            return
        self._open[source] = _Open(plan, worker, deque(plan.stretches))

    def _failed(self, worker: str, task: Task, failure: Failure) -> None:
        self._tries[task.key] += 1
        if not failure.again or self._tries[task.key] >= self._most:
            tried = f" (tried {self._tries[task.key]} times)" if failure.again else ""
            self._leave_out(task, f"{failure.reason}{tried}")
        elif task.kind == "plan":
            self._new.append(task.source)
        else:
            self._open[task.source].owner = None
            if task.kind == "run" and task.source not in self.outcome.left_out:
                self._open[task.source].waiting.append(task.stretch)
        if not failure.again:
            return
        self._failed_on.setdefault(task.key, set()).add(self._nodes.get(worker, ""))
        self._in_a_row[worker] += 1
        pause = min(_LONGEST_PAUSE_S, 2.0 ** min(self._in_a_row[worker] - 1, 10))
        self._paused[worker] = self._clock() + pause
        failed = self._in_a_row.total()
        if failed >= max(_HOPELESS, self._most * len(self._nodes)) and set(self._nodes) <= set(
            self._in_a_row
        ):
            raise InputError(
                f"the last {failed} tasks failed on all workers, the last one by: "
                f"{failure.reason}; put this right and run the same command again: what is done "
                "stays"
            )

    def _leave_out(self, task: Task, reason: str) -> None:
        part = f"sweeps {task.stretch[0]} to {task.stretch[1] - 1}: " if task.kind == "run" else ""
        self.outcome.left_out.setdefault(task.source, f"{part}{reason}")
        self._tries.pop(task.key, None)
        self._failed_on.pop(task.key, None)
        if task.source in self._open:
            self._open[task.source].waiting.clear()

    def _close(self, source: str) -> None:
        del self._open[source]
