# SPDX-License-Identifier: Apache-2.0
"""Run a job: hand tasks to workers, take results, show one line of progress, report the rest."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Protocol

from pcseg_core.cluster.job import Failure, Job, Task, perform, short_name
from pcseg_core.cluster.schedule import Outcome, Schedule
from pcseg_core.data.account import grouped
from pcseg_core.errors import InputError
from pcseg_core.progress import Bar, bar, note

AUTO, LOCAL = "auto", "local"
_WAIT_S = 0.5
_SHOWN_WORKERS = 8


@dataclass(frozen=True)
class RayOptions:
    """How a job uses a cluster.

    Attributes:
        address: "auto" for the cluster of RAY_ADDRESS or of this machine, or a new one on this
            machine; "local" for a new one; else HOST:PORT.
        workers: number of workers at most; 0 for as many as fit.
        cpus: cores of each worker.
        gpu: one GPU for each worker, where the cluster has GPUs.
    """

    address: str = AUTO
    workers: int = 0
    cpus: int = 1
    gpu: bool = True


@dataclass(frozen=True)
class Done:
    """The result of a worker's task; or, with `ended`, why the worker is no more."""

    worker: str
    result: object = None
    ended: str = ""


class Workers(Protocol):
    """Does tasks, one at a time and worker."""

    def idle(self) -> list[tuple[str, str]]:
        """(name, machine) of the workers that wait for a task."""

    def start(self, worker: str, task: Task) -> None:
        """Give a task to an idle worker."""

    def wait(self, timeout_s: float) -> list[Done]:
        """What was done, after at most so many seconds.

        Raises:
            InputError: no worker is left and none can be started.
        """

    def states(self) -> list[str]:
        """What each worker does, in a few words."""

    def stop(self) -> None:
        """End all workers at once."""


class Here:
    """One worker in this process."""

    def __init__(self, job: Job) -> None:
        """Networks are loaded when they are needed first."""
        self.worker = job.worker()
        self._task: Task | None = None

    def idle(self) -> list[tuple[str, str]]:
        """This process, unless it has a task."""
        return [("here", "")] if self._task is None else []

    def start(self, worker: str, task: Task) -> None:
        """Remember the task."""
        self._task = task

    def wait(self, timeout_s: float) -> list[Done]:
        """Do the task."""
        if self._task is None:
            time.sleep(timeout_s)  # a pause after a failure
            return []
        try:
            return [Done("here", perform(self.worker, self._task))]
        finally:
            self._task = None

    def states(self) -> list[str]:
        """The task."""
        return [] if self._task is None else [str(self._task)]

    def stop(self) -> None:
        """Nothing to end."""


def run_job(job: Job, sources: Sequence[str], workers: Workers) -> Outcome:
    """Do a job for all recordings, with one progress line. Failures do not end it.

    Args:
        job: what is done.
        sources: the recordings.
        workers: do the work; they are stopped at the end, whatever happens.

    Raises:
        InputError: task after task fails on all workers.
    """
    schedule = Schedule(sources)
    try:
        with bar(job.title) as progress:
            line = _Line(progress, schedule, workers)
            while not schedule.finished:
                for name, node in workers.idle():
                    if task := schedule.take(name, node):
                        workers.start(name, task)
                line.show()
                for done in workers.wait(_WAIT_S):
                    if done.ended:
                        note(f"worker {done.worker}: {done.ended}")
                        schedule.lost(done.worker, done.ended)
                        continue
                    _tell(done)
                    schedule.done(done.worker, done.result)
            line.show()
    finally:
        workers.stop()
    return schedule.outcome


def _tell(done: Done) -> None:
    """Tell a failure that is tried again; others are in the report at the end."""
    if isinstance(done.result, Failure) and done.result.again:
        note(f"worker {done.worker}: {done.result.reason}; tried again")


class _Line:
    """The progress line: sweeps, sweeps per second, time left, recordings, workers."""

    def __init__(self, progress: Bar, schedule: Schedule, workers: Workers) -> None:
        self.progress, self.schedule, self.workers = progress, schedule, workers
        self.start = time.monotonic()

    def show(self) -> None:
        schedule = self.schedule
        done, total = schedule.done_sweeps, max(schedule.total_sweeps, schedule.done_sweeps)
        rate = (done - schedule.earlier_sweeps) / max(time.monotonic() - self.start, 1e-3)
        parts = [f"{rate:.1f} sweeps/s" if rate else "", left(total - done, rate)]
        parts.append("{} of {} recordings".format(*schedule.recordings))
        states = self.workers.states()
        parts += states[:_SHOWN_WORKERS]
        parts += [f"{len(states) - _SHOWN_WORKERS} more workers"] * (len(states) > _SHOWN_WORKERS)
        self.progress(done, total or None, ", ".join(filter(None, parts)))


def run_here(job: Job, sources: Sequence[str]) -> Outcome:
    """Do a job in this process, one recording after the other."""
    with exclusive(job.out):
        return run_job(job, sources, Here(job))


def run_on_ray(job: Job, sources: Sequence[str], options: RayOptions) -> Outcome:
    """Do a job by workers in a Ray cluster.

    Raises:
        MissingDependency: Ray is not installed.
        InputError: no cluster, other versions there, another job in the same folder, or a network
            cannot be loaded; no work has started then. Or task after task fails.
    """
    from pcseg_core.cluster.ray_workers import RayWorkers, check_nodes, connected

    with connected(options.address) as ray, exclusive(job.out):
        check_nodes(ray, job.out)
        return run_job(job, sources, RayWorkers(ray, job, options))


def left(sweeps: int, rate: float) -> str:
    """Time for some sweeps at a rate [1/s], such as "1:02:03 left"; "" if it is not known."""
    if not rate or sweeps <= 0:
        return ""
    seconds = round(sweeps / rate)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"


def report(outcome: Outcome, total: int) -> None:
    """Print what was skipped and what was left out, and why.

    Args:
        outcome: of a job.
        total: number of its recordings.

    Raises:
        InputError: recordings were left out.
    """
    for reason, count in grouped(outcome.skipped):
        note(f"skipped: {reason} ({count})")
    for line, count in outcome.lines.items():
        note(f"{line} ({count} recordings)" if count > 1 else line)
    if not outcome.left_out:
        return
    for source, reason in outcome.left_out.items():
        note(f"left out: {source}: {reason}")
    names = ", ".join(short_name(source) for source in list(outcome.left_out)[:3])
    more = ", ..." if len(outcome.left_out) > 3 else ""
    raise InputError(
        f"{len(outcome.left_out)} of {total} recordings were left out ({names}{more}), for the "
        "reasons above; the others are done. Run the same command again to try these again"
    )


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Keep other jobs out of a folder, which is made if it is missing, until the block ends.

    The end of the process frees it too. File systems without locks let other jobs in.

    Raises:
        InputError: another job works there.
    """
    made = [path for path in (out, *out.parents) if not path.exists()]
    out.mkdir(parents=True, exist_ok=True)
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            flock(folder, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{out}: another job writes there; wait for its end, or choose another --out"
            ) from None
        except OSError:
            pass  # no locks here
        yield
    finally:
        os.close(folder)
        for path in made:  # those that nothing was written to
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
