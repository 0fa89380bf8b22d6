# SPDX-License-Identifier: Apache-2.0
"""The files of a rosbag2: which they are, and one interface to their messages.

Topics and messages come from the files alone. `metadata.yaml` gives their names and order, the
compression, and numbers to compare with.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

from pcseg_core.config import read_yaml
from pcseg_core.errors import InputError
from pcseg_core.files import is_file

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_BYTES = 1 << 30  # of a message, a chunk or an index
_BLOCK = 1 << 20


class Channel(NamedTuple):
    """A topic in one file, as the file describes it; `held` is its number of messages there."""

    topic: str
    serialization: str
    msgtype: str
    language: str
    definition: str
    digest: str
    qos: str
    held: int


class Storage(Protocol):
    """One file of a bag; `ending` tells how a file ends that was not closed."""

    channels: dict[int, Channel]
    damaged: dict[int, Counter[int]]
    ending: str

    def messages(
        self, ids: Collection[int], start_ns: int | None, stop_ns: int | None
    ) -> Iterator[tuple[int, int, bytes]]:
        """Yield (channel id, recording time, message), ordered by time."""

    def close(self) -> None:
        """Close the file."""


@dataclass
class BagFiles:
    """The opened files of a bag.

    Attributes:
        storages: in the order of recording.
        claimed: messages by topic that metadata.yaml names.
        digests: type hash by topic that metadata.yaml names; mcap files have none.
        packed: messages are compressed one by one.
    """

    storages: list[Storage] = field(default_factory=list)
    claimed: Counter[str] = field(default_factory=Counter)
    digests: dict[str, str] = field(default_factory=dict)
    packed: bool = False
    _stack: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """Close the files and delete what was unpacked."""
        self._stack.close()


def open_files(path: Path) -> BagFiles:
    """Open the files of a bag folder, or a bare .mcap or .db3 file.

    Raises:
        InputError: no bag, a missing file, or a damaged one.
    """
    files = BagFiles()
    try:
        if path.is_dir() and (path / "metadata.yaml").is_file():
            _open_described(path, files)
        else:
            for file in _bare_files(path):
                _open_one(files, file)
    except BaseException:
        files.close()
        raise
    return files


def unzstd(data: bytes, limit: int = MAX_BYTES, cut: bool = False) -> bytes:
    """Decompress zstd data of at most `limit` bytes; with `cut` data that may end early.

    Raises:
        ValueError: the data is damaged or larger.
    """
    unpacker = zstd.ZstdDecompressor()
    try:
        content: bytes = unpacker.decompress(data, max_length=limit)
    except zstd.ZstdError as error:
        raise ValueError(f"zstd data is damaged: {error}") from error
    if (
        not cut
        and not unpacker.eof
        and (len(content) < limit or unpacker.decompress(b"", max_length=1))
    ):
        raise ValueError(f"zstd data is cut off or unpacks to more than {limit} bytes")
    return content


def not_a_bag(path: Path, reason: str) -> InputError:
    """The error of a file that cannot be read."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return InputError(f"{path}: this is a Git LFS pointer, not the bag; run: git lfs pull")
    if b"#ROSBAG V" in start:
        return InputError(
            f"{path}: this is a ROS 1 bag; convert it: rosbags-convert --src X.bag --dst X"
        )
    return InputError(
        f"{path}: the bag cannot be read ({reason}); it is truncated or corrupt. 'mcap recover' "
        "(mcap) or 'ros2 bag reindex' can often save a recording that was cut off"
    )


def _open_described(folder: Path, files: BagFiles) -> None:
    """Open the files that metadata.yaml names."""
    about = _metadata(folder / "metadata.yaml")
    mode, kind = (
        str(about.get(k) or "").lower() for k in ("compression_mode", "compression_format")
    )
    compressed = mode not in ("", "none")
    if compressed and kind != "zstd":
        raise InputError(
            f"{folder}: the bag is compressed with '{kind}'; expected zstd. Convert it with "
            "'ros2 bag convert'"
        )
    files.packed = compressed and mode == "message"
    _read_claims(about, files)
    listed = [Path(str(name)).name for name in about["relative_file_paths"]]
    names = list(dict.fromkeys(listed))  # a file that is named twice is one file
    missing = [name for name in names if not is_file(folder / name)]
    if missing:
        raise InputError(
            f"{folder}: metadata.yaml names {len(names)} files and {', '.join(missing[:3])} "
            f"{'is' if len(missing) == 1 else 'are'} missing; copy all files of the bag, or run "
            f"'ros2 bag reindex {folder}'"
        )
    for name in names:
        place = folder / name
        if compressed and mode == "file":
            place = _unpacked_file(files, place)
        _open_one(files, place, str(about.get("storage_identifier")))


def _metadata(path: Path) -> dict[str, Any]:
    try:
        about = read_yaml(path).get("rosbag2_bagfile_information")
    except InputError as error:
        raise InputError(
            f"{path.parent}: the bag cannot be read: {error}; run: ros2 bag reindex {path.parent}"
        ) from error
    names = about.get("relative_file_paths") if isinstance(about, dict) else None
    if not isinstance(about, dict) or not isinstance(names, list) or not names:
        raise InputError(
            f"{path.parent}: the bag cannot be read: its metadata.yaml does not name its files; "
            f"run: ros2 bag reindex {path.parent}"
        )
    return about


def _read_claims(about: dict[str, Any], files: BagFiles) -> None:
    """Numbers and type hashes by topic; entries that are not as in rosbag2 are left out."""
    rows = about.get("topics_with_message_count")
    for row in rows if isinstance(rows, list) else []:
        topic = row.get("topic_metadata") if isinstance(row, dict) else None
        number = row.get("message_count") if isinstance(row, dict) else None
        if isinstance(topic, dict) and isinstance(number, int):
            name = str(topic.get("name"))
            files.claimed[name] += number
            files.digests[name] = str(topic.get("type_description_hash") or "")


def _unpacked_file(files: BagFiles, path: Path) -> Path:
    """A decompressed copy of a file, deleted when the bag is closed."""
    folder = files._stack.enter_context(TemporaryDirectory(prefix="pcseg-bag-"))
    copy = Path(folder) / (path.stem if path.suffix == ".zstd" else path.name)
    try:
        with zstd.open(path, "rb") as source, copy.open("wb") as target:
            while block := source.read(_BLOCK):
                target.write(block)
    except (zstd.ZstdError, EOFError) as error:
        raise not_a_bag(path, str(error)) from error
    return copy


def _open_one(files: BagFiles, path: Path, identifier: str = "") -> None:
    from pcseg_core.data.mcap_file import McapFile
    from pcseg_core.data.sqlite_file import SqliteFile

    kinds: dict[str, type[McapFile] | type[SqliteFile]] = {
        ".mcap": McapFile,
        ".db3": SqliteFile,
        "mcap": McapFile,
        "sqlite3": SqliteFile,
    }
    kind = kinds.get(path.suffix) or kinds.get(identifier)
    if kind is None:
        raise InputError(
            f"{path}: storage '{identifier or path.suffix}' is not known; expected mcap or sqlite3"
        )
    try:
        storage = kind(path)
    except OSError as error:
        raise InputError(f"{path}: the bag cannot be read: {error.strerror or error}") from error
    files._stack.callback(storage.close)
    files.storages.append(storage)


def _bare_files(path: Path) -> list[Path]:
    """The bare file, or the files of one bag in a folder without metadata.

    A recorder that is killed leaves NAME_0, NAME_1 and so on, and writes no metadata.yaml.
    """
    if not path.exists():
        raise InputError(f"{path}: no such bag")
    if path.is_file():
        if path.suffix in (".mcap", ".db3"):
            return [path]
        hint = "; convert it: rosbags-convert --src X.bag --dst X" if path.suffix == ".bag" else ""
        raise InputError(f"{path}: not a rosbag2 file (.mcap or .db3){hint}")
    found = [*path.glob("*.mcap"), *path.glob("*.db3")]
    parts = {file: re.fullmatch(r"(.+)_(\d+)\.(mcap|db3)", file.name) for file in found}
    numbered = {file: int(match[2]) for file, match in parts.items() if match}
    names = {(match[1], match[3]) for match in parts.values() if match}
    if len(found) == 1:
        return found
    if not found:
        raise InputError(f"{path}: no bag: no metadata.yaml, .mcap or .db3 file in it")
    if len(names) == 1 and sorted(numbered.values()) == list(range(len(found))):
        return sorted(found, key=lambda file: numbered[file])
    raise InputError(
        f"{path}: no metadata.yaml and {len(found)} bag files in it; rebuild it with "
        f"'ros2 bag reindex {path}', or give one .mcap or .db3 file"
    )
