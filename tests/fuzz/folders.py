# SPDX-License-Identifier: Apache-2.0
"""Recordings that are folders, one file of which is damaged.

A case is the name of the file, a newline, and its content. Samples that do not depend on the file
stay the same.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from pcseg_core.data import open_recording
from pcseg_core.geometry import invert

from .harness import Target
from .mutations import altered, mutated
from .valid import check_recording

sys.path.append(str(Path(__file__).parents[1] / "core" / "data"))
import recordings


@dataclass(frozen=True)
class Layout:
    """A kind of folder.

    Attributes:
        reader: name of the reader.
        make: writes a small recording into a folder and returns its path.
        own: pattern of the files that belong to one frame, with its number as the first group.
        frame: pattern of the number of the frame in the name of a sample.
    """

    reader: str
    make: Callable[[Path], Path]
    own: str
    frame: str


@dataclass
class _Template:
    """The intact files of a layout, by name, and the digests of its samples."""

    root: str
    files: dict[str, bytes]
    samples: dict[str, str]


@functools.cache
def template(layout: Layout) -> _Template:
    """The intact recording."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = layout.make(folder)
        found = check_recording(open_recording(f"{layout.reader}:{path}"))
        files = {
            p.relative_to(folder).as_posix(): p.read_bytes()
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        }
        return _Template(path.relative_to(folder).as_posix(), files, found)


@st.composite
def damaged(draw: st.DrawFn, layout: Layout) -> bytes:
    """One file of the recording with other content."""
    files = template(layout).files
    name = draw(st.sampled_from(sorted(files)))
    content = files[name]
    if name.endswith(".json") and draw(st.integers(0, 30)) == 0:
        content = draw(st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b"[1e999]", b""]))
    elif name.endswith(".json"):
        changed = draw(altered([json.loads(content)]))
        content = json.dumps(changed).encode("utf-8", "surrogatepass")
        if draw(st.integers(0, 4)) == 0:
            content = draw(mutated([content]))
    elif name.endswith(".txt"):
        content = draw(st.one_of(mutated([content]), texts(content)))
    else:
        content = draw(mutated([content, *_numbers(name, content)]))
    return name.encode() + b"\n" + content


@st.composite
def texts(draw: st.DrawFn, content: bytes) -> bytes:
    """A text with some words replaced, lines repeated or removed."""
    lines = content.decode().split("\n")
    words = ["nan", "inf", "-1", "0", "1e400", "1e30", "x", "", "9" * 400, "é", "0.5 0.5", "\t"]
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["word", "word", "word", "repeat", "remove"]))
        if kind == "word":
            parts = lines[place].split(" ")
            parts[draw(st.integers(0, len(parts) - 1))] = draw(st.sampled_from(words))
            lines[place] = " ".join(parts)
        elif kind == "repeat":
            lines.insert(place, lines[place])
        elif len(lines) > 1:
            del lines[place]
    return "\n".join(lines).encode()


def _numbers(name: str, content: bytes) -> list[bytes]:
    """Sweeps with numbers that are not finite, not near, or all the same."""
    if not name.endswith(".bin") or "lidarseg" in name:
        return []
    cells = np.frombuffer(content, np.float32)
    special = [np.full_like(cells, value) for value in (np.nan, 0.0, 1e38, np.inf)]
    some = cells.copy()
    some[::7] = np.nan
    return [values.tobytes() for values in (*special, some)]


def check_folder(layout: Layout) -> Callable[[bytes, Path], None]:
    """The check of a layout: samples of other frames are the same as before."""

    def check(case: bytes, folder: Path) -> None:
        intact = template(layout)
        root = folder / layout.reader
        if not root.is_dir():
            write_files(root, intact.files)
        name, _, content = case.partition(b"\n")
        path = root / name.decode()
        path.write_bytes(content)
        try:
            found = check_recording(open_recording(f"{layout.reader}:{root / intact.root}"))
            _check_others(layout, name.decode(), found)
        finally:
            path.write_bytes(intact.files[name.decode()])

    return check


def write_files(root: Path, files: Mapping[str, bytes]) -> None:
    """Write files by name."""
    shutil.rmtree(root, ignore_errors=True)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def _check_others(layout: Layout, name: str, found: dict[str, str]) -> None:
    match = re.search(layout.own, name)
    if match is None:
        return
    for sample, value in template(layout).samples.items():
        frame = re.search(layout.frame, sample)
        if frame is None or int(frame[1]) != int(match[1]):
            assert found.get(sample) == value, f"{name} changes sample {sample}"


def _single_frame(folder: Path) -> Path:
    """A nuScenes key frame described by one sample.json."""
    T_cam_lidar = recordings.T_CAM_LIDAR
    camera = {
        "timestamp": 1532402927.02,
        "file": "front.png",
        "cam2ego": invert(T_cam_lidar).tolist(),
        "lidar2cam": T_cam_lidar.tolist(),
        "cam2img": recordings.CAMERA.K.tolist(),
    }
    content = {
        "timestamp": 1532402927.0,
        "ego2global": np.eye(4).tolist(),
        "lidar": {"file": "lidar.bin", "lidar2ego": np.eye(4).tolist()},
        "cameras": {"CAM_FRONT": camera},
        "categories": {"0": "car"},
        "boxes": [{"box": [10.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.5], "label": 0}],
    }
    cells = np.zeros((100, 5), np.float32)
    cells[:, :4] = recordings.points(100)
    recordings.put(folder / "frame" / "sample.json", json.dumps(content))
    recordings.put(folder / "frame" / "lidar.bin", cells.tobytes())
    recordings.put(folder / "frame" / "front.png", recordings.png(recordings.picture()))
    return folder / "frame"


def _layouts() -> dict[str, Layout]:
    return {
        "kitti-raw": Layout(
            "kitti-raw", recordings.kitti_raw, r"(?:velodyne_points|image_02)/data/(\d+)", r"(\d+)$"
        ),
        "kitti-object": Layout("kitti-object", recordings.kitti_object, r"/(\d{6})\.", r"(\d+)$"),
        "semantic-kitti": Layout(
            "semantic-kitti", recordings.semantic_kitti, r"/(\d{6})\.", r"/(\d+)$"
        ),
        "nuscenes-frame": Layout("nuscenes", _single_frame, r"^$", r"^$"),
        "nuscenes": Layout(
            "nuscenes", recordings.nuscenes, r"(?:lidar|cam|lidarseg)/(\d)\.", r"k(\d)$"
        ),
    }


def _target(name: str, layout: Layout) -> Target:
    strategy = functools.partial(damaged, layout)
    return Target(name, strategy, check_folder(layout), (f"/{layout.reader}",), 60)


TARGETS: tuple[Any, ...] = tuple(_target(name, layout) for name, layout in _layouts().items())
