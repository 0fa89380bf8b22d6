# SPDX-License-Identifier: Apache-2.0
"""Figures of the conditions of an unfinished study, so that an interrupted command resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

from pcseg_core.errors import InputError
from pcseg_core.files import write_atomic

Figures: TypeAlias = dict[str, dict[str, object]]
_KIND = "pcseg robustness, unfinished"


class ConditionStore(MutableMapping[str, Figures]):
    """Condition -> figures, written to a file whenever one is added.

    Args:
        path: the file; None keeps the figures in memory alone.
        identity: everything that decides the figures, as JSON can write it. Figures of another
            identity are discarded.

    Raises:
        InputError: the file holds something else.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._identity = json.loads(json.dumps(identity, default=str))
        self._figures: dict[str, Figures] = {}
        if path is not None and path.exists():
            content = _read(path)
            if content["identity"] == self._identity:
                self._figures = content["figures"]

    def __getitem__(self, key: str) -> Figures:
        return self._figures[key]

    def __setitem__(self, key: str, figures: Figures) -> None:
        self._figures[key] = figures
        if self.path is not None:
            content = {"kind": _KIND, "identity": self._identity, "figures": self._figures}
            write_atomic(self.path, json.dumps(content))

    def __delitem__(self, key: str) -> None:
        del self._figures[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def close(self) -> None:
        """Delete the file: the study is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        raise InputError(
            f"{path} is in the way: figures of an interrupted study are stored there; move it away "
            "or choose another --json"
        )
    return content
