# SPDX-License-Identifier: Apache-2.0
"""Life of a process that spins one node: start, signals, end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from pcseg_core.errors import PcsegError

# A signal must end the process within two seconds; this much of it may pass waiting for a thread.
_PATIENCE_S = 1.0


class ServedNode(Node):
    """What `serve` needs of a node; mixed into it."""

    def start(self) -> None:
        """Called once before spinning."""

    def close(self, timeout_s: float) -> bool:
        """End all threads of the node; False if one is still busy after `timeout_s`."""
        return True


def serve(make_node: Callable[[], ServedNode], args: Sequence[str] | None = None) -> int:
    """Make a node and spin it until SIGINT, SIGTERM or the end of the context.

    Returns:
        Exit code: 0 after a signal, 2 if arguments or parameters are wrong.
    """
    signals = _Signals()
    try:
        rclpy.init(args=list(args) if args is not None else None)
    except KeyboardInterrupt:
        return 0
    except Exception as error:  # rclpy has a type of its own for each kind of wrong argument
        return _complain(error)
    node: ServedNode | None = None
    code = 0
    try:
        node = make_node()
        node.start()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        signals.interrupt = False
        if not signals.received:
            executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception as error:
        if rclpy.ok() and not signals.received:  # else a signal broke off what it was doing
            if not isinstance(error, PcsegError):
                raise
            code = _complain(error)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not break the ending
        _end(node, code)
    return code


class _Signals:
    """What SIGINT and SIGTERM do after rclpy's own handlers have ended the context.

    A long start is interrupted by an exception. While spinning nothing may be raised: it would
    come up inside a conversion of rclpy, which reports it as an error of its own, and the end of
    the context stops the executor anyway.
    """

    def __init__(self) -> None:
        self.interrupt = True
        self.received = False
        signal.signal(signal.SIGINT, self._receive)
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if self.interrupt:
            raise KeyboardInterrupt


def _complain(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def leave(code: int) -> NoReturn:
    """End the process now.

    Nothing is left to save, and taking down an interpreter that has torch loaded takes seconds on
    a busy machine. A thread inside a long computation would crash meanwhile.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end(node: ServedNode | None, code: int) -> None:
    if node is not None:
        if not node.close(_PATIENCE_S):
            leave(code)  # its thread may still use what would be destroyed
        node.destroy_node()
    rclpy.try_shutdown()
