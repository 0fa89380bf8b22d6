# SPDX-License-Identifier: Apache-2.0
"""Nodes as processes."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FAKE_NODE = Path(__file__).with_name("fakes.py")
TIMEOUT_S = 20.0
_names = itertools.count(1)


def new_namespace() -> str:
    """A namespace that no process had before, whose topics and services DDS may still know."""
    return f"/t{os.getpid()}_{next(_names)}"


class NodeProcess:
    """A node in a process and a namespace of its own."""

    def __init__(
        self,
        *parameters: str,
        program: Any = FAKE_NODE,
        params: Path | None = None,
        remap: tuple[str, ...] = (),
        namespace: str = "",
    ) -> None:
        self.namespace = namespace or new_namespace()
        arguments = ["--ros-args", "-r", f"__ns:={self.namespace}"]
        if params is not None:
            arguments += ["--params-file", str(params)]
        for parameter in parameters:
            arguments += ["-p", parameter]
        for rule in remap:
            arguments += ["-r", rule]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, str(program), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(1.0)

    @property
    def output(self) -> str:
        """Everything printed so far."""
        return "".join(self.lines)

    def service(self, name: str) -> str:
        """Full name of one of the node's services."""
        return f"{self.namespace}/segment_node/{name}"

    def stop(self, number: int = signal.SIGINT, times: int = 1) -> tuple[int, float]:
        """Send a signal; exit code and seconds until the end."""
        begin = time.monotonic()
        for _ in range(times):
            self.process.send_signal(number)
            time.sleep(0.05 if times > 1 else 0)
        code = self.process.wait(TIMEOUT_S)
        elapsed = time.monotonic() - begin
        self._reader.join(1.0)
        return code, elapsed

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)


def runs(pid: int) -> bool:
    """A process is there, and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
