# SPDX-License-Identifier: Apache-2.0
"""Nodes and players as processes of their own, in a ROS domain of their own. No ROS imports."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pcseg_core.errors import PcsegError

_END_S = 10.0


class Child:
    """A process that was started."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self.pid: int = process.pid

    def __call__(self) -> bool:
        """It still runs."""
        return self._process.poll() is None


@contextmanager
def run_module(module: list[str], environment: dict[str, str], log: Path) -> Iterator[Child]:
    """Run a module for the block; calling what it gives tells whether it still runs.

    Raises:
        PcsegError: at the end of the block, if the process ended with an error.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process: Any = subprocess.Popen(
            [sys.executable, "-m", *module],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes to this process alone, which ends the other
        )
        try:
            yield Child(process)
            if process.poll() not in (None, 0):
                raise PcsegError(f"{module[0]} failed; it said:\n{tail(log)}")
        finally:
            _end(process)


def _end(process: Any) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


@contextmanager
def quiet_domain() -> Iterator[dict[str, str]]:
    """Environment of a ROS domain on this machine alone, for this process and its children."""
    chosen = {
        "ROS_LOCALHOST_ONLY": "1",
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(random.SystemRandom().randint(1, 100)),
    }
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    try:
        yield {**os.environ, "PYTHONUNBUFFERED": "1"}
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def tail(log: Path, lines: int = 8) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
