# SPDX-License-Identifier: Apache-2.0
"""Runs at URLs: worked on in a local copy, and mirrored to the URL.

An object beside the files names them and the version of the whole; the copy keeps the version that
it was last equal to. Another object is the claim of the job that works there, renewed while it
lives. Arrays are not mirrored: they go to the URL when they are written, see `copies`.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from fcntl import LOCK_EX, flock
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pcseg_core import storage
from pcseg_core.copies import root_of, shown, url_of
from pcseg_core.errors import InputError, Unavailable
from pcseg_core.files import FolderKind, atomic_path, write_atomic
from pcseg_core.progress import note
from pcseg_core.storage import NotThere

OURS = ".pcseg"
"""Start of the names of objects beside the files of a run."""
STATE, CLAIM = f"{OURS}-run.json", f"{OURS}-job.json"

_BEAT_S = 10.0  # between two signs of life
_SILENT_S = 35.0  # without one, a job is no more
_POLL_S = 1.0
_SETTLE_S = 0.5  # two claims at the same time have been written by then
_NOT_MIRRORED = ("cache", "shards", "pseudo_labels")


@dataclass
class _State:
    """Version of a run, and its files: name -> (bytes, time of change [ns] in the local copy)."""

    version: str = ""
    files: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: bytes | str) -> _State:
        """From JSON; an empty state if it is damaged."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return cls()


@contextmanager
def held(out: Path, kind: FolderKind, fresh: bool = False) -> Iterator[None]:
    """Keep other jobs out of a run at a URL until the block ends, and mirror what it leaves.

    Nothing happens for other folders.

    Args:
        out: run directory.
        kind: of run directories.
        fresh: do not fetch an earlier run.

    Raises:
        InputError: another job works there; or see `sync`.
    """
    url = url_of(out)
    if url is None:
        yield
        return
    claim = Claim(url)
    claim.take()
    try:
        if not fresh:
            sync(out, kind)
        try:
            yield
        except BaseException:
            with suppress(InputError):
                _leave(out, claim)
            raise
        _leave(out, claim)
    finally:
        claim.release()


def _leave(out: Path, claim: Claim) -> None:
    if claim.lost:
        raise InputError(f"{claim.url}: another job has taken it over; nothing more was written")
    mirror(out)


def sync(out: Path, kind: FolderKind, push: bool = True) -> None:
    """Make the local copy of a run the run at its URL; nothing for other folders.

    Args:
        out: run directory.
        kind: of run directories.
        push: mirror what the URL lacks, as after a kill.

    Raises:
        InputError: something else is at the URL; or the storage refuses, see `storage.listing`.
    """
    url = url_of(out)
    if url is None:
        return
    with _locked(out):
        there, here = _read(url), _noted(out)
        if not there.version and not here.version:
            there = _foreign(url, kind)
        if there.version != here.version:
            _fetch(out, url, there)
    if push:
        mirror(out)


def mirror(out: Path, patient: bool = False) -> None:
    """Bring what changed in the copy of a run to its URL; nothing for other folders.

    Args:
        out: the run directory, or a folder in it.
        patient: storage that does not answer is told, not an error; the next call tries again.

    Raises:
        InputError: see `storage.listing`.
    """
    root, url = root_of(out), url_of(root_of(out) or out)
    if root is None or url is None or not root.is_dir():
        return
    try:
        with _locked(root):
            _mirror(root, url)
    except Unavailable as error:
        if not patient:
            raise
        note(f"not mirrored: {error}; the next stored state tries again")


def clear(out: Path, kind: FolderKind, only_check: bool = False) -> None:
    """Delete the run at the URL of a copy; nothing for other folders.

    Raises:
        InputError: files lie there that we did not write; none is deleted then.
    """
    url = url_of(out)
    if url is None:
        return
    try:
        found = [n for n in storage.listing(url).files if n == STATE or not n.startswith(OURS)]
    except NotThere:
        found = []
    known = (kind.marker, *kind.contents, STATE, f"cache/{OURS}*")
    foreign = [name for name in found if not any(fnmatch(name, p) for p in known)]
    if foreign:
        raise InputError(
            f"{url} also holds files that pcseg did not write ({', '.join(foreign[:3])}); move "
            "them away, or choose another URL"
        )
    if not only_check:
        for name in found:
            storage.remove(f"{url}/{name}")
        _record(out).unlink(missing_ok=True)


def _mirror(root: Path, url: str) -> None:
    noted, here = _noted(root), _files(root)
    changed = [name for name, about in here.items() if noted.files.get(name) != about]
    gone = [name for name in noted.files if name not in here]
    if not changed and not gone:
        return
    for name in changed:
        storage.put_file(root / name, f"{url}/{name}")
    for name in gone:
        storage.remove(f"{url}/{name}")
    text = json.dumps(asdict(_State(secrets.token_hex(8), here)))
    storage.write_object(f"{url}/{STATE}", text.encode())
    write_atomic(_record(root), text)


def _fetch(out: Path, url: str, there: _State) -> None:
    """Replace the files of a copy by those at the URL; none for an empty state."""
    for name in _files(out):
        (out / name).unlink()
    for name in there.files:
        with atomic_path(out / name) as temporary, suppress(NotThere):
            storage.get_file(f"{url}/{name}", temporary)
    write_atomic(_record(out), json.dumps(asdict(_State(there.version, _files(out)))))


def _foreign(url: str, kind: FolderKind) -> _State:
    """The state of a run that was copied to a URL by other means; an empty one for a new run.

    It is stored there.

    Raises:
        InputError: something else is there.
    """
    found = [name for name in storage.names(url) if not name.startswith(OURS)]
    if not set(found) - set(_NOT_MIRRORED):
        return _State()
    if kind.marker not in found:
        raise InputError(
            f"{url} exists and is not a {kind.name} (no {kind.marker}); choose another URL"
        )
    files = storage.listing(url).files
    own = [name for name in files if any(fnmatch(name, p) for p in (kind.marker, *kind.contents))]
    kept = [name for name in own if not set(_NOT_MIRRORED) & set(name.split("/"))]
    found_state = _State(secrets.token_hex(8), {name: [files[name][0], 0] for name in kept})
    storage.write_object(f"{url}/{STATE}", json.dumps(asdict(found_state)).encode())
    return found_state


def _files(root: Path) -> dict[str, list[int]]:
    """The mirrored files of a copy, as `_State` has them."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [n for n in folders if n not in _NOT_MIRRORED and not n.startswith(".")]
        for name in names:
            path = Path(folder, name)
            with suppress(OSError):
                about = path.stat()
                found[path.relative_to(root).as_posix()] = [about.st_size, about.st_mtime_ns]
    return found


def _read(url: str) -> _State:
    try:
        return _State.parse(storage.read_range(f"{url}/{STATE}"))
    except NotThere:
        return _State()


def _record(out: Path) -> Path:
    """File beside a copy: the state that it was last equal to."""
    return out.with_name(f"{out.name}.json")


def _noted(out: Path) -> _State:
    try:
        return _State.parse(_record(out).read_text(encoding="utf-8"))
    except OSError:
        return _State()


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One process of a machine at a time works on a copy."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f"{out.name}.lock").open("w") as file:
        flock(file, LOCK_EX)
        yield


class Claim:
    """The claim of a job on a URL, renewed by a thread while the job lives.

    Args:
        url: of the run.

    Attributes:
        lost: whether another job took it over, because this one was silent for long.
    """

    def __init__(self, url: str) -> None:
        self.url, self.lost = url, False
        self._place = f"{url}/{CLAIM}"
        self._own = {"job": secrets.token_hex(8), **_process(os.getpid())}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def take(self) -> None:
        """Claim the URL, once no other job gives a sign of life.

        Raises:
            InputError: another job does; or the storage refuses, see `storage.listing`.
        """
        if (seen := self._read()) is not None:
            self._wait_for_silence(seen)
        self._write(0)
        time.sleep(_SETTLE_S)
        if (found := self._read()) is None or found.get("job") != self._own["job"]:
            raise self._taken(found or {})
        self._thread.start()

    def release(self) -> None:
        """Let others claim the URL."""
        self._ended.set()
        self._thread.join()
        with suppress(InputError):
            if not self.lost:
                storage.remove(self._place)

    def _wait_for_silence(self, seen: dict[str, Any]) -> None:
        """Wait until a job has been silent for long, or has ended."""
        if seen.get("host") == self._own["host"]:
            if _process(int(seen.get("pid", 0))) == {k: seen.get(k) for k in _process(0)}:
                raise self._taken(seen)
            return
        note(f"{self.url}: waiting {_SILENT_S:.0f} s for a sign of life of a job on {_host(seen)}")
        end = time.monotonic() + _SILENT_S
        while time.monotonic() < end:
            time.sleep(_POLL_S)
            if (now := self._read()) is None:
                return
            if now != seen:
                raise self._taken(now)

    def _renew(self) -> None:
        count = 0
        while not self._ended.wait(_BEAT_S):
            count += 1
            with suppress(InputError):  # the next time may succeed
                found = self._read()
                if found is not None and found.get("job") != self._own["job"]:
                    self.lost = True
                    note(str(self._taken(found)))
                    return
                self._write(count)

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(storage.read_range(self._place))
            return found if isinstance(found, dict) else {}
        except NotThere:
            return None
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            return {}

    def _write(self, count: int) -> None:
        storage.write_object(self._place, json.dumps({**self._own, "beat": count}).encode())

    def _taken(self, other: dict[str, Any]) -> InputError:
        return InputError(
            f"{shown(self.url)}: another job writes there (process {other.get('pid', '?')} on "
            f"{_host(other)}); wait for its end, or choose another --out"
        )


def _host(claim: dict[str, Any]) -> str:
    return str(claim.get("host", "another machine"))


def _process(pid: int) -> dict[str, Any]:
    """What identifies a process: machine, number, and time of its start ("" if it is no more)."""
    start = ""
    with suppress(OSError, IndexError):
        start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return {"host": socket.gethostname(), "pid": pid, "start": start}
