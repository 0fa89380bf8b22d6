# SPDX-License-Identifier: Apache-2.0
"""What is done with each recording of a job, and the tasks that it is divided into."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from pcseg_core.errors import InputError, MissingDependency, PcsegError, may_pass
from pcseg_core.files import write_atomic

Stretch: TypeAlias = tuple[int, int]
"""First sweep of a part of a recording, and the one after its last."""


@dataclass(frozen=True)
class Summary:
    """What came of one recording.

    Attributes:
        sweeps: number of sweeps that were used.
        kept: number of those, or of images, that an earlier run made.
        counts: number of points by class, of images, ...
        skipped: reason -> number of sweeps or images that were left out.
        lines: remarks.
        place: where the results are, see `Plan`.
    """

    sweeps: int
    kept: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    place: str = ""


@dataclass(frozen=True)
class Plan:
    """How a recording is divided.

    Attributes:
        sweeps: number of sweeps.
        stretches: parts, which are done in any order.
        whole: all parts go to the worker that opened the recording, as others would estimate its
            poses again.
        place: where the results go; two recordings may not share it. "" for nowhere.
        done: summary of an earlier run, if nothing is left to do.
    """

    sweeps: int
    stretches: tuple[Stretch, ...]
    whole: bool = False
    place: str = ""
    done: Summary | None = None


class Worker(Protocol):
    """Works on recordings in one process. Networks are loaded once."""

    def load(self) -> None:
        """Load the networks, so that what is missing shows before the work."""

    def plan(self, source: str) -> Plan:
        """Open a recording and divide it."""

    def run(self, source: str, stretch: Stretch) -> object:
        """Do a part of a recording; the small result goes to `finish`."""

    def finish(self, source: str, results: Sequence[Any]) -> Summary:
        """Complete a recording all of whose parts are done; results are in their order."""


class Job(Protocol):
    """A picklable description of the work."""

    @property
    def title(self) -> str:
        """A word for the progress line, such as "labeling"."""

    @property
    def out(self) -> Path:
        """Folder of the results, which all machines see."""

    def worker(self) -> Worker:
        """A new worker in this process."""


@dataclass(frozen=True)
class Task:
    """One step of a job: plan a recording, do a part of it, or finish it."""

    kind: Literal["plan", "run", "finish"]
    source: str
    stretch: Stretch = (0, 0)
    results: tuple[Any, ...] = ()

    @property
    def key(self) -> tuple[str, str, Stretch]:
        """Identifies the task in later tries."""
        return self.kind, self.source, self.stretch

    def __str__(self) -> str:
        name = short_name(self.source)[:40]
        first, end = self.stretch
        return f"{name} {first}-{end}" if self.kind == "run" else f"{name} ({self.kind})"


@dataclass(frozen=True)
class Failure:
    """Why a task failed, and whether another try may succeed."""

    reason: str
    again: bool


def perform(worker: Worker, task: Task) -> object:
    """The result of a task, or a `Failure`; other errors than those of input are bugs."""
    try:
        if task.kind == "plan":
            return worker.plan(task.source)
        if task.kind == "run":
            return worker.run(task.source, task.stretch)
        return worker.finish(task.source, task.results)
    except MissingDependency as error:
        return Failure(str(error), again=True)  # another machine may have it
    except PcsegError as error:
        return Failure(str(error), may_pass(error))
    except (OSError, MemoryError) as error:
        return Failure(str(error) or type(error).__name__, may_pass(error))


def short_name(source: str) -> str:
    """The last part of the path of a source, for the progress line."""
    path = source.partition("?")[0].rstrip("/").rpartition("/")[2]
    return path.removeprefix("simulated:")


def stretches(sweeps: int, size: int) -> tuple[Stretch, ...]:
    """Parts of at most `size` sweeps."""
    return tuple((start, min(start + size, sweeps)) for start in range(0, sweeps, size))


def store_summary(file: Path, key: str, summary: Summary) -> None:
    """Note in a file that a recording is done.

    Args:
        file: of the note.
        key: everything that the results depend on.
        summary: what came of it.
    """
    write_atomic(file, json.dumps({"key": key, **asdict(summary)}))


def stored_summary(file: Path, key: str) -> Summary | None:
    """What `store_summary` noted under the same key, as work of an earlier run; else None."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("key") != key:
            return None
        content["lines"] = tuple(content["lines"])
        return Summary(**content)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_place(out: Path, option: str = "--out") -> None:
    """Refuse a URL as a folder of results.

    Raises:
        InputError: it is one.
    """
    scheme, colon, _ = str(out).partition(":/")
    if colon and scheme.isalnum() and len(scheme) > 1:
        raise InputError(
            f"{option} {out}: results are written to a folder, as files are renamed and mapped "
            "into memory there; give one that all machines see, and copy it when the job is done"
        )
