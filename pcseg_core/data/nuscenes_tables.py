# SPDX-License-Identifier: Apache-2.0
"""Tables of nuScenes (v1.0-*/*.json), joined into key frames."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.data.sample import Box
from pcseg_core.errors import InputError
from pcseg_core.files import is_file
from pcseg_core.geometry import Trajectory, compose, from_quaternion, invert

Float64 = npt.NDArray[np.float64]
WRONG_ENTRIES = (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError)
Row = dict[str, Any]

LIDAR = "LIDAR_TOP"
_WRONG = "key frame with a wrong entry: it lacks or misuses "


@dataclass(frozen=True)
class KeyFrame:
    """One key frame of either layout.

    Attributes:
        name, scene: names for the sample.
        stamp_ns: the sweep's stamp.
        lidar: the sweep's file.
        cameras: (name, stamp_ns, image file, K (3, 3), T_cam_lidar static) of each camera.
        trajectory: T_world_lidar over the scene.
        labels: lidarseg file, or None.
        boxes: returns the boxes in the LiDAR frame; None without boxes.
    """

    name: str
    scene: str
    stamp_ns: int
    lidar: Path
    cameras: list[tuple[str, int, Path, Any, Any]]
    trajectory: Trajectory
    labels: Path | None
    boxes: Callable[[], list[Box]] | None


def table_folder(path: Path) -> Path:
    """The v1.0-* folder at or in `path`.

    Raises:
        InputError: no or several such folders.
    """
    if (path / "sample_data.json").is_file():
        return path
    found = sorted(folder for folder in path.glob("v1.0-*") if folder.is_dir())
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{path}: several versions; choose one: {', '.join(map(str, found))}")
    raise InputError(
        f"{path}: neither v1.0-*/sample_data.json nor sample.json in it; give the folder that "
        "holds samples, sweeps and v1.0-*"
    )


def key_frames(folder: Path, skipped: Counter[str]) -> list[KeyFrame]:
    """Join the tables of a folder into key frames, by scene and time.

    Missing image files, key frames with wrong entries, and scenes with wrong poses are skipped and
    counted.

    Raises:
        InputError: a table is missing or is not JSON.
        KeyError: a row lacks a column, or refers to a missing row.
    """
    tables = _Tables(folder)
    by_scene: dict[str, list[Row]] = defaultdict(list)
    for sample in tables.samples.values():
        by_scene[sample["scene_token"]].append(sample)
    frames = []
    for scene in tables.scenes.values():
        samples = sorted(by_scene[scene["token"]], key=lambda row: int(row["timestamp"]))
        with_lidar = [row for row in samples if LIDAR in tables.key_data[row["token"]]]
        if len(with_lidar) < len(samples):
            skipped[f"key frame without {LIDAR}"] += len(samples) - len(with_lidar)
        if not with_lidar:
            continue
        try:
            trajectory = tables.trajectory(scene["token"], with_lidar[0])
        except WRONG_ENTRIES as error:
            skipped[f"{_WRONG}{error}"[:200]] += len(with_lidar)
            continue
        for row in with_lidar:
            try:
                frames.append(tables.frame(row, scene, trajectory, skipped))
            except WRONG_ENTRIES as error:
                skipped[f"{_WRONG}{error}"[:200]] += 1
    return frames


class _Tables:
    """The tables in use, by token."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder.parent
        self.scenes = self._keyed("scene")
        self.samples = self._keyed("sample")
        self.sensors = self._keyed("sensor")
        self.mounts = self._keyed("calibrated_sensor")
        self.ego_poses = self._keyed("ego_pose")
        self.key_data: dict[str, dict[str, Row]] = defaultdict(dict)
        self.scene_data: dict[str, list[Row]] = defaultdict(list)
        for row in self._rows("sample_data"):
            self._sort_in(row)
        self.labels = {
            row["sample_data_token"]: row["filename"] for row in self._rows("lidarseg", True)
        }
        self.annotations: dict[str, list[Row]] | None = self._annotations()

    def frame(
        self, sample: Row, scene: Row, trajectory: Trajectory, skipped: Counter[str]
    ) -> KeyFrame:
        """The key frame of one row of the table `sample`."""
        data = self.key_data[sample["token"]]
        lidar = data[LIDAR]
        T_ego_lidar = self.T_ego_sensor(lidar)
        cameras = []
        for channel in sorted(name for name in data if name.startswith("CAM")):
            row = data[channel]
            image = self.root / row["filename"]
            if not is_file(image):
                skipped["image whose file is missing"] += 1
                continue
            K = np.array(self.mounts[row["calibrated_sensor_token"]]["camera_intrinsic"])
            T_cam_lidar = compose(invert(self.T_ego_sensor(row)), T_ego_lidar)
            cameras.append((channel, _nanoseconds(row), image, K, T_cam_lidar))
        labels = self.labels.get(lidar["token"])
        return KeyFrame(
            name=f"{scene['name']}/{sample['token']}",
            scene=str(scene["name"]),
            stamp_ns=_nanoseconds(lidar),
            lidar=self.root / lidar["filename"],
            cameras=cameras,
            trajectory=trajectory,
            labels=None if labels is None else self.root / labels,
            boxes=self._boxes(sample, compose(self.T_world_ego(lidar), T_ego_lidar)),
        )

    def trajectory(self, scene_token: str, first: Row) -> Trajectory:
        """T_world_lidar of a scene, at the stamps of all its sensor data."""
        T_ego_lidar = self.T_ego_sensor(self.key_data[first["token"]][LIDAR])
        poses = {_nanoseconds(row): row for row in self.scene_data[scene_token]}
        stamps = sorted(poses)
        T_world_ego = np.stack([self.T_world_ego(poses[stamp]) for stamp in stamps])
        return Trajectory(np.array(stamps, dtype=np.int64), T_world_ego @ T_ego_lidar)

    def T_ego_sensor(self, data: Row) -> Float64:
        """(4, 4): sensor frame of a `sample_data` row to vehicle frame."""
        return _pose(self.mounts[data["calibrated_sensor_token"]])

    def T_world_ego(self, data: Row) -> Float64:
        """(4, 4): pose of the vehicle at a `sample_data` row."""
        return _pose(self.ego_poses[data["ego_pose_token"]])

    def _sort_in(self, row: Row) -> None:
        channel = self.sensors[self.mounts[row["calibrated_sensor_token"]]["sensor_token"]]
        name = channel["channel"]
        if name != LIDAR and not name.startswith("CAM"):
            return
        self.scene_data[self.samples[row["sample_token"]]["scene_token"]].append(row)
        if row["is_key_frame"]:
            self.key_data[row["sample_token"]][name] = row

    def _annotations(self) -> dict[str, list[Row]] | None:
        if not (self.folder / "sample_annotation.json").is_file():
            return None
        categories = self._keyed("category")
        instances = self._keyed("instance")
        grouped: dict[str, list[Row]] = defaultdict(list)
        for row in self._rows("sample_annotation"):
            row["category"] = categories[instances[row["instance_token"]]["category_token"]]["name"]
            grouped[row["sample_token"]].append(row)
        return grouped

    def _boxes(self, sample: Row, T_world_lidar: Float64) -> Any:
        if self.annotations is None:
            return None
        rows = self.annotations[sample["token"]]
        return partial(_boxes_in_lidar, rows, invert(T_world_lidar), self.folder)

    def _keyed(self, table: str) -> dict[str, Row]:
        return {row["token"]: row for row in self._rows(table)}

    def _rows(self, table: str, optional: bool = False) -> list[Row]:
        path = self.folder / f"{table}.json"
        if optional and not path.is_file():
            return []
        try:
            rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: not readable as a nuScenes table: {error}") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{path}: not a nuScenes table; expected a list of rows with names")
        return rows


def _boxes_in_lidar(annotations: list[Row], T_lidar_world: Float64, folder: Path) -> list[Box]:
    """Boxes of `sample_annotation` rows (world frame; size as width, length, height)."""
    boxes = []
    for row in annotations:
        try:
            T = compose(T_lidar_world, _pose(row))
            size = np.array([row["size"][place] for place in (1, 0, 2)], dtype=np.float64)
            yaw = float(np.arctan2(T[1, 0], T[0, 0]))
            boxes.append(Box(T[:3, 3], size, yaw, str(row["category"])))
        except InputError as error:
            raise InputError(f"{folder / 'sample_annotation.json'}: {error}") from error
    return boxes


def _pose(row: Row) -> Float64:
    """(4, 4) of a row with `translation` and `rotation` (quaternion w, x, y, z)."""
    w, x, y, z = row["rotation"]
    return from_quaternion(np.array([x, y, z, w]), np.array(row["translation"], dtype=np.float64))


def _nanoseconds(row: Row) -> int:
    return int(row["timestamp"]) * 1000
