# SPDX-License-Identifier: Apache-2.0
"""Long runs: children with limits, findings as files, and a table of what was tried.

A child tries cases of one target for a while. It stores each case before it tries it, so that a
case that kills the child is found.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from .harness import Target, defect_key, judge
from .targets import TARGETS

MEMORY_BYTES = 2 << 30  # that a case may take on top of what the libraries took
CASE_S = 10  # of CPU time for one case
SLICE_S = 20.0  # for one child
PATIENCE_S = 600.0  # for a child that does not end, which may wait for a busy machine
_BATCH = 200
_TRIED, _ACCEPTED, _REFUSED = range(3)


@dataclass
class Row:
    """Figures of one target."""

    target: str
    tried: int = 0
    accepted: int = 0
    refused: int = 0
    cpu_s: float = 0.0
    findings: dict[str, int] = field(default_factory=dict)


@dataclass
class _Child:
    """A running child."""

    target: Target
    folder: Path
    process: multiprocessing.process.BaseProcess
    counts: SynchronizedArray[int]
    end: float


class Run:
    """A run of some targets in parallel children.

    Args:
        targets: what to try.
        out: folder of the findings and the report.
        jobs: number of children.
        seed: of the first child.
    """

    def __init__(self, targets: Sequence[Target], out: Path, jobs: int, seed: int = 0) -> None:
        self.targets = list(targets)
        self.rows = {target.name: Row(target.name) for target in targets}
        self.out, self.jobs, self.seed = out, jobs, seed
        self._children: list[_Child] = []
        self._started = time.monotonic()
        self._next = 0

    def go(self, minutes: float) -> None:
        """Try cases for some minutes; each target gets the same time."""
        (self.out / "findings").mkdir(parents=True, exist_ok=True)
        for target in self.targets:  # the children take over what the strategies compute once
            _tried(target, 0, 1, lambda case: None)
        self._started = said = time.monotonic()
        end = self._started + 60 * minutes
        try:
            while time.monotonic() < end or self._children:
                while len(self._children) < self.jobs and time.monotonic() < end:
                    self._start(end)
                time.sleep(0.2)
                for child in list(self._children):
                    self._collect(child)
                if time.monotonic() - said > 30:
                    said = time.monotonic()
                    print(self.progress(), flush=True)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        finally:
            for child in self._children:
                child.process.kill()
            self.save()

    def progress(self) -> str:
        """One line."""
        tried = sum(row.tried for row in self.rows.values())
        found = sum(len(row.findings) for row in self.rows.values())
        minutes = (time.monotonic() - self._started) / 60
        return f"{minutes:.1f} min: {tried} cases tried, {found} findings"

    def save(self) -> None:
        """Write report.json."""
        report = {
            "minutes": round((time.monotonic() - self._started) / 60, 2),
            "jobs": self.jobs,
            "seed": self.seed,
            "cpu_minutes": round(sum(row.cpu_s for row in self.rows.values()) / 60, 2),
            "targets": [asdict(row) for row in self.rows.values()],
        }
        (self.out / "report.json").write_text(json.dumps(report, indent=1))

    def table(self) -> str:
        """The figures of all targets as a Markdown table."""
        lines = ["| target | inputs | accepted | refused | CPU min | findings |"]
        lines.append("|---|---|---|---|---|---|")
        for row in self.rows.values():
            numbers = f"{row.tried} | {row.accepted} | {row.refused} | {row.cpu_s / 60:.1f}"
            lines.append(f"| {row.target} | {numbers} | {len(row.findings)} |")
        return "\n".join(lines)

    def _start(self, end: float) -> None:
        target = self.targets[self._next % len(self.targets)]
        context = multiprocessing.get_context("fork")
        counts = context.Array("q", 3)
        folder = Path(tempfile.mkdtemp(prefix="pcseg-fuzz-"))
        seconds = min(SLICE_S, max(1.0, end - time.monotonic()))
        arguments = (target, self.seed + self._next, seconds, folder, counts, self.out)
        process = context.Process(target=_try_cases, args=arguments, daemon=True)
        process.start()
        limit = time.monotonic() + seconds + PATIENCE_S
        self._children.append(_Child(target, folder, process, counts, limit))
        self._next += 1

    def _collect(self, child: _Child) -> None:
        """Take the figures of a child that has ended, or end one that hangs."""
        late = time.monotonic() > child.end
        if child.process.is_alive() and not late:
            return
        if child.process.is_alive():
            child.process.kill()
        child.process.join()
        code = child.process.exitcode or 0
        self._children.remove(child)
        row = self.rows[child.target.name]
        tried, accepted, refused = child.counts[:]
        row.tried, row.accepted = row.tried + tried, row.accepted + accepted
        row.refused += refused
        if (child.folder / "cpu").is_file():
            row.cpu_s += float((child.folder / "cpu").read_text())
        if code or late:
            self._keep_crash(child, code, late)
        for note in sorted((self.out / "findings").glob(f"{child.target.name}-*.txt")):
            row.findings.setdefault(note.stem, 0)
            row.findings[note.stem] = int(note.read_text().splitlines()[0].split()[0])
        shutil.rmtree(child.folder)
        self.save()

    def _keep_crash(self, child: _Child, code: int, late: bool) -> None:
        cause = "hang" if late else signal.Signals(-code).name if code < 0 else f"exit {code}"
        trace = (child.folder / "trace").read_text(errors="replace")
        inner = [line.strip() for line in trace.splitlines() if "/pcseg_" in line][:2]
        trace += (child.folder / "output").read_text(errors="replace")[-4000:]
        keep(self.out, child.target.name, f"{cause} {inner}", case_of(child.folder), trace)


def case_of(folder: Path) -> bytes:
    """The case that a child tried last."""
    path = folder / "case"
    return path.read_bytes() if path.is_file() else b""


def keep(out: Path, target: str, key: str, case: bytes, report: str) -> None:
    """Store a finding; of several with one key, the number and the smallest case."""
    name = f"{target}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    note, file = out / "findings" / f"{name}.txt", out / "findings" / f"{name}.case"
    count = int(note.read_text().split()[0]) if note.is_file() else 0
    if not count or len(case) < file.stat().st_size:
        file.write_bytes(case)
        text = f"{count + 1} times: {key}\nreplay with --replay {file}\n\n{report}"
    else:
        text = f"{count + 1} " + note.read_text().partition(" ")[2]
    note.write_text(text)


def replay(file: Path) -> bool:
    """Try the case of a finding in this process; see `judge`."""
    name = file.stem.rpartition("-")[0]
    with tempfile.TemporaryDirectory() as folder:
        return judge(TARGETS[name], file.read_bytes(), Path(folder))


def _try_cases(
    target: Target,
    number: int,
    seconds: float,
    folder: Path,
    counts: SynchronizedArray[int],
    out: Path,
) -> None:
    """The child: try cases for some seconds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit(folder)
    end = time.monotonic() + seconds
    work = folder / "work"
    work.mkdir()

    def attempt(case: bytes) -> None:
        if time.monotonic() > end:
            return
        (folder / "case").write_bytes(case)
        counts[_TRIED] += 1
        signal.setitimer(signal.ITIMER_VIRTUAL, CASE_S)
        try:
            counts[_ACCEPTED if judge(target, case, work) else _REFUSED] += 1
        except Exception as error:
            keep(out, target.name, defect_key(error), case, traceback.format_exc()[-6000:])
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    batch = 0
    while time.monotonic() < end:
        batch += 1
        _tried(target, number * 100_000 + batch, _BATCH, attempt)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    (folder / "cpu").write_text(str(usage.ru_utime + usage.ru_stime))


def _tried(target: Target, number: int, cases: int, attempt: Callable[[bytes], None]) -> None:
    """Give some cases of a target to a function; the number decides which."""
    decorate = settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    decorate(seed(number)(given(target.cases())(attempt)))()


def _limit(folder: Path) -> None:
    """Bound the memory, and note the stack when a signal ends the process."""
    trace = (folder / "trace").open("w")
    faulthandler.enable(trace)
    faulthandler.register(signal.SIGVTALRM, file=trace, chain=True)
    with (folder / "output").open("w") as output:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(output.fileno(), stream.fileno())
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES, taken + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEMORY_BYTES, MEMORY_BYTES))
