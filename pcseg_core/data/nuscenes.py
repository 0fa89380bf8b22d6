# SPDX-License-Identifier: Apache-2.0
"""Reader of nuScenes: tables (v1.0-*), or one key frame in a `sample.json`.

Caesar et al., "nuScenes: A multimodal dataset for autonomous driving", CVPR 2020. Intensity, 0 to
255 in the files, is scaled to 0..1. Sweeps are not deskewed and have no per-point times; stamps are
those of the files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import PointCloud
from pcseg_core.data.account import Account, grouped
from pcseg_core.data.images import image_size, read_image
from pcseg_core.data.kitti_files import file_fault, read_floats
from pcseg_core.data.nuscenes_tables import LIDAR, WRONG_ENTRIES, KeyFrame, key_frames, table_folder
from pcseg_core.data.sample import Box, CameraFrame, Sample
from pcseg_core.data.semantic_kitti import raw_id_table
from pcseg_core.errors import InputError
from pcseg_core.files import is_file
from pcseg_core.geometry import Trajectory, compose, invert, is_rigid
from pcseg_core.labels import LabelSpace

LIDAR_COLUMNS = 5  # x, y, z, intensity (0..255), ring


class NuScenesRecording:
    """Key frames of nuScenes, scene after scene."""

    pose_source = "file"

    def __init__(self, path: str | Path, scenes: str | Path | None = None) -> None:
        """Index the key frames at `path`.

        Args:
            path: folder of the data set (with v1.0-* in it), a v1.0-* folder, or a folder with
                `sample.json`.
            scenes: text file with the names of the scenes to read, one per line; default all.

        Raises:
            InputError: none of these, an incomplete table, an unknown scene, or no usable sweep.
        """
        self.path = Path(path)
        self.name = f"nuscenes-{self.path.name}"
        self.skipped: Counter[str] = Counter()
        described = self._describe()
        if scenes is not None:
            described = _of_scenes(described, Path(scenes))
        self.frames = [frame for frame in described if self._usable(frame)]
        if not self.frames:
            shown = [f"{count} x {reason}" for reason, count in grouped(self.skipped)[:3]]
            reasons = "; ".join(shown) or "its tables list no key frame"
            raise InputError(f"{self.path}: no usable sweep; {reasons}")
        labeled = any(frame.labels is not None for frame in self.frames)
        self.label_space = LabelSpace.load("nuscenes16") if labeled else None
        self.scenes: Sequence[str] = [frame.scene for frame in self.frames]
        self.account = self._account(described)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        try:
            return self._sample(self.frames[index])
        except InputError:
            raise
        except WRONG_ENTRIES as error:
            raise _misused(f"{self.path}, {self.frames[index].name}: it", error) from error

    def _sample(self, frame: KeyFrame) -> Sample:
        cloud = read_nuscenes_sweep(frame.lidar, frame.stamp_ns)
        return Sample(
            cloud=cloud,
            cameras=[_camera_frame(*camera) for camera in frame.cameras],
            trajectory=frame.trajectory,
            labels=self._labels(frame.labels, len(cloud)),
            label_space=self.label_space,
            boxes=None if frame.boxes is None else frame.boxes(),
            name=frame.name,
            scene=frame.scene,
        )

    def _account(self, described: list[KeyFrame]) -> Account:
        """Account of the key frames, and of their images."""
        absent = Counter({r: n for r, n in self.skipped.items() if r.startswith("image ")})
        sweeps = Counter(self.skipped) - absent
        not_described = sum(n for reason, n in sweeps.items() if reason.startswith("key frame "))
        held = {"sweeps": len(described) + not_described}
        found = Account.of(held, {"sweeps": len(self.frames)}, sweeps)
        present = sum(len(frame.cameras) for frame in described)
        found.held["images"] = present + absent.total()
        found.used["images"] = sum(len(frame.cameras) for frame in self.frames)
        found.left_out["images"] = +absent
        if present > found.used["images"]:
            lost = present - found.used["images"]
            found.left_out["images"]["image of a sweep that is left out"] = lost
        return found

    def _describe(self) -> list[KeyFrame]:
        try:
            if (self.path / "sample.json").is_file() and not (
                self.path / "sample_data.json"
            ).is_file():
                return [sample_json_frame(self.path / "sample.json")]
            return key_frames(table_folder(self.path), self.skipped)
        except InputError:
            raise
        except WRONG_ENTRIES as error:
            raise _misused(f"{self.path}: the description", error) from error

    def _usable(self, frame: KeyFrame) -> bool:
        if not is_file(frame.lidar):
            self.skipped["sweep whose file is missing"] += 1
            return False
        fault = file_fault(frame.lidar, LIDAR_COLUMNS)
        if fault:
            self.skipped[f"{frame.lidar.name}: {fault}"] += 1
        return not fault

    def _labels(self, path: Path | None, count: int) -> npt.NDArray[np.int16] | None:
        if path is None or self.label_space is None:
            return None
        try:
            raw = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        except OSError as error:
            raise InputError(f"{path}: cannot read the labels: {error.strerror}") from error
        if len(raw) != count:
            raise InputError(
                f"{path}: {len(raw)} labels for a sweep of {count} points; expected one byte for "
                "each point"
            )
        return raw_id_table(self.label_space)[raw]


def _misused(what: str, error: Exception) -> InputError:
    """The error of an entry that is missing or has another type."""
    return InputError(f"{what} lacks or misuses {str(error)[:200]}; expected nuScenes v1.0")


def _of_scenes(frames: list[KeyFrame], file: Path) -> list[KeyFrame]:
    try:
        wanted = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"scenes={file}: not readable ({error})") from None
    missing = sorted(set(wanted) - {frame.scene for frame in frames})
    if missing or not wanted:
        shown = ", ".join(missing[:5]) or "it names none"
        raise InputError(
            f"scenes={file}: of {len(wanted)} scenes {len(missing)} are not there: {shown}; "
            "expected names of scenes, one per line"
        )
    return [frame for frame in frames if frame.scene in set(wanted)]


def read_nuscenes_sweep(path: Path, stamp_ns: int) -> PointCloud:
    """Read a .pcd.bin of float32 x, y, z, intensity (0..255), ring; intensity becomes 0..1.

    Raises:
        InputError: missing, truncated, empty, or without a single finite point.
    """
    cells = read_floats(path, LIDAR_COLUMNS)
    return PointCloud(
        xyz=np.ascontiguousarray(cells[:, :3]),
        intensity=cells[:, 3] / np.float32(255),
        ring=np.nan_to_num(cells[:, 4]).clip(0, 65535).astype(np.uint16),
        frame_id=LIDAR,
        stamp_ns=stamp_ns,
    )


def sample_json_frame(path: Path) -> KeyFrame:
    """The key frame of a `sample.json`.

    The file holds one ego pose and, per camera, `lidar2cam` including the ego motion between the
    stamps. The ego poses at the stamps of the cameras are recovered from these; the sample then has
    static extrinsics and a trajectory.

    Raises:
        InputError: not JSON, or a matrix that is no pose.
        KeyError: an entry is missing.
    """
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from error
    stamp_ns = _microseconds(described["timestamp"])
    T_ego_lidar = _pose_entry(described["lidar"], "lidar2ego", path)
    T_world_lidar = compose(_pose_entry(described, "ego2global", path), T_ego_lidar)
    poses = {stamp_ns: T_world_lidar}
    cameras = []
    for name, camera in described["cameras"].items():
        stamp = _microseconds(camera["timestamp"])
        T_cam_lidar = compose(invert(_pose_entry(camera, "cam2ego", path)), T_ego_lidar)
        T_moved_cam_lidar = _pose_entry(camera, "lidar2cam", path)
        poses[stamp] = compose(T_world_lidar, invert(T_moved_cam_lidar), T_cam_lidar)
        K = np.array(camera["cam2img"])[:3, :3]
        cameras.append((name, stamp, path.parent / camera["file"], K, T_cam_lidar))
    stamps = np.array(sorted(poses), dtype=np.int64)
    return KeyFrame(
        name=path.parent.name,
        scene=path.parent.name,
        stamp_ns=stamp_ns,
        lidar=path.parent / described["lidar"]["file"],
        cameras=cameras,
        trajectory=Trajectory(stamps, np.stack([poses[stamp] for stamp in stamps.tolist()])),
        labels=None,
        boxes=partial(_json_boxes, described, path) if "boxes" in described else None,
    )


def _pose_entry(described: Mapping[str, Any], name: str, path: Path) -> npt.NDArray[np.float64]:
    """A (4, 4) entry; raises InputError unless it is a rotation with a translation."""
    T = np.array(described[name], dtype=np.float64)
    if T.shape != (4, 4) or not is_rigid(T[None])[0]:
        raise InputError(f"{path}: '{name}' is no rotation with a translation, 4x4")
    return T


def _json_boxes(described: dict[str, Any], path: Path) -> list[Box]:
    """Rows of x, y, z, length, width, height, yaw in the LiDAR frame; unknown classes are -1."""
    names = described["categories"]
    boxes = []
    for row in described["boxes"]:
        values = np.array(row["box"], dtype=np.float64)
        label = str(names.get(str(row["label"]), "other"))
        try:
            boxes.append(Box(values[:3], values[3:6], float(values[6]), label))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return boxes


def _camera_frame(name: str, stamp_ns: int, image: Path, K: Any, T_cam_lidar: Any) -> CameraFrame:
    width, height = image_size(image)
    model = CameraModel.pinhole(
        float(K[0][0]), float(K[1][1]), float(K[0][2]), float(K[1][2]), width, height
    )
    return CameraFrame(name, stamp_ns, model, T_cam_lidar, partial(read_image, image))


def _microseconds(seconds: float) -> int:
    """Nanoseconds of a float stamp, rounded to microseconds."""
    return round(seconds * 1e6) * 1000
