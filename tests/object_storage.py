# SPDX-License-Identifier: Apache-2.0
"""Object storage in memory, at storage://, which fails as it is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pcseg_core import storage as module


class Storage(MemoryFileSystem):
    """Storage that fails as it is told."""

    protocol = "storage"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    failures: list[Exception] = []
    reads: list[str] = []
    writes: list[str] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("storage://", "memory://"))

    def unstrip_protocol(self, path: str) -> str:
        return f"storage:/{path}"

    def get_file(self, path: str, *args: Any, **kwargs: Any) -> None:
        self.reads.append(path)
        self._fail()
        super().get_file(path, *args, **kwargs)

    def put_file(self, source: str, path: str, *args: Any, **kwargs: Any) -> None:
        self.writes.append(path)
        self._fail()
        super().put_file(source, path, *args, **kwargs)

    def find(self, *args: Any, **kwargs: Any) -> Any:
        self._fail()
        return super().find(*args, **kwargs)

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


class NoCredentialsError(Exception):
    """As of botocore."""


@pytest.fixture(autouse=True)
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """Empty storage, which is asked again without a pause."""
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.0)
    fsspec.register_implementation("storage", Storage, clobber=True)
    for told in (Storage.store, Storage.failures, Storage.reads, Storage.writes):
        told.clear()
    Storage.pseudo_dirs[:] = [""]
    yield Storage()
    Storage.failures.clear()
