# SPDX-License-Identifier: Apache-2.0
"""A target of the fuzz suite, and the judgment of one case."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis.strategies import SearchStrategy

from pcseg_core.errors import MAX_MESSAGE, InputError


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        name: of the target.
        cases: strategy of inputs as bytes; a finding is stored as these bytes.
        check: reads one input and checks what it gives; may write into the folder. Raises
            InputError for a refused input, and anything else for a defect.
        names: each error message holds one of these words, which name the input.
        examples: cases of the short version.
    """

    name: str
    cases: Callable[[], SearchStrategy[bytes]]
    check: Callable[[bytes, Path], None]
    names: tuple[str, ...]
    examples: int = 50


def judge(target: Target, case: bytes, folder: Path) -> bool:
    """Whether a case is accepted; False if it is refused as it should be.

    Raises:
        Exception: the case shows a defect.
    """
    try:
        target.check(case, folder)
    except InputError as error:
        message = str(error)
        if len(message) > MAX_MESSAGE:
            shown = f"{message[:300]} ... {message[-100:]}"
            raise AssertionError(f"a message of {len(message)} characters: {shown}") from error
        if not any(name in message for name in target.names):
            raise AssertionError(f"the message does not name its input: {message}") from error
        return False
    return True


def defect_key(error: BaseException) -> str:
    """What identifies a defect: the kind of the error and the innermost frames of this project."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, AssertionError) and error.__cause__ is not None:
        frames = traceback.extract_tb(error.__cause__.__traceback__)
    own = [f"{Path(f.filename).name}:{f.name}" for f in frames if "/pcseg_" in f.filename]
    checks = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "/fuzz/" in f.filename]
    return " ".join([type(error).__name__, *own[-2:], *checks[-1:]])
