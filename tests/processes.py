# SPDX-License-Identifier: Apache-2.0
"""Processes of a training, as torchrun starts them: forks of the process of a test."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def in_processes(count: int, action: Callable[[], object], logs: Path) -> list[int]:
    """Run an action in several processes, which find each other by the variables of torchrun.

    Returns:
        Exit codes by rank, negative for a signal. What they wrote is in logs/RANK.txt.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(count)}
    children = []
    for rank in range(count):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        child = os.fork()
        if child == 0:
            _run({**common, **own}, action, logs / f"{rank}.txt")
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _run(variables: dict[str, str], action: Callable[[], object], log: Path) -> None:
    code = 1
    try:
        os.environ.update(variables)
        with log.open("w", buffering=1) as stream:
            sys.stdout = sys.stderr = stream
            try:
                action()
                code = 0
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)
