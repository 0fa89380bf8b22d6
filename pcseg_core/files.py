# SPDX-License-Identifier: Apache-2.0
"""Output files and folders: written whole, readable by others, and never at another's cost."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from pcseg_core.errors import InputError

STDOUT = "-"
"""In place of the path of a file: the standard output."""

_TEMPORARY = ".pcseg-"  # in the names of temporary folders: .NAME.pcseg-XXXXXXXX


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block succeeds.

    The block writes a file, or makes a folder, at the path it is given, which does not exist
    yet and keeps the suffix of `path`. A file at `path` is replaced; a link stays a link, and what
    it points to is replaced; a device or a pipe is written to. When the block raises (also on
    Ctrl-C), what it wrote is removed and `path` stays as it was. Permissions follow the umask,
    whatever those of the temporary file were.

    Raises:
        InputError: the folder of `path` cannot be written, or `path` is a folder that is not
            empty, which is never replaced.
    """
    target = Path(path)
    if target.is_symlink():
        target = target.resolve()
    special = is_special(target)
    folder = Path(tempfile.mkdtemp()) if special else _temporary_folder(target)
    lock = _lock(folder)
    try:
        temporary = folder / target.name
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"nothing was written for {target}")
        if special:
            with temporary.open("rb") as source, target.open("wb") as stream:
                shutil.copyfileobj(source, stream)
            return
        _honor_umask(temporary)
        _flush(temporary)
        _replace(temporary, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write bytes, or text as UTF-8, to `path` atomically; "-" is the standard output."""
    content = data.encode("utf-8") if isinstance(data, str) else data
    if os.fspath(path) == STDOUT:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def file_checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_special(path: Path) -> bool:
    """Whether a path leads to a device, a pipe or a socket."""
    return path.exists() and not (path.is_file() or path.is_dir())


def slug(name: str) -> str:
    """A name as part of a file name: what is not a letter, digit, - or _ becomes _."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


@dataclass(frozen=True)
class FolderKind:
    """How to recognize an output folder of ours, and all that we write into it.

    Attributes:
        name: for messages, such as "run directory".
        marker: file that identifies the folder, relative to it.
        check: reads the marker and raises `InputError` if it is not one of ours.
        contents: `fnmatch` patterns of the files that we write, relative to the folder; `*` also
            matches `/`. The marker is always among them.
    """

    name: str
    marker: str
    check: Callable[[Path], object]
    contents: tuple[str, ...]


def user_cache(part: str) -> Path:
    """$XDG_CACHE_HOME/pcseg/PART, in the home folder, or the temporary folder without one."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        cache = Path(given) if given else Path.home() / ".cache"
    except RuntimeError:  # no HOME, and the user has no entry in the password database
        cache = Path(tempfile.gettempdir()) / f"pcseg-{os.getuid()}"
    return cache / "pcseg" / part


def bytes_limit(variable: str, default_gb: float) -> float:
    """Bytes that a folder may hold, by an environment variable in gigabytes.

    Raises:
        InputError: the variable is not a number above 0.
    """
    given = os.environ.get(variable, str(default_gb))
    try:
        limit = float(given) * 1e9
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise InputError(f"{variable}={given}: expected a number of gigabytes above 0")
    return limit


def is_file(path: str | Path) -> bool:
    """Whether a path is a file; False, not an error, for a name that the system refuses."""
    return os.path.isfile(path)  # noqa: PTH113 - the method raises for a name that is too long


def exists(path: str | Path) -> bool:
    """Whether a path exists; False, not an error, for a name that the system refuses."""
    return os.path.exists(path)  # noqa: PTH110 - as in `is_file`


def claim_folder(out: Path, kind: FolderKind, *, fresh: bool = False) -> bool:
    """Make sure that an output folder is ours to write into.

    What killed processes left half-written in a folder of ours is deleted.

    Args:
        out: the folder; need not exist.
        kind: what it has to be if it is not empty.
        fresh: delete what we wrote there before.

    Returns:
        Whether it holds earlier results of this kind, to be continued.

    Raises:
        InputError: it is a file or holds something else; or `fresh`, and it also holds files that
            we did not write. Nothing is deleted in either case.
    """
    remove_abandoned(out)
    if not _is_ours(out, kind):
        return False
    for folder in [path for path in out.rglob("*") if path.is_dir()]:
        remove_abandoned(folder)
    if not fresh:
        return True
    for path in _own_files(out, kind):
        path.unlink()
    for folder in sorted((p for p in out.rglob("*") if p.is_dir()), reverse=True):
        folder.rmdir()
    return False


def check_new_folder(out: Path, kind: FolderKind, *, force: bool) -> None:
    """Make sure that `new_folder` can put a result at `out`, before the work that makes it.

    What killed processes left half-written at `out` is deleted.

    Raises:
        InputError: see `new_folder`.
    """
    remove_abandoned(out.parent, out.name)
    if not _is_ours(out, kind):
        return
    if not force:
        raise InputError(f"{out} exists; choose another path, or use --force to replace it")
    _own_files(out, kind)


@contextmanager
def new_folder(out: Path, kind: FolderKind, *, force: bool) -> Iterator[Path]:
    """Give a temporary path as `atomic_path` does; an earlier result at `out` is replaced.

    The earlier result stays until the block succeeds.

    Args:
        out: the folder.
        kind: what may be replaced.
        force: replace an earlier result.

    Raises:
        InputError: `out` is taken and `force` is not given, or by something else than an earlier
            result, or together with files that we did not write.
    """
    check_new_folder(out, kind, force=force)
    with atomic_path(out) as folder:
        yield folder
        claim_folder(out, kind, fresh=True)


def is_unused(folder: Path, first: str) -> bool:
    """Whether a folder is empty, or holds the rest of a write of its `first` file alone."""
    return all(path.name.startswith(f".{first}.") for path in folder.iterdir())


def _is_ours(out: Path, kind: FolderKind) -> bool:
    """Whether a folder holds results of a kind; False for a new or empty one, else an error."""
    if not out.exists() or (out.is_dir() and is_unused(out, kind.marker)):
        return False
    try:
        if not out.is_dir() or not (out / kind.marker).is_file():
            raise InputError(f"no {kind.marker}")
        kind.check(out / kind.marker)
    except InputError as error:
        raise InputError(
            f"{out} exists and is not a {kind.name} ({error}); choose another path"
        ) from error
    return True


def _own_files(out: Path, kind: FolderKind) -> list[Path]:
    """All files of a folder, or an error if we did not write all of them."""
    known = (kind.marker, *kind.contents)
    files = [path for path in out.rglob("*") if path.is_symlink() or not path.is_dir()]
    names = {path: path.relative_to(out).as_posix() for path in files}
    foreign = [name for name in names.values() if not any(fnmatch(name, p) for p in known)]
    if foreign:
        listed = ", ".join(sorted(foreign)[:3]) + (", ..." if len(foreign) > 3 else "")
        raise InputError(
            f"{out} also holds files that pcseg did not write ({listed}); move them away, or "
            "choose another path"
        )
    return files


def _flush(written: Path) -> None:
    """Write a file, or all files of a folder, through to the disk."""
    for path in (written, *(written.rglob("*") if written.is_dir() else ())):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _honor_umask(written: Path) -> None:
    """Give a written file or folder the permissions that the umask asks for.

    Some libraries create files for their owner alone, whatever the umask is.
    """
    allowed = 0o777 & ~_umask()
    for path in (written, *(written.rglob("*") if written.is_dir() else ())):
        if path.is_symlink():
            continue
        mode = path.stat().st_mode & 0o777
        wanted = mode | (allowed if path.is_dir() else allowed & 0o666)
        if wanted != mode:
            path.chmod(wanted)


def _umask() -> int:
    """The process's umask, read without changing it where the system shows it."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(next(x for x in status.splitlines() if x.startswith("Umask:")).split()[1], 8)
    except (OSError, StopIteration, ValueError):
        mask = os.umask(0o077)
        os.umask(mask)
        return mask


def _temporary_folder(target: Path) -> Path:
    """Make a hidden folder beside the target: the same file system, so that rename works."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{target.name[:100]}{_TEMPORARY}"
        return Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    except OSError as error:
        raise InputError(
            f"cannot write {target}: {error.strerror or error}; choose a path in a folder that "
            "you may write to"
        ) from error


def _lock(folder: Path) -> int | None:
    """Lock a temporary folder until the descriptor is closed or the process ends.

    None if another process holds the lock, or the file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def remove_abandoned(folder: Path, name: str = "") -> None:
    """Delete temporary folders in a folder, for a target or all, whose process was killed."""
    pattern = f".{glob.escape(name[:100]) or '*'}{_TEMPORARY}????????"
    for path in folder.glob(pattern):
        try:
            lock = _lock(path)
        except OSError:  # removed in the meantime, or not ours
            continue
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _replace(temporary: Path, target: Path) -> None:
    try:
        temporary.replace(target)
    except OSError as error:
        raise InputError(
            f"cannot put the result at {target}: {error.strerror or error}; remove what is there "
            "or choose another path"
        ) from error
