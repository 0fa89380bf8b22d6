# SPDX-License-Identifier: Apache-2.0
"""Folders at URLs, worked on in local copies.

The path of a copy holds the URL: ROOT/cache=s3%3A%2F%2Fbucket%2Fcache is the copy of
s3://bucket/cache. So any process, on any machine, knows where the files of a path belong. Files
that are written here go to the URL before they appear in the copy. Of the arrays (*.npz) the copy
keeps those that were used last, within a bound; the others are fetched again when they are read.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from urllib.parse import quote, unquote

from pcseg_core import storage
from pcseg_core.errors import InputError
from pcseg_core.files import atomic_path, bytes_limit, user_cache
from pcseg_core.storage import NotThere, as_url

FOLDER, GIGABYTES = "PCSEG_COPIES", "PCSEG_COPIES_GB"
"""Environment variables: the folder of local copies, and the size of their arrays."""

CACHE, RUN = "cache=", "run="
"""Kinds of folders, at the start of the name of a copy."""

_DEFAULT_GB = 100.0
_ARRAYS = ".npz"
_CHECKED_EVERY = 0.01  # of the bound; as much is written by a process before the oldest go
_MARK = "%3A%2F%2F"  # ://
_LONGEST = 250  # bytes of a name
_NAME = re.compile(r"(?:[^\s'\"]*/)?(?:cache|run)=(\w+%3A%2F%2F[\w.~%-]*)")
_grown = [float("inf")]  # bytes since the last look at the size of the copies


def local_copy(place: str | Path, kind: str) -> Path:
    """The local folder of a URL, or a path as it is.

    Args:
        place: path or URL, also in the form of a `Path`.
        kind: `CACHE` or `RUN`.

    Raises:
        InputError: the URL is too long for the name of a folder.
    """
    url = as_url(place)
    if url is None:
        return Path(place)
    name = f"{kind}{quote(url, safe='')}"
    if len(name) > _LONGEST:
        raise InputError(f"{url}: too long; give a URL of at most 200 characters")
    given = os.environ.get(FOLDER)
    return (Path(given).resolve() if given else user_cache("copies")) / name


def url_of(path: Path) -> str | None:
    """The URL of a copy, or of a file or folder in one; None for other paths."""
    root = root_of(path)
    if root is None:
        return None
    return "/".join([unquote(root.name.partition("=")[2]), *path.parts[len(root.parts) :]])


def root_of(path: Path) -> Path | None:
    """The copy that a path is or lies in; None for other paths."""
    if _MARK not in str(path):
        return None
    return next((p for p in (path, *path.parents) if _is_copy(p.name)), None)


def _is_copy(name: str) -> bool:
    return name.startswith((CACHE, RUN)) and _MARK in name


def shown(text: object) -> str:
    """A text, such as a path or a message, with URLs in place of their copies."""
    return _NAME.sub(lambda match: unquote(match[1]), str(text))


def is_here(path: Path) -> bool:
    """Whether a file exists; one that the copy of a URL lacks is fetched.

    Raises:
        InputError: the storage refuses, see `storage.listing`.
    """
    if path.is_file():
        return True
    url = url_of(path)
    if url is None:
        return False
    try:
        with atomic_path(path) as temporary:
            storage.get_file(url, temporary)
    except NotThere:
        return False
    _keep_bound(path)
    return True


def exists(path: Path) -> bool:
    """As `is_here`, but nothing is fetched."""
    url = None if path.is_file() else url_of(path)
    return path.is_file() if url is None else storage.exists(url)


def size(path: Path) -> int:
    """Bytes of a file, here or at the URL of its copy."""
    url = None if path.is_file() else url_of(path)
    return path.stat().st_size if url is None else storage.size(url)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """`atomic_path`; in a copy, the file also goes to the URL, or to neither.

    Raises:
        InputError: see `atomic_path` and `storage.listing`.
    """
    url = url_of(path)
    with atomic_path(path) as temporary:
        yield temporary
        if url is not None:
            storage.put_file(temporary, url)
    if url is not None:
        _keep_bound(path)


def check(folder: Path) -> None:
    """Check that the URL of a copy can be written; other folders are not looked at.

    Raises:
        InputError: it cannot; see `storage.listing`.
    """
    if url := url_of(folder):
        storage.write_object(f"{url}/.pcseg", b"")
        bytes_limit(GIGABYTES, _DEFAULT_GB)


def _keep_bound(new: Path) -> None:
    """Delete the arrays that were not used for the longest time, if all are above the bound."""
    limit = bytes_limit(GIGABYTES, _DEFAULT_GB)
    with suppress(OSError):
        _grown[0] += new.stat().st_size
    if _grown[0] < _CHECKED_EVERY * limit:
        return
    _grown[0] = 0.0
    copy = root_of(new)
    assert copy is not None
    root = copy.parent
    folder = os.open(root, os.O_RDONLY)
    try:
        flock(folder, LOCK_EX | LOCK_NB)
        found = sorted(_stored_arrays(root))
        excess = sum(size for _, size, _ in found) - limit
        for _, size, path in found:
            if excess <= 0:
                break
            if path != new:
                path.unlink(missing_ok=True)
                excess -= size
    except OSError:
        pass  # another process does it, or a file system without locks
    finally:
        os.close(folder)


def _stored_arrays(root: Path) -> Iterator[tuple[float, int, Path]]:
    """Time of last use, bytes and path of all arrays in copies; not those being written."""
    for path in root.rglob(f"*{_ARRAYS}"):
        if not path.parent.name.startswith("."):
            with suppress(OSError):
                about = path.stat()
                yield about.st_mtime, about.st_size, path


def used(path: Path) -> None:
    """Note that a file of a copy is in use, so that others make room first."""
    if url_of(path) is not None:
        with suppress(OSError):
            os.utime(path, (time.time(), time.time()))
