# SPDX-License-Identifier: Apache-2.0
"""Nodes and players as subprocesses, in a ROS domain of their own. No ROS imports."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pcseg_core.children import module_command
from pcseg_core.errors import PcsegError

_END_S = 10.0


@contextmanager
def run_module(
    module: list[str], environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python module as a subprocess for the block; its output goes to `log`.

    See `pcseg_core.children`: nothing in the current folder is imported.

    Raises:
        PcsegError: at the end of the block, if the process ended with an error.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            module_command(*module),
            env=dict(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process only, which ends the other
        )
        try:
            yield process
            if process.poll() not in (None, 0):
                raise PcsegError(f"{module[0]} failed; its last output:\n{tail(log)}")
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def local_domain() -> dict[str, str]:
    """Environment of processes that talk ROS on this machine only, in a randomly drawn domain."""
    return {
        **os.environ,
        "ROS_LOCALHOST_ONLY": "1",
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(random.SystemRandom().randint(1, 100)),
        "PYTHONUNBUFFERED": "1",
    }


@contextmanager
def applied(environment: Mapping[str, str]) -> Iterator[None]:
    """The ROS variables of an environment, in this process for the block.

    rcl reads them when a context is initialized, and takes only the domain id as an argument.
    """
    chosen = {name: value for name, value in environment.items() if name.startswith("ROS_")}
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def tail(log: Path, lines: int = 8) -> str:
    """The last lines of a file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
