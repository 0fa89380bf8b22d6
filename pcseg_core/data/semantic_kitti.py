# SPDX-License-Identifier: Apache-2.0
"""Reader of SemanticKITTI: labeled sweeps, one folder per sequence.

Behley et al., "SemanticKITTI: A Dataset for Semantic Scene Understanding of LiDAR Sequences",
ICCV 2019. Reads any folder in this layout; calibration, poses, stamps and images are optional.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pcseg_core.data import kitti_files as files
from pcseg_core.data.account import Account, grouped
from pcseg_core.data.images import read_image
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory, invert
from pcseg_core.labels import MOVING, STATIC, UNKNOWN, LabelSpace

Float64 = npt.NDArray[np.float64]
NOMINAL_PERIOD_S = 0.1  # of the scanner, for sequences without times.txt
MAX_RAW_ID = 0xFFFF


class SemanticKittiRecording:
    """One sequence, a folder of sequences, or any folder with velodyne/ below it."""

    def __init__(self, path: str | Path, lidar_only: bool = False) -> None:
        """Index the sequences at `path`; sweeps and labels are read on access.

        Args:
            path: a sequence, or a folder with sequences up to four levels below.
            lidar_only: ignore images, and calibration and poses that cannot be read.

        Raises:
            InputError: no velodyne/*.bin in or below `path`, or unreadable calibration or poses.
        """
        self.path = Path(path)
        self.name = f"semantic-kitti-{self.path.name}"
        self.label_space: LabelSpace | None = LabelSpace.load("semantic_kitti")
        self.skipped: Counter[str] = Counter()
        self._ids = raw_id_table(self.label_space)
        folders = _sequence_folders(self.path)
        names = [folder.name for folder in folders]
        self.sequences = [
            _SequenceFolder(folder, lidar_only, self._sequence_name(folder, names))
            for folder in folders
        ]
        self._index = [
            (sequence, frame)
            for sequence in self.sequences
            for frame in sequence.frames(self.skipped)
        ]
        if not self._index:
            shown = [f"{count} x {reason}" for reason, count in grouped(self.skipped)[:3]]
            reasons = "; ".join(shown) or "velodyne holds no .bin file"
            raise InputError(f"{self.path}: no usable sweep: {reasons}")
        self.scenes: Sequence[str] = [sequence.name for sequence, _ in self._index]
        held = {"sweeps": sum(len(sequence.sweeps) for sequence in self.sequences)}
        self.account = Account.of(held, {"sweeps": len(self._index)}, self.skipped)
        posed = any(sequence.trajectory is not None for sequence in self.sequences)
        self.pose_source = "file" if posed else "none"

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Sample:
        sequence, frame = self._index[index]
        sweep = sequence.folder / "velodyne" / f"{frame}.bin"
        cloud = files.read_sweep(sweep, sequence.stamp_ns(frame))
        path = sequence.folder / "labels" / f"{frame}.label"
        raw, instances = read_labels(path, len(cloud)) if path.is_file() else (None, None)
        return Sample(
            cloud=cloud,
            cameras=sequence.cameras(frame),
            trajectory=sequence.trajectory_at(frame),
            labels=None if raw is None else self._ids[raw],
            label_space=self.label_space,
            instances=instances,
            moving=None if raw is None else _moving(raw),
            name=f"{sequence.name}/{frame}",
            scene=sequence.name,
        )

    def _sequence_name(self, folder: Path, names: list[str]) -> str:
        """Name of the folder; with the folders above it where several have the same name."""
        if names.count(folder.name) == 1:
            return folder.name
        return folder.relative_to(self.path).as_posix()


class _SequenceFolder:
    """One sequence folder: its calibration, trajectory and stamps."""

    def __init__(self, folder: Path, lidar_only: bool, name: str) -> None:
        self.folder = folder
        self.name = name
        self.sweeps = sorted((folder / "velodyne").glob("*.bin"), key=_by_number)
        self.order = {path.stem: position for position, path in enumerate(self.sweeps)}
        self.images = not lidar_only
        self.times = _times(folder / "times.txt")
        self.calibration, self.trajectory = None, None
        with suppress(InputError) if lidar_only else nullcontext():
            self.calibration = self._read_calibration()
            self.trajectory = self._trajectory()

    def _read_calibration(self) -> dict[str, Float64] | None:
        path = self.folder / "calib.txt"
        return files.read_calibration(path) if path.is_file() else None

    def frames(self, skipped: Counter[str]) -> list[str]:
        """Names of the usable sweeps; the others are counted."""
        usable = []
        for path in self.sweeps:
            fault = files.file_fault(path, 4)
            if fault:
                skipped[f"{self.name}/{path.name}: {fault}"] += 1
            else:
                usable.append(path.stem)
        return usable

    def trajectory_at(self, frame: str) -> Trajectory | None:
        """The trajectory of the sequence, or None for a frame without a pose in poses.txt.

        Such a frame is still usable: its images have the stamp of the sweep.
        """
        if self.trajectory is None or not self.trajectory.covers(self.stamp_ns(frame)):
            return None
        return self.trajectory

    def stamp_ns(self, frame: str) -> int:
        """Nanoseconds since the start of the sequence; by order for sweeps without a number."""
        if not frame.isdecimal():
            return round(self.order[frame] * NOMINAL_PERIOD_S * 1e9)
        number = int(frame)
        if self.times is not None and number < len(self.times):
            return int(self.times[number])
        return round(number * NOMINAL_PERIOD_S * 1e9)

    def cameras(self, frame: str) -> list[CameraFrame]:
        """Color images of the frame, or gray ones; empty without a calibration."""
        if self.calibration is None or not self.images:
            return []
        color = [self._camera(number, frame) for number in (2, 3)]
        found = [camera for camera in color if camera is not None]
        if found:
            return found
        gray = [self._camera(number, frame) for number in (0, 1)]
        return [camera for camera in gray if camera is not None]

    def _camera(self, number: int, frame: str) -> CameraFrame | None:
        image = self.folder / f"image_{number}" / f"{frame}.png"
        if self.calibration is None or not image.is_file():
            return None
        path = self.folder / "calib.txt"
        P = files.entry(self.calibration, f"P{number}", 12, path).reshape(3, 4)
        try:
            model, T_cam_cam0 = files.camera_of_image(P, image)
        except InputError as error:
            raise InputError(f"{path}, P{number}: {error}") from error
        T_cam_lidar = T_cam_cam0 @ self._T_cam0_lidar()
        loader = partial(read_image, image)
        return CameraFrame(f"image_{number}", self.stamp_ns(frame), model, T_cam_lidar, loader)

    def _T_cam0_lidar(self) -> Float64:
        assert self.calibration is not None
        path = self.folder / "calib.txt"
        return files.pose_entry(self.calibration, "Tr", path)

    def _trajectory(self) -> Trajectory | None:
        """T_world_lidar from the poses of camera 0 (whose first frame is the world) and Tr."""
        path = self.folder / "poses.txt"
        numbered = all(sweep.stem.isdecimal() for sweep in self.sweeps)
        if not path.is_file() or self.calibration is None or not numbered:
            return None
        poses = files.read_poses(path)
        T_cam0_lidar = self._T_cam0_lidar()
        stamps = np.array([self.stamp_ns(str(number)) for number in range(len(poses))])
        return files.trajectory(stamps, invert(T_cam0_lidar) @ poses @ T_cam0_lidar, path)


def read_labels(path: Path, count: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int32]]:
    """Read a .label file of uint32: class in the lower 16 bits, instance in the upper 16.

    Args:
        path: the file.
        count: number of points of its sweep.

    Returns:
        Raw class ids (N,) uint16 and instance ids (N,) int32, -1 without an instance.

    Raises:
        InputError: unreadable, or not exactly `count` labels.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the labels: {error.strerror or error}") from error
    if len(data) != 4 * count:
        raise InputError(
            f"{path}: {len(data) / 4:g} labels for a sweep of {count} points; expected one uint32 "
            "label for each point, so the two files do not belong together or one is truncated"
        )
    packed = np.frombuffer(data, dtype="<u4")
    instances = (packed >> 16).astype(np.int32)
    instances[instances == 0] = -1
    return (packed & 0xFFFF).astype(np.uint16), instances


def _moving(raw: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """(N,) whether points move, by their raw ids (N,): 252 to 259 move, 0 and 1 are no class."""
    found = np.where(raw > 1, STATIC, UNKNOWN)
    return np.where((raw >= 252) & (raw <= 259), MOVING, found).astype(np.uint8)


def raw_id_table(space: LabelSpace) -> npt.NDArray[np.int16]:
    """(65536,) int16: class id of each raw id of a data set, -1 for ignored ids."""
    table = np.full(MAX_RAW_ID + 1, -1, dtype=np.int16)
    for raw, class_id in space.raw_to_id.items():
        table[raw] = class_id
    return table


def _sequence_folders(path: Path) -> list[Path]:
    folders = [path] if (path / "velodyne").is_dir() else []
    for depth in range(1, 5):  # "**" would not follow links to folders
        folders = folders or sorted(found.parent for found in path.glob("*/" * depth + "velodyne"))
    if not folders:
        raise InputError(
            f"{path}: no velodyne folder in it or below; give a sequence, as sequences/00, a "
            "folder of sequences, or any folder with velodyne/*.bin and labels/*.label"
        )
    return folders


def _by_number(path: Path) -> tuple[float, str]:
    """Sort key: numbers first, in their order, then names."""
    return (int(path.stem) if path.stem.isdecimal() else float("inf")), path.stem


def _times(path: Path) -> npt.NDArray[np.int64] | None:
    """Stamps of a times.txt (one number of seconds per line); None without the file."""
    if not path.is_file():
        return None
    try:
        seconds = np.array(path.read_text(encoding="utf-8").split(), dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{path}: not one number of seconds a line ({error})") from error
    return np.rint(seconds * 1e9).astype(np.int64)
