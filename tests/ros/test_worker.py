# SPDX-License-Identifier: Apache-2.0
"""The latest-only slot and the thread behind it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from pcseg_ros.worker import LatestSlot, LatestWorker


def wait_for(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"the condition did not hold within {timeout_s} s"
        time.sleep(0.001)


def _ignore(item: object, error: Exception) -> None:
    raise AssertionError(f"unexpected error on {item}: {error}")


def test_slot_keeps_the_newest_and_tells_of_replacement() -> None:
    slot: LatestSlot[int] = LatestSlot()
    assert [slot.put(1), slot.put(2), slot.put(3)] == [False, True, True]
    assert slot.take() == 3
    assert slot.put(4) is False
    slot.close()
    assert slot.take() is None  # what waited is discarded


def test_close_releases_a_waiting_thread() -> None:
    slot: LatestSlot[int] = LatestSlot()
    taken: list[int | None] = [0]
    thread = threading.Thread(target=lambda: taken.append(slot.take()), daemon=True)
    thread.start()
    time.sleep(0.05)
    slot.close()
    thread.join(2.0)
    assert not thread.is_alive()
    assert taken == [0, None]


def test_busy_worker_skips_to_the_newest() -> None:
    started, release, done = threading.Event(), threading.Event(), []

    def process(item: int) -> None:
        started.set()
        assert release.wait(5.0)
        done.append(item)

    worker = LatestWorker(process, _ignore)
    assert worker.offer(0) is False
    assert started.wait(5.0)
    replaced = [worker.offer(item) for item in (1, 2, 3)]
    release.set()
    wait_for(lambda: len(done) == 2)
    assert worker.stop(5.0)
    assert done == [0, 3]
    assert replaced == [False, True, True]


def test_every_item_is_processed_or_reported_as_replaced_and_the_last_one_always_is() -> None:
    done: list[int] = []
    worker: LatestWorker[int] = LatestWorker(done.append, _ignore)
    count = 20_000
    replaced = sum(worker.offer(item) for item in range(count))
    wait_for(lambda: done and done[-1] == count - 1)
    assert worker.stop(5.0)
    assert done == sorted(set(done))
    assert done[-1] == count - 1
    assert len(done) + replaced == count


def test_an_error_is_reported_and_the_thread_continues() -> None:
    errors, done = [], threading.Event()

    def process(item: int) -> None:
        if item == 0:
            raise ValueError("bad item")
        done.set()

    worker = LatestWorker(process, lambda item, error: errors.append((item, str(error))))
    worker.offer(0)
    wait_for(lambda: errors)
    worker.offer(1)
    assert done.wait(5.0)
    assert worker.stop(5.0)
    assert errors == [(0, "bad item")]


def test_the_thread_survives_an_error_handler_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    handled, done = threading.Event(), threading.Event()

    def process(item: int) -> None:
        if item == 0:
            raise ValueError("bad item")
        done.set()

    def handle(item: int, error: Exception) -> None:
        handled.set()
        raise RuntimeError("bad handler")

    worker = LatestWorker(process, handle)
    worker.offer(0)
    assert handled.wait(5.0)
    worker.offer(1)
    assert done.wait(5.0)
    assert worker.stop(5.0)
    assert "bad handler" in capfd.readouterr().err


def test_stop_says_whether_the_thread_has_ended() -> None:
    release = threading.Event()
    worker: LatestWorker[int] = LatestWorker(lambda _: release.wait(10.0), _ignore)  # type: ignore[arg-type,return-value]
    worker.offer(1)
    time.sleep(0.05)
    assert worker.stop(0.05) is False
    release.set()
    assert worker.stop(5.0) is True
