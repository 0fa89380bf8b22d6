# SPDX-License-Identifier: Apache-2.0
"""Errors for users: each message names the input, the expectation and the remedy."""

from __future__ import annotations

import errno
import importlib
import signal
from types import ModuleType

MAX_MESSAGE = 2000
"""Longest message [characters]: it may quote inputs of any size."""

_SHOWN_END = 400


class PcsegError(Exception):
    """Base of every error that the command line prints without a traceback.

    A message above `MAX_MESSAGE` loses its middle: its start names the input, its end the remedy.
    """

    def __init__(self, message: str) -> None:
        if len(message) > MAX_MESSAGE:
            start = message[: MAX_MESSAGE - _SHOWN_END - 5]
            message = f"{start} ... {message[-_SHOWN_END:]}"
        super().__init__(message)


class InputError(PcsegError, ValueError):
    """An input (file, message, parameter) is invalid."""


class Unavailable(InputError):  # noqa: N818
    """Storage, or a machine, does not answer for a while; the same call may succeed later."""


class MissingDependency(PcsegError, ImportError):  # noqa: N818
    """An optional package is needed and not installed."""


class Terminated(KeyboardInterrupt):
    """SIGTERM asks the command to end; handled like Ctrl-C, with another exit code."""


_PASSING = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EHOSTDOWN, errno.ENOTCONN),
)


def may_pass(error: BaseException | None) -> bool:
    """Whether an error may be gone later or on another machine: a full disk, silent storage.

    Errors that it was raised from count too.
    """
    while error is not None:
        if isinstance(error, (Unavailable, MemoryError)):
            return True
        if isinstance(error, OSError) and error.errno in _PASSING:
            return True
        error = error.__cause__
    return False


def interruption(number: int, message: str) -> KeyboardInterrupt:
    """The exception for a signal, SIGINT or SIGTERM; `message` tells what was stored."""
    return Terminated(message) if number == signal.SIGTERM else KeyboardInterrupt(message)


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: dotted module name, for example "rosbags.highlevel".
        extra: the extra of this package that installs it, for example "bags".

    Raises:
        MissingDependency: the package is not installed (the message names the pip command), or it
            is installed and its import fails (the message repeats the reason).
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        missing = (error.name or package).partition(".")[0]
        if missing == package:
            reason = f"'{package}' is not installed"
        else:
            reason = f"'{package}' needs '{missing}', which is not installed"
        raise MissingDependency(f"{reason}; run: pip install 'pcseg_ros[{extra}]'") from error
    except ImportError as error:
        raise MissingDependency(
            f"'{module}' is installed but cannot be imported ({error}); "
            f"reinstall it: pip install --force-reinstall 'pcseg_ros[{extra}]'"
        ) from error
