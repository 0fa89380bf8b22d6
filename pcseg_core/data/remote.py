# SPDX-License-Identifier: Apache-2.0
"""Recordings on object storage: listed by fsspec, fetched into a local folder of bounded size.

An entry of the folder is the file or the files of one URL, as they were when they were listed. The
entries that were not used for the longest time make room for new ones. Entries in use stay.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pcseg_core.errors import InputError, MissingDependency, Unavailable
from pcseg_core.files import atomic_path, remove_abandoned, user_cache

FOLDER, GIGABYTES = "PCSEG_FETCHED", "PCSEG_FETCHED_GB"
"""Environment variables: the folder of fetched recordings, and its size."""

_DEFAULT_GB = 100.0
_TRIES = 5
_FIRST_PAUSE_S = 1.0
_PERMANENT = (FileNotFoundError, PermissionError, NotADirectoryError, ValueError, ImportError)
_VERSIONS = ("ETag", "etag", "md5", "mtime", "LastModified", "created")
_PACKAGES = {"s3": "pcseg_ros[cluster]", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs"}

T = TypeVar("T")


def is_url(place: str | Path) -> bool:
    """Whether a place is an fsspec URL, such as s3://bucket/drive."""
    scheme, separator, _ = str(place).partition("://")
    return bool(separator) and scheme.isalnum()


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

    @property
    def names(self) -> list[str]:
        """Paths of the files, with the name of the URL in place of ""."""
        return [path or PurePosixPath(self.url).name for path in self.files]


def listing(url: str) -> Listing:
    """The files below a URL, or the file that it is.

    Raises:
        InputError: no such place, no credentials or permission, or a name that leads elsewhere.
        Unavailable: the storage does not answer after some tries.
        MissingDependency: no package for this kind of URL is installed.
    """
    url = url.rstrip("/")
    system, root = _system(url)
    found = _patient(url, lambda: _found(system, root))
    if not found:
        raise InputError(f"{url}: no such file or folder on this storage")
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


@dataclass
class Fetched:
    """A fetched entry, which stays until `close`."""

    path: Path
    lock: int

    def close(self) -> None:
        """Let the entry go."""
        os.close(self.lock)


@dataclass
class FetchedFolder:
    """The folder of fetched recordings of a machine; any number of processes share it.

    Attributes:
        folder: of the entries.
        limit: bytes of all entries.
    """

    folder: Path = field(default_factory=lambda: _given_folder())
    limit: float = field(default_factory=lambda: _given_limit())

    def fetch(self, url: str) -> Fetched:
        """The local file or folder of a URL, which is fetched unless it is there.

        Raises:
            InputError: see `listing`; or it is larger than the folder may be.
            Unavailable: see `listing`; or entries in use leave no room now.
        """
        wanted = listing(url)
        if wanted.bytes > self.limit:
            raise InputError(
                f"{url}: {wanted.bytes / 1e9:.1f} GB, more than the {self.limit / 1e9:.1f} GB that "
                f"{self.folder} may hold; set {GIGABYTES} higher"
            )
        key = hashlib.sha256(f"{wanted.url} {wanted.fingerprint}".encode()).hexdigest()[:24]
        mark, place = self.folder / f"{key}.json", self.folder / key / PurePosixPath(url).name
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            lock = _locked(mark, LOCK_SH)
            if (self.folder / key).is_dir():
                os.utime(mark)
                return Fetched(place, lock)
            os.close(lock)
            with closing(Fetched(place, _locked(mark, LOCK_EX))):
                if not (self.folder / key).is_dir():
                    self._fetch(wanted, mark, place)

    def _fetch(self, wanted: Listing, mark: Path, place: Path) -> None:
        self._make_room(wanted, mark)
        system, root = _system(wanted.url)
        with atomic_path(place.parent) as temporary:
            for name in wanted.files:
                target = temporary / place.name / name if name else temporary / place.name
                target.parent.mkdir(parents=True, exist_ok=True)
                source = f"{root}/{name}" if name else root
                _patient(wanted.url, partial(system.get_file, source, str(target)))
                os.utime(target, (0, 0))  # the same on all machines

    def _make_room(self, wanted: Listing, mark: Path) -> None:
        """Write the size of a new entry into its mark, once older entries leave room for it."""
        remove_abandoned(self.folder)
        with _exclusive(self.folder / "room.lock"):
            sizes = {path: _size(path) for path in self._marks() if path != mark}
            free = self.limit - sum(sizes.values()) - wanted.bytes
            for path in sorted(sizes, key=_last_used):
                if free >= 0:
                    break
                if self._remove(path):
                    free += sizes[path]
            if free < 0:
                raise Unavailable(
                    f"{wanted.url}: recordings in use fill {self.folder}; set {GIGABYTES} higher, "
                    "or use fewer workers"
                )
            content = {"url": wanted.url, "files": {n: s for n, (s, _) in wanted.files.items()}}
            mark.write_text(json.dumps(content), encoding="utf-8")

    def _marks(self) -> list[Path]:
        return [path for path in self.folder.glob("*.json") if len(path.stem) == 24]

    def _remove(self, mark: Path) -> bool:
        """Delete the files of an entry that we wrote; False if it is in use."""
        lock = _locked(mark, LOCK_EX | LOCK_NB)
        if lock < 0:
            return False
        try:
            content = json.loads(mark.read_text(encoding="utf-8") or "{}")
            name = PurePosixPath(str(content.get("url", ""))).name
            root = mark.with_suffix("") / name
            for path in content.get("files", ()):
                (root / path if path else root).unlink(missing_ok=True)
            for folder in sorted(mark.with_suffix("").rglob("*"), reverse=True):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
            if mark.with_suffix("").is_dir() and not any(mark.with_suffix("").iterdir()):
                mark.with_suffix("").rmdir()
            mark.unlink()
            return True
        except (OSError, ValueError, AttributeError):
            return False
        finally:
            os.close(lock)


def _given_folder() -> Path:
    given = os.environ.get(FOLDER)
    return Path(given) if given else user_cache("fetched")


def _given_limit() -> float:
    given = os.environ.get(GIGABYTES, str(_DEFAULT_GB))
    try:
        limit = float(given) * 1e9
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise InputError(f"{GIGABYTES}={given}: expected a number of gigabytes above 0")
    return limit


def _size(mark: Path) -> int:
    """Bytes of the entry of a mark."""
    try:
        return sum(json.loads(mark.read_text(encoding="utf-8"))["files"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def _last_used(mark: Path) -> float:
    try:
        return mark.stat().st_mtime
    except OSError:
        return 0.0


def _locked(mark: Path, how: int) -> int:
    """Descriptor of a file that is locked, and not deleted meanwhile; -1 if others hold it."""
    while True:
        descriptor = os.open(mark, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            flock(descriptor, how)
            if os.fstat(descriptor).st_ino == mark.stat().st_ino:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return -1
        except FileNotFoundError:
            pass
        os.close(descriptor)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    descriptor = _locked(path, LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0]
    try:
        system, root = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        package = _PACKAGES.get(scheme, "the fsspec file system of it")
        raise MissingDependency(f"{url}: {error}; run: pip install '{package}'") from error
    except ValueError as error:
        raise InputError(f"{url}: {error}") from error
    return system, str(root).rstrip("/")


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
                raise InputError(f"{url}: no such file or folder on this storage") from error
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            if isinstance(error, _PERMANENT) or last:
                told = f"{url}: {type(error).__name__}: {error}"
                raise (Unavailable if last else InputError)(told) from error
        time.sleep(pause)
        pause *= 2
    raise AssertionError
