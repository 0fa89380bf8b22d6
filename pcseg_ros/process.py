# SPDX-License-Identifier: Apache-2.0
"""The process of one node: memory settings, start, signals, end. Imports ROS when it starts."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from pcseg_core.errors import PcsegError

if TYPE_CHECKING:
    from rclpy.executors import Executor

    from pcseg_ros.segment_node import SegmentNode

# A signal must end the process within two seconds; this is the part of it spent on threads.
_PATIENCE_S = 1.0
END_WITH_PARENT = "PCSEG_END_WITH_PARENT"
_PR_SET_PDEATHSIG = 1  # of prctl(2)
# Parameters of mallopt(3), by their numbers in glibc's malloc.h.
_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1


def keep_freed_memory() -> None:
    """Make glibc keep the memory that a sweep frees for the next one, in one heap.

    - M_MMAP_THRESHOLD and M_TRIM_THRESHOLD: by default, glibc returns large blocks to the system
      at once. The page faults of the next sweep then cost as much time as all conversions.
    - M_ARENA_MAX: with one heap per thread, freed blocks accumulate in each of them for hours.

    The number of heaps is fixed when a second thread first allocates, so call this before numpy is
    imported, which starts threads. Does nothing with another C library.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest value that glibc accepts
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def keep_objects() -> None:
    """Leave what is loaded now out of garbage collections, until `gc.unfreeze`.

    Modules and the network are 250,000 objects. A full collection, which is rare, looks at each of
    them and stops Python's threads for 0.1 s; without them it takes 1 ms.
    """
    gc.unfreeze()  # what was left out before, and may be garbage since
    gc.collect()
    gc.freeze()


def end_with_parent() -> None:
    """Receive SIGTERM when the parent ends, if the variable PCSEG_END_WITH_PARENT is set.

    `ros2 launch` ends at once on SIGTERM and leaves its processes running, so the launch files
    set the variable.
    """
    libc = ctypes.CDLL(None)
    if os.environ.get(END_WITH_PARENT) and hasattr(libc, "prctl"):
        parent = os.getppid()
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has just ended
            os.kill(os.getpid(), signal.SIGTERM)


def serve(make_node: Callable[[], SegmentNode], args: Sequence[str] | None = None) -> int:
    """Create and start a node, and spin it until SIGINT, SIGTERM or the end of the context.

    Returns:
        Exit code: 0 after a signal, 2 if arguments or parameters are wrong.
    """
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

    signals = _Signals()
    end_with_parent()
    try:
        rclpy.init(args=list(args) if args is not None else None)
    except KeyboardInterrupt:
        return 0
    except Exception as error:  # rclpy has its own exception for each kind of wrong argument
        return _complain(error)
    node: SegmentNode | None = None
    code = 0
    try:
        node = make_node()
        node.start()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        signals.interrupt = False
        if not signals.received:
            _spin(executor, node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception as error:
        if rclpy.ok() and not signals.received:  # otherwise a signal interrupted a call
            if not isinstance(error, PcsegError):
                raise
            code = _complain(error)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the end
        _end(node, code)
    return code


def _spin(executor: Executor, node: SegmentNode) -> None:
    """Spin until the context ends; a message that cannot be converted costs that message.

    For example, rclpy raises ValueError for a negative time on /clock.
    """
    while executor.context.ok():
        try:
            executor.spin()
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            node.refuse(error)


class _Signals:
    """Handlers of SIGINT and SIGTERM, called after those of rclpy have ended the context.

    A long start is interrupted by an exception. While spinning, none may be raised: it would
    surface inside a conversion of rclpy, which reports it as an error of its own. The executor
    stops with the context.
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

    Nothing is left to save. An orderly exit with torch loaded takes seconds on a busy machine, and
    would crash a thread that is still computing.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end(node: SegmentNode | None, code: int) -> None:
    import rclpy

    if node is not None:
        if not node.close(_PATIENCE_S):
            leave(code)  # its thread may still use what would be destroyed
        node.destroy_node()
    rclpy.try_shutdown()
