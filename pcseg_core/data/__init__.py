# SPDX-License-Identifier: Apache-2.0
"""Readers: one class per kind of recording, all with the same `Sample`."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import stat
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl

import numpy as np

from pcseg_core.body import read_body
from pcseg_core.data.account import UNREADABLE, Account, account
from pcseg_core.data.sample import Box, CameraFrame, Sample
from pcseg_core.errors import InputError
from pcseg_core.fetched import FetchedFolder
from pcseg_core.files import exists
from pcseg_core.intensity import IntensityScale
from pcseg_core.storage import is_url, listing

if TYPE_CHECKING:
    from pcseg_core.input_check import InputStatistics
    from pcseg_core.labels import LabelSpace

__all__ = [
    "READERS",
    "Account",
    "Box",
    "CameraFrame",
    "Recording",
    "Sample",
    "account",
    "detect",
    "evenly_spaced",
    "find_source",
    "fingerprint",
    "open_recording",
    "readable",
    "split_query",
]


class Recording(Protocol):
    """A recording, or a set of them, as a sequence of samples.

    Attributes:
        name: short name for reports.
        label_space: classes of the labels of its samples; None without labels.
        pose_source: "oxts", "tf", "odometry", "kiss-icp", "file", "exact" or "none".
        scenes: scene of each sample, without loading it; scenes are not interleaved.
        skipped: number of skipped items by reason; see `account` for all items.
    """

    name: str
    label_space: LabelSpace | None
    pose_source: str
    scenes: Sequence[str]
    skipped: Counter[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


# Reader name -> "module:class". Modules are imported on use: only bags need `rosbags`, only
# simulated drives need the simulation.
READERS: dict[str, str] = {
    "bag": "pcseg_core.data.bag:BagRecording",
    "kitti-raw": "pcseg_core.data.kitti:KittiRawRecording",
    "kitti-object": "pcseg_core.data.kitti:KittiObjectRecording",
    "semantic-kitti": "pcseg_core.data.semantic_kitti:SemanticKittiRecording",
    "nuscenes": "pcseg_core.data.nuscenes:NuScenesRecording",
    "simulated": "pcseg_core.simulation.recording:open_simulated",
}


_CALIBRATION = "calibration="


def open_recording(
    source: str | Path, *, trained: InputStatistics | None = None, **options: Any
) -> Recording:
    """Open "reader:path" with a reader of `READERS`, or a path whose kind is detected.

    Options of the reader are given as keywords or as a query in the source, for example
    "bag:drive?cloud_topic=/points&poses=kiss-icp". "simulated:" takes options instead of a path:
    "simulated:seed=3,sweeps=20". Every reader takes `calibration`: a file whose extrinsics and
    time offsets replace those of the recording, as in "kitti-raw:drive?calibration=rig.yaml". All
    but "simulated:" take `body`: a box around the robot in the LiDAR frame, whose returns are left
    out, as in "drive?body=-1,-0.5,-0.4,0.5,0.5,0.2"; see `pcseg_core.body`. A path may be an fsspec
    URL, such as s3://bucket/drive: see `fetched`.

    Args:
        source: the recording.
        trained: input of the network that labels the recording. A bag is read with the intensity
            scale and the times of the training, unless others are given.
        options: of the reader.

    Raises:
        InputError: no such reader, path or option, an unknown kind of recording, or unreadable
            content.
    """
    reader, place = find_source(source)
    if reader == "simulated":
        items = place.split(",")
        drive = ",".join(item for item in items if not item.startswith(_CALIBRATION))
        rigs = [item.removeprefix(_CALIBRATION) for item in items if item.startswith(_CALIBRATION)]
        file = options.pop("calibration", rigs[-1] if rigs else None)
        return _recalibrated(_reader(reader)(drive, **options), file)
    path, query = split_query(place)
    if is_url(path):
        return _open_fetched(reader, path, query, trained, options)
    chosen = {**dict(parse_qsl(query)), **options}
    if reader == "bag" and trained is not None:
        given = float(chosen.get("intensity_scale") or 0)
        chosen["intensity_scale"] = IntensityScale(given, trained.intensity_scale)
        times = {k: str(chosen[k]) for k in ("time_field", "stamp_reference") if k in chosen}
        chosen |= trained.time_options(**times)
    opener = _reader(reader)
    bag = reader == "bag"  # has its own
    file = None if bag else chosen.pop("calibration", None)
    body = () if bag else read_body(chosen.pop("body", ()))
    recording = _recalibrated(opener(path, **_checked(opener, chosen, str(source))), file)
    return _without_body(recording, body)


def _open_fetched(
    reader: str, url: str, query: str, trained: InputStatistics | None, options: dict[str, Any]
) -> Recording:
    """A recording on object storage. Its local files stay as long as it is in use."""
    entry = FetchedFolder().fetch(url)
    try:
        source = f"{reader}:{entry.path}{'?' if query else ''}{query}"
        recording = open_recording(source, trained=trained, **options)
    except BaseException:
        entry.close()
        raise
    weakref.finalize(recording, entry.close)
    return recording


def _without_body(recording: Recording, body: Sequence[float]) -> Recording:
    """The recording without the returns in a box, if there is one."""
    if not body:
        return recording
    from pcseg_core.data.changed import WithoutBody

    return WithoutBody(recording, body)


def _recalibrated(recording: Recording, file: str | Path | None) -> Recording:
    """The recording with the calibration of a file, if one is given."""
    if file is None:
        return recording
    from pcseg_core.data.calibration import load_calibration
    from pcseg_core.data.changed import Recalibrated

    return Recalibrated(recording, load_calibration(file))


def find_source(source: str | Path) -> tuple[str, str]:
    """Reader of a source, and its path with the query; nothing is opened.

    Raises:
        InputError: no such reader or path, or an unknown kind of recording.
    """
    reader, colon, place = str(source).partition(":")
    if not colon or reader not in READERS:
        reader, place = "", str(source)
    if is_url(split_query(place)[0]):
        found = listing(split_query(place)[0])
        return reader or _named(_kind_of_names(found.names), found.url), place
    path = Path(split_query(place)[0])
    if reader != "simulated" and not exists(path):
        what = "bag" if reader == "bag" else "recording"
        raise InputError(
            f"{path}: no such {what}: no such file or folder (readers, for reader:path: "
            f"{', '.join(READERS)})"
        )
    return reader or detect(path), place


def split_query(place: str) -> tuple[str, str]:
    """Path and query of a place; a "?" in the name of an existing path starts no query."""
    if exists(place) or "?" not in place:
        return place, ""
    path, _, query = place.rpartition("?")
    return path, query


def detect(path: Path) -> str:
    """Name of the reader for a path, by its content.

    Raises:
        InputError: an unknown kind of recording.
    """
    return _named(_kind(path), path)


def _named(kind: str | None, path: str | Path) -> str:
    """The kind of a recording at a path, or an error if it is not known."""
    if kind is None:
        raise InputError(
            f"{path}: cannot tell what kind of recording this is; name a reader, as in "
            f"'kitti-raw:{path}' (readers: {', '.join(READERS)})"
        )
    return kind


def _kind(path: Path) -> str | None:
    """Name of the reader for a path; None for an unknown kind of recording."""
    if path.suffix in (".mcap", ".db3", ".bag") or (path / "metadata.yaml").is_file():
        return "bag"
    if (
        (path / "sample.json").is_file()
        or any(path.glob("v1.0-*"))
        or (path.name.startswith("v1.0-") and (path / "sample_data.json").is_file())
    ):
        return "nuscenes"
    if (path / "velodyne_points").is_dir():
        return "kitti-raw"
    if (path / "velodyne").is_dir():
        return "kitti-object" if (path / "calib").is_dir() else "semantic-kitti"
    if path.is_dir() and next(path.glob("**/velodyne"), None) is not None:
        return "semantic-kitti"
    if path.is_dir() and (any(path.glob("*.mcap")) or any(path.glob("*.db3*"))):
        return "bag"
    return None


def _kind_of_names(names: Iterable[str]) -> str | None:
    """As `_kind`, by the paths of the files."""
    paths = [Path("/", name) for name in names]
    folders = {part for path in paths for part in path.parts[:-1]}
    if any(p.suffix in (".mcap", ".db3", ".bag") or str(p) == "/metadata.yaml" for p in paths):
        return "bag"
    if any(p.name in ("sample.json", "sample_data.json") for p in paths):
        return "nuscenes"
    if "velodyne_points" in folders:
        return "kitti-raw"
    if "velodyne" in folders:
        return "kitti-object" if "calib" in folders else "semantic-kitti"
    return None


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices, evenly spaced over 0..count-1."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, wanted)).round()})


def readable(
    recording: Recording, indices: Iterable[int] | None = None
) -> Iterator[tuple[int, Sample]]:
    """Yield (index, sample) of all or some samples; unreadable ones are counted in `skipped`."""
    for index in range(len(recording)) if indices is None else indices:
        try:
            sample = recording[index]
        except InputError as error:
            recording.skipped[f"{UNREADABLE}{error}"] += 1
            continue
        yield index, sample


def fingerprint(path: str | Path, exclude: Collection[Path] = ()) -> str:
    """A text that changes with the files of a recording: their names, sizes and times.

    Caches put it into their keys, so that another recording at the same path is not taken for the
    earlier one. Of a bag only the files that the reader uses count.

    Args:
        path: file, folder or URL.
        exclude: files and folders inside of it that do not count, such as results.
    """
    if is_url(path):
        return listing(str(path)).fingerprint
    root = Path(path)
    seen = {root.resolve(), *(place.resolve() for place in exclude)}
    bag = _kind(root) == "bag"
    rows = [_stat_row(root)]
    for folder, folders, names in os.walk(root, followlinks=True):
        real = {name: Path(folder, name).resolve() for name in sorted(folders)}
        folders[:] = [] if bag else [name for name, place in real.items() if place not in seen]
        seen.update(real.values())  # links may lead back
        here = Path(folder).resolve()
        kept = [name for name in sorted(names) if not bag or name.endswith(_BAG_FILES)]
        rows += [_stat_row(Path(folder, name)) for name in kept if here / name not in seen]
    return hashlib.sha256("\n".join(rows).encode(errors="surrogateescape")).hexdigest()[:24]


_BAG_FILES = (".mcap", ".db3", ".zstd", ".yaml")


def _stat_row(path: Path) -> str:
    try:
        about = path.stat()
    except OSError:
        return f"{path.name} -"
    if stat.S_ISDIR(about.st_mode):
        return f"{path.name} 0 0"
    return f"{path.name} {about.st_size} {about.st_mtime_ns}"


def _reader(name: str) -> Callable[..., Recording]:
    module, _, attribute = READERS[name].partition(":")
    opener: Callable[..., Recording] = getattr(importlib.import_module(module), attribute)
    return opener


def _checked(
    opener: Callable[..., Recording], options: Mapping[str, Any], source: str
) -> Mapping[str, Any]:
    """The options, after a check against the parameters of the reader."""
    known = list(inspect.signature(opener).parameters)[1:]
    for name in options:
        if name not in known:
            raise InputError(
                f"{source}: no option '{name}' here; options: {', '.join(known) or 'none'}"
            )
    return options
