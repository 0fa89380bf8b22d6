# SPDX-License-Identifier: Apache-2.0
"""Labels as nuScenes-lidarseg: tables, sweeps, images and one byte per point.

The vehicle frame is that of the LiDAR, and every sweep is a key frame.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from pcseg_core.camera import CameraModel
from pcseg_core.data.label_formats.sweep import ExportSweep, View
from pcseg_core.data.nuscenes_tables import LIDAR
from pcseg_core.errors import InputError
from pcseg_core.files import slug
from pcseg_core.geometry import Trajectory, invert, to_quaternion
from pcseg_core.labels import LabelSpace

Float64 = npt.NDArray[np.float64]
Row: TypeAlias = dict[str, object]

VERSION = "v1.0-pcseg"
_TABLES = [
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "lidarseg",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
]
_MAP = "maps/none.png"  # the devkit demands a map of every log


class NuScenesExport:
    """Writes sweeps, images and labels at once, and the tables at the end."""

    def __init__(self, folder: Path, space: LabelSpace) -> None:
        if len(space) > 255:
            raise InputError(f"{len(space)} classes, but lidarseg has one byte; at most 255")
        self.folder, self.space = folder, space
        self._tables: dict[str, dict[str, Row]] = {name: {} for name in _TABLES}
        self._last: dict[tuple[str, str], str] = {}  # token by table and chain

    def write(self, sweep: ExportSweep) -> str:
        """Write the sweep, its labels and its images; see `Exporter`."""
        sample, trajectory = sweep.sample, sweep.sample.trajectory
        if trajectory is None:
            raise InputError("a sweep without a pose, which nuScenes needs")
        pose = trajectory.at(sample.stamp_ns)
        self._scene(sample.scene, sample.stamp_ns)
        key = _token("sample", sweep.place)
        row: Row = {"timestamp": sample.stamp_ns // 1000, "scene_token": self._of(sample.scene)}
        self._link("sample", sample.scene, key, row)
        points = self._points(sweep)
        name = f"{len(self._tables['sample']) - 1:06d}"
        file = f"samples/{LIDAR}/{name}.pcd.bin"
        self._write(file, points.astype("<f4").tobytes())
        data = self._data(sweep, LIDAR, key, pose, sample.stamp_ns, file, (np.eye(4), None))
        labels = f"lidarseg/{VERSION}/{data}_lidarseg.bin"
        self._write(labels, np.where(sweep.labels < 0, 0, sweep.labels + 1).astype("u1").tobytes())
        self._tables["lidarseg"][data] = {"sample_data_token": data, "filename": labels}
        for frame in sample.cameras:
            if trajectory.covers(frame.stamp_ns):
                self._image(sweep, View.of(frame), key, trajectory, name)
        return labels

    def finish(self) -> list[str]:
        """Write the tables and the colors of the classes."""
        self._categories()
        logs = list(self._tables["log"])
        self._tables["map"][_token("map", "")] = {
            "log_tokens": logs, "category": "semantic_prior", "filename": _MAP,
        }  # fmt: skip
        (self.folder / "maps").mkdir()
        Image.new("L", (1, 1), 255).save(self.folder / _MAP)
        for name, rows in self._tables.items():
            content = [{"token": token, **row} for token, row in rows.items()]
            self._write(f"{VERSION}/{name}.json", json.dumps(content, indent=0).encode())
        colors = {"noise": [0, 0, 0], **{c.name: list(c.color) for c in self.space.classes}}
        self._write("colormap.json", json.dumps(colors).encode())
        return []

    def _points(self, sweep: ExportSweep) -> npt.NDArray[np.float32]:
        """(N, 5) x, y, z, intensity 0 to 255, ring; as recorded, as in nuScenes."""
        points = sweep.points(deskewed=False)
        ring = sweep.sample.cloud.ring
        last = np.zeros(len(points), np.float32) if ring is None else ring.astype(np.float32)
        points[:, 3] *= 255
        return np.column_stack([points, last])

    def _image(
        self, sweep: ExportSweep, view: View, key: str, trajectory: Trajectory, name: str
    ) -> None:
        stamp = view.frame.stamp_ns
        channel = f"CAM_{slug(view.frame.name).strip('_').upper()}"
        file = f"samples/{channel}/{name}.jpg"
        try:
            view.save(self.folder / file)
        except InputError:  # the sweep and its labels are of use without it
            return
        mount = (invert(view.T_cam_lidar), view.model)
        self._data(sweep, channel, key, trajectory.at(stamp), stamp, file, mount)

    def _data(
        self,
        sweep: ExportSweep,
        channel: str,
        key: str,
        pose: Float64,
        stamp_ns: int,
        file: str,
        mount: tuple[Float64, CameraModel | None],
    ) -> str:
        """Add a row of `sample_data` with its pose and calibration; its token."""
        token, scene = _token("data", channel, sweep.place), sweep.sample.scene
        T_ego_sensor, model = mount
        sensor, calibrated = _token("sensor", channel), _token("calibrated", channel, scene)
        modality = "lidar" if model is None else "camera"
        self._tables["sensor"][sensor] = {"channel": channel, "modality": modality}
        self._tables["calibrated_sensor"].setdefault(
            calibrated,
            {
                "sensor_token": sensor,
                **_pose(T_ego_sensor),
                "camera_intrinsic": [] if model is None else model.K.tolist(),
            },
        )
        self._tables["ego_pose"][token] = {"timestamp": stamp_ns // 1000, **_pose(pose)}
        row: Row = {
            "sample_token": key, "ego_pose_token": token, "calibrated_sensor_token": calibrated,
            "timestamp": stamp_ns // 1000, "fileformat": "pcd" if model is None else "jpg",
            "is_key_frame": True, "height": 0 if model is None else model.height,
            "width": 0 if model is None else model.width, "filename": file,
        }  # fmt: skip
        self._link("sample_data", f"{scene} {channel}", token, row)
        return token

    def _link(self, table: str, chain: str, token: str, row: Row) -> None:
        """Add a row after the last one of its chain."""
        before = self._last.get((table, chain), "")
        if before:
            self._tables[table][before]["next"] = token
        self._tables[table][token] = {**row, "prev": before, "next": ""}
        self._last[table, chain] = token

    def _scene(self, name: str, stamp_ns: int) -> None:
        token = self._of(name)
        if token in self._tables["scene"]:
            return
        date = datetime.fromtimestamp(stamp_ns * 1e-9, timezone.utc).date().isoformat()
        log = _token("log", name)
        self._tables["log"][log] = {
            "logfile": name, "vehicle": "", "date_captured": date, "location": "",
        }  # fmt: skip
        self._tables["scene"][token] = {"log_token": log, "name": name, "description": ""}

    @staticmethod
    def _of(scene: str) -> str:
        return _token("scene", scene)

    def _categories(self) -> None:
        """Rows of `category`, and the numbers of samples of each scene."""
        for index, name in enumerate(["noise", *self.space.names]):
            self._tables["category"][_token("category", name)] = {
                "name": name, "description": "", "index": index,
            }  # fmt: skip
        of_scene: dict[object, list[str]] = defaultdict(list)
        for token, row in self._tables["sample"].items():
            of_scene[row["scene_token"]].append(token)
        for token, scene in self._tables["scene"].items():
            own = of_scene[token]
            scene |= {
                "nbr_samples": len(own), "first_sample_token": own[0], "last_sample_token": own[-1],
            }  # fmt: skip

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _token(*parts: str) -> str:
    """32 hexadecimal digits, the same for the same parts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _pose(T: Float64) -> Mapping[str, object]:
    """`translation`, and `rotation` as a quaternion w, x, y, z."""
    xyzw, translation = to_quaternion(T)
    return {"translation": translation.tolist(), "rotation": np.roll(xyzw, 1).tolist()}
