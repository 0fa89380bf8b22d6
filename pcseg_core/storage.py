# SPDX-License-Identifier: Apache-2.0
"""Files at fsspec URLs, such as object storage: listed, read and written, with bounded retries.

fsspec is imported when the first URL is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pcseg_core.errors import InputError, MissingDependency, Unavailable

_TRIES = 5
_FIRST_PAUSE_S = 1.0
_PERMANENT = (FileNotFoundError, PermissionError, NotADirectoryError, ValueError, ImportError)
_VERSIONS = ("ETag", "etag", "md5", "mtime", "LastModified", "created")
_PACKAGES = {"s3": "pcseg_ros[cluster]", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs"}

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9]+):/+(.*)", re.DOTALL)  # also in the form of a Path

T = TypeVar("T")


class NotThere(InputError):  # noqa: N818
    """Storage answers that there is no such file or folder."""


def is_url(place: str | Path) -> bool:
    """Whether a place is an fsspec URL, such as s3://bucket/drive."""
    scheme, separator, _ = str(place).partition("://")
    return bool(separator) and scheme.isalnum()


def as_url(place: str | Path) -> str | None:
    """The URL that a place stands for, without a / at its end; None for a local path.

    `Path` makes s3:/bucket of s3://bucket; this is the way back.
    """
    match = _URL.fullmatch(str(place))
    if match is None:
        return None
    return f"{match[1]}://{'/' if match[1] == 'file' else ''}{match[2].rstrip('/')}"


@dataclass(frozen=True)
class Listing:
    """The files below a URL.

    Attributes:
        url: without a / at its end.
        files: path below the URL -> (bytes, what tells versions apart); "" for the URL itself.
    """

    url: str
    files: dict[str, tuple[int, str]]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(size for size, _ in self.files.values())

    @property
    def fingerprint(self) -> str:
        """A text that changes with the files."""
        rows = sorted(self.files.items())
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:24]

    def only(self, names: tuple[str, ...]) -> Listing:
        """The files whose names match one of some `fnmatch` patterns; all for ("*",)."""
        kept = {k: v for k, v in self.files.items() if any(fnmatch(k, name) for name in names)}
        if not kept:
            raise NotThere(f"{self.url}: no {' or '.join(names)} there")
        return Listing(self.url, kept)

    @property
    def names(self) -> list[str]:
        """Paths of the files, with the name of the URL in place of ""."""
        return [path or PurePosixPath(self.url).name for path in self.files]


def listing(url: str) -> Listing:
    """The files below a URL, or the file that it is.

    Raises:
        NotThere: no such place.
        InputError: no credentials or permission, or a name that leads elsewhere.
        Unavailable: the storage does not answer after some tries.
        MissingDependency: no package for this kind of URL is installed.
    """
    url = url.rstrip("/")
    system, root = _system(url)
    found = _patient(url, lambda: _found(system, root))
    if not found:
        raise NotThere(f"{url}: no such file or folder on this storage")
    files = {}
    for path, about in sorted(found.items()):
        name = path.removeprefix(root).lstrip("/")
        if ".." in PurePosixPath(name).parts:
            raise InputError(f"{url}: the name {path} leads out of the folder")
        versions = (about.get(key) for key in _VERSIONS)
        files[name] = (int(about.get("size") or 0), str(next(filter(None, versions), "")))
    return Listing(url, files)


def matching(pattern: str) -> list[str]:
    """URLs that a pattern with * and [...] stands for, sorted; raises as `listing`."""
    system, root = _system(pattern)
    found = _patient(pattern, lambda: system.glob(root))
    return sorted(str(system.unstrip_protocol(path)).rstrip("/") for path in found)


def read_range(url: str, start: int = 0, end: int | None = None) -> bytes:
    """The bytes from `start` to before `end` of a file, or to its end; raises as `listing`."""
    system, root = _system(url)
    found: bytes = _patient(url, lambda: system.cat_file(root, start=start, end=end))
    return found


def write_object(url: str, data: bytes) -> None:
    """Write a file, whole or not at all; raises as `listing`."""
    system, root = _system(url)
    _patient(url, lambda: system.pipe_file(root, data))


def exists(url: str) -> bool:
    """Whether there is a file at a URL; raises as `listing`."""
    try:
        return bool(_about(url).get("type") == "file")
    except NotThere:
        return False


def size(url: str) -> int:
    """Bytes of a file; raises as `listing`."""
    return int(_about(url)["size"])


def names(url: str) -> list[str]:
    """Names of the files and folders in a folder; none for a missing one. Raises as `listing`."""
    system, root = _system(url)
    try:
        found = _patient(url, lambda: system.ls(root, detail=False))
    except NotThere:
        return []
    return sorted({str(path).rstrip("/").rpartition("/")[2] for path in found})


def get_file(url: str, target: Path) -> None:
    """Copy a file from a URL to a new path; raises as `listing`."""
    system, root = _system(url)
    _patient(url, lambda: system.get_file(root, str(target)))


def put_file(path: Path, url: str) -> None:
    """Copy a file to a URL, whole or not at all; raises as `listing`."""
    system, root = _system(url)
    _patient(url, lambda: system.put_file(str(path), root))


def remove(url: str) -> None:
    """Delete a file, if there is one; raises as `listing`."""
    system, root = _system(url)
    with suppress(NotThere):
        _patient(url, lambda: system.rm_file(root))


def remove_folder(url: str) -> None:
    """Delete all files below a URL, if there are any; raises as `listing`."""
    with suppress(NotThere):
        for name in listing(url).files:
            remove(f"{url}/{name}")


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it, for libraries that take them.

    Raises:
        InputError, MissingDependency: see `listing`.
    """
    return _system(url)


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0]
    folders = {"auto_mkdir": True} if scheme in ("file", "local") else {}  # object stores have none
    try:
        system, root = url_to_fs(url, use_listings_cache=False, **folders)
    except ImportError as error:
        package = _PACKAGES.get(scheme, "the fsspec file system of it")
        raise MissingDependency(f"{url}: {error}; run: pip install '{package}'") from error
    except ValueError as error:
        raise InputError(f"{url}: {error}") from error
    return system, str(root).rstrip("/")


def _about(url: str) -> dict[str, Any]:
    system, root = _system(url)
    found: dict[str, Any] = _patient(url, lambda: system.info(root))
    return found


def _found(system: Any, root: str) -> dict[str, dict[str, Any]]:
    """Files at or below a path, by path; empty for none."""
    if system.isfile(root):
        return {root: system.info(root)}
    found: dict[str, dict[str, Any]] = system.find(root, detail=True)
    return {path: about for path, about in found.items() if about.get("type") == "file"}


def _patient(url: str, action: Callable[[], T]) -> T:
    """The result of an action on storage, which is tried again for a while.

    Raises:
        InputError, Unavailable: see `listing`.
    """
    pause = _FIRST_PAUSE_S
    for last in [False] * (_TRIES - 1) + [True]:
        try:
            return action()
        except Exception as error:  # each file system has errors of its own
            if "Credential" in type(error).__name__:
                raise InputError(
                    f"{url}: no credentials ({error}); give them as the storage expects them, for "
                    "s3:// as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws, on every "
                    "machine that reads"
                ) from error
            if isinstance(error, PermissionError):
                raise InputError(f"{url}: not permitted: {error}") from error
            if isinstance(error, FileNotFoundError):
                raise NotThere(f"{url}: no such file or folder on this storage") from error
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            if isinstance(error, _PERMANENT) or last:
                told = f"{url}: {type(error).__name__}: {error}"
                raise (Unavailable if last else InputError)(told) from error
        time.sleep(pause)
        pause *= 2
    raise AssertionError
