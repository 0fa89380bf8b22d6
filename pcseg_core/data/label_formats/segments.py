# SPDX-License-Identifier: Apache-2.0
"""Labels for Segments.ai: one sequence of point clouds per scene.

SCENE/sample.json and SCENE/label.json hold the `attributes` of a sample and of its label, and
categories.json the configuration of the data set. Files are named by relative paths, which uploads
replace by URLs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pcseg_core.data.label_formats.sweep import ExportSweep, View
from pcseg_core.errors import InputError
from pcseg_core.files import slug
from pcseg_core.geometry import invert, to_quaternion
from pcseg_core.labels import LabelSpace

Object: TypeAlias = dict[str, object]


class SegmentsExport:
    """Writes clouds and images at once, and the JSON files at the end."""

    def __init__(self, folder: Path, space: LabelSpace) -> None:
        self.folder, self.space = folder, space
        self._frames: dict[str, list[Object]] = {}
        self._labels: dict[str, list[Object]] = {}

    def write(self, sweep: ExportSweep) -> str:
        """Write the cloud and its images; see `Exporter`."""
        scene = self._folder_of(sweep.sample.scene)
        points, pose = sweep.points(deskewed=True), sweep.sample.T_world_lidar
        number = len(self._frames.get(scene, []))
        cloud = f"{scene}/clouds/{number:06d}.bin"
        frame: Object = {
            "pcd": {"url": cloud, "type": "binary-xyzi"},
            "name": sweep.sample.name,
            "timestamp": str(sweep.sample.stamp_ns),
            "images": self._images(sweep, scene, number),
        }
        if pose is not None:
            xyzw, place = to_quaternion(pose)
            frame["ego_pose"] = {"position": _xyz(place), "heading": _quaternion(xyzw)}
        path = self.folder / cloud
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(points.astype("<f4").tobytes())
        self._frames.setdefault(scene, []).append(frame)
        self._labels.setdefault(scene, []).append(self._label(sweep))
        return f"{scene}/label.json#{number}"

    def finish(self) -> list[str]:
        """Write samples, labels and categories."""
        for scene, frames in self._frames.items():
            labels = {"format_version": "0.2", "frames": self._labels[scene]}
            (self.folder / scene / "sample.json").write_text(json.dumps({"frames": frames}))
            (self.folder / scene / "label.json").write_text(json.dumps(labels))
        categories = [
            {"name": c.name, "id": c.id + 1, "color": list(c.color), "has_instances": False}
            for c in self.space.classes
        ]
        described = {"format_version": "0.1", "categories": categories}
        (self.folder / "categories.json").write_text(json.dumps(described, indent=1))
        return []

    def _folder_of(self, scene: str) -> str:
        return slug(scene) or "scene"

    def _label(self, sweep: ExportSweep) -> Object:
        """One object per class; its id is that of the category, 0 is no object."""
        ids = np.where(sweep.labels < 0, 0, sweep.labels + 1)
        objects = [
            {"id": number, "category_id": number, "track_id": number}
            for number in np.unique(ids[ids > 0]).tolist()
        ]
        return {"format_version": "0.2", "annotations": objects, "point_annotations": ids.tolist()}

    def _images(self, sweep: ExportSweep, scene: str, number: int) -> list[Object]:
        found: list[Object] = []
        for column, frame in enumerate(sweep.sample.frames_at_sweep()):
            view = View.of(frame)
            name = f"{scene}/images/{slug(frame.name)}/{number:06d}.jpg"
            try:
                view.save(self.folder / name)
            except InputError:  # the cloud and its labels are of use without it
                continue
            xyzw, place = to_quaternion(invert(view.T_cam_lidar))
            found.append(
                {
                    "name": frame.name,
                    "url": name,
                    "row": 0,
                    "col": column,
                    "intrinsics": {"intrinsic_matrix": view.model.K.tolist()},
                    "extrinsics": {"translation": _xyz(place), "rotation": _quaternion(xyzw)},
                    "camera_convention": "OpenCV",
                }
            )
        return found


def _xyz(values: npt.NDArray[np.float64]) -> dict[str, float]:
    return dict(zip("xyz", values.tolist()))


def _quaternion(xyzw: npt.NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(("qx", "qy", "qz", "qw"), xyzw.tolist()))
