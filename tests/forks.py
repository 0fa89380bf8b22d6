# SPDX-License-Identifier: Apache-2.0
"""Child processes of a test, which may kill themselves at a chosen moment."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def run_in_child(action: Callable[[], object], log: Path) -> tuple[int, str]:
    """Run an action in a fork of this process.

    Returns:
        Exit code, negative for a signal, and what was written to the standard streams.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with log.open("w") as stream:
                sys.stdout = sys.stderr = stream
                try:
                    action()
                    code = 0
                except SystemExit as end:
                    code = int(end.code or 0)
                except BaseException:
                    traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text()


def end_self(number: int) -> None:
    """Send a signal to this process."""
    os.kill(os.getpid(), number)
