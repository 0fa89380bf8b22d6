# SPDX-License-Identifier: Apache-2.0
"""Every part of every recording is done once; failures are tried again elsewhere, with a bound."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleet import DIES, Fleet

from pcseg_core.cluster import run, schedule
from pcseg_core.cluster.job import Failure, Plan, Summary, Task
from pcseg_core.cluster.run import exclusive, left, report, run_job
from pcseg_core.cluster.schedule import Outcome, Schedule
from pcseg_core.errors import InputError

SOURCES = [f"drive{k}" for k in range(5)]


class Named:
    """A job whose workers are a `Fleet`."""

    title, out = "testing", Path()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_LONGEST_PAUSE_S", 0.0)


def done(fleet: Fleet, sources: list[str] = SOURCES) -> Outcome:
    outcome = run_job(Named(), sources, fleet)
    assert fleet.stopped
    return outcome


def test_every_part_is_done_once() -> None:
    fleet = Fleet()
    outcome = done(fleet)
    keys = [task.key for _, task in fleet.log]
    assert len(keys) == len(set(keys)) == 5 * (1 + 2 + 1)
    assert outcome.recordings == 5 and outcome.sweeps == 20 and not outcome.left_out
    assert outcome.counts == {"parts": 10}


def test_idle_workers_help_unless_the_poses_are_of_one() -> None:
    helped = Fleet(sweeps=20)
    done(helped, ["long"])
    assert helped.workers_of("long") == {"a1", "b1"}
    whole = Fleet(sweeps=20, whole=True)
    done(whole, ["long"])
    assert len(whole.workers_of("long")) == 1


def test_a_bad_recording_is_left_out_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    fleet = Fleet(lambda _, t: Failure("damaged", False) if t.source == "drive1" else None)
    outcome = done(fleet)
    assert outcome.left_out == {"drive1": "damaged"} and outcome.recordings == 4
    assert sum(task.source == "drive1" for _, task in fleet.log) == 1
    with pytest.raises(InputError, match=r"1 of 5 recordings were left out \(drive1\)"):
        report(outcome, 5)
    assert "left out: drive1: damaged" in capsys.readouterr().err


def test_a_bad_part_ends_its_recording_alone() -> None:
    bad = ("run", "drive1", (2, 4))
    outcome = done(Fleet(lambda _, t: Failure("bad", False) if t.key == bad else None))
    assert outcome.left_out == {"drive1": "sweeps 2 to 3: bad"} and outcome.recordings == 4


def test_what_fails_on_one_machine_is_done_on_the_other() -> None:
    fleet = Fleet(lambda worker, _: Failure("disk full", True) if worker[0] == "a" else None)
    outcome = done(fleet)
    assert outcome.recordings == 5 and not outcome.left_out
    failed = [task.key for worker, task in fleet.log if worker[0] == "a"]
    assert failed and len(failed) == len(set(failed))  # no task fails there twice


def test_tries_are_bounded() -> None:
    fleet = Fleet(lambda _, t: Failure("silent", True) if t.source == "drive2" else None)
    assert done(fleet).left_out == {"drive2": "silent (tried 3 times)"}
    assert sum(task.source == "drive2" for _, task in fleet.log) == 3


def test_storage_that_comes_back_costs_nothing() -> None:
    answers = iter([Failure("503", True)] * 4)
    outcome = done(Fleet(lambda worker, task: next(answers, None)))
    assert outcome.recordings == 5 and not outcome.left_out


def test_a_job_on_which_everything_fails_ends() -> None:
    with pytest.raises(InputError, match="the last 10 tasks failed on all workers.*no space"):
        done(Fleet(lambda worker, task: Failure("no space", True)), [f"d{k}" for k in range(99)])


@pytest.mark.parametrize("whole", [False, True])
def test_the_work_of_a_killed_worker_goes_to_others(whole: bool) -> None:
    seen: set[str] = set()

    def dies_once(worker: str, task: Task) -> object:
        first = task.key == ("run", "drive0", (2, 4)) and not seen
        seen.update({"killed"} if first else ())
        return DIES if first else None

    fleet = Fleet(dies_once, sweeps=6, whole=whole)
    outcome = done(fleet)
    assert outcome.recordings == 5 and not outcome.left_out and outcome.counts["parts"] == 15
    keys = [task.key for _, task in fleet.log]
    assert len(keys) == len(set(keys)) + 1  # what was done before is not done again


def test_a_recording_that_kills_its_workers_is_left_out() -> None:
    fleet = Fleet(lambda _, task: DIES if task.source == "drive3" else None)
    assert done(fleet).left_out == {"drive3": "killed (tried 3 times)"}


def test_a_failing_worker_pauses_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_LONGEST_PAUSE_S", 60.0)
    now = [0.0]
    plan = Schedule(SOURCES, clock=lambda: now[0], tries=9)
    for pause in (1.0, 2.0, 4.0):
        assert plan.take("a1", "a") is not None
        plan.done("a1", Failure("full", True))
        now[0] += pause - 0.5
        assert plan.take("a1", "a") is None
        now[0] += 0.5


def test_complete_recordings_and_those_at_one_place() -> None:
    plan = Schedule(["old", "x/drive", "y/drive"])
    plan.take("a")
    plan.done("a", Plan(7, (), done=Summary(7)))
    for _ in range(2):
        plan.take("a")
        plan.done("a", Plan(2, ((0, 2),), place="out/drive"))
        if plan._open:  # the rest of the first
            plan.take("a")
            plan.done("a", None)
            plan.take("a")
            plan.done("a", Summary(2))
    assert plan.finished and plan.outcome.earlier == 1 and plan.earlier_sweeps == 7
    assert plan.outcome.left_out == {
        "y/drive": "its results would go to out/drive, as do x/drive's"
    }


def test_interruption_stops_the_workers() -> None:
    def interrupted(worker: str, task: Task) -> object:
        raise KeyboardInterrupt

    fleet = Fleet(interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_job(Named(), SOURCES, fleet)
    assert fleet.stopped


def test_the_line_tells_rate_rest_and_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(run.Bar, "__call__", lambda self, done, total, text: lines.append(text))
    done(Fleet())
    assert any("sweeps/s" in line and "2 of 5 recordings, a1: busy" in line for line in lines)
    assert left(7230, 1.0) == "2:00:30 left" and left(0, 1.0) == left(5, 0.0) == ""


def test_two_jobs_may_not_share_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with exclusive(out):
        with pytest.raises(InputError, match="another job writes there"), exclusive(out):
            pass
        with exclusive(tmp_path / "other"):
            pass
    assert not out.parent.exists()  # nothing was written
    with exclusive(out):
        (out / "file").touch()
    assert out.is_dir()
