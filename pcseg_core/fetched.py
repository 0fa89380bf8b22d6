# SPDX-License-Identifier: Apache-2.0
"""Files and folders from URLs, in a local folder of bounded size.

An entry of the folder is the file or the files of one URL, as they were when they were listed. The
entries that were not used for the longest time make room for new ones. Entries in use stay.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path, PurePosixPath

from pcseg_core.errors import InputError, Unavailable
from pcseg_core.files import atomic_path, bytes_limit, remove_abandoned, user_cache
from pcseg_core.storage import Listing, get_file, listing

FOLDER, GIGABYTES = "PCSEG_FETCHED", "PCSEG_FETCHED_GB"
"""Environment variables: the folder of what was fetched, and its size."""

_DEFAULT_GB = 100.0


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
    limit: float = field(default_factory=lambda: bytes_limit(GIGABYTES, _DEFAULT_GB))

    def fetch(self, url: str, names: tuple[str, ...] = ("*",)) -> Fetched:
        """The local file or folder of a URL, which is fetched unless it is there.

        Args:
            url: the file or folder.
            names: patterns of the files of a folder that are needed; * also stands for /.

        Raises:
            InputError: see `listing`; or it is larger than the folder may be.
            Unavailable: see `listing`; or entries in use leave no room now.
        """
        wanted = listing(url).only(names)
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
        with atomic_path(place.parent) as temporary:
            for name, (_, version) in wanted.files.items():
                target = temporary / place.name / name if name else temporary / place.name
                target.parent.mkdir(parents=True, exist_ok=True)
                get_file(f"{wanted.url}/{name}" if name else wanted.url, target)
                os.utime(target, (0, _time_of(version)))

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


_held: dict[Path, Fetched] = {}


def fetched(url: str, names: tuple[str, ...] = ("*",)) -> Path:
    """The local file or folder of a URL, which stays until the process ends; see `FetchedFolder`.

    Args:
        url: the file or folder.
        names: patterns of the files of a folder that are needed; * also stands for /.
    """
    entry = FetchedFolder().fetch(url, names)
    if entry.path in _held:
        entry.close()
    else:
        _held[entry.path] = entry
    return entry.path


def _time_of(version: str) -> int:
    """A time [s] that tells versions apart, the same on all machines."""
    return int(hashlib.sha256(version.encode()).hexdigest()[:7], 16)


def _given_folder() -> Path:
    given = os.environ.get(FOLDER)
    return Path(given) if given else user_cache("fetched")


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
