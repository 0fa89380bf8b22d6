# SPDX-License-Identifier: Apache-2.0
"""Labels as sequences of SemanticKITTI, for point_labeler and semantic-kitti-api.

sequences/NN/velodyne/NNNNNN.bin    points, corrected for the motion within the sweep
sequences/NN/labels/NNNNNN.label    one uint32 per point
sequences/NN/image_2/NNNNNN.png     the camera that looks ahead, without distortion
sequences/NN/{calib,poses,times}.txt
semantic-kitti.yaml, labels.xml     classes for semantic-kitti-api and for point_labeler
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt
import yaml

from pcseg_core.data.label_files import encode_labels, raw_ids_of
from pcseg_core.data.label_formats.sweep import ExportSweep, View, front_view
from pcseg_core.errors import InputError
from pcseg_core.geometry import compose, invert
from pcseg_core.labels import LabelSpace

Float64 = npt.NDArray[np.float64]

# LiDAR axes (x ahead, y left, z up) in optical axes: Tr of a sequence without images.
_AXES = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


@dataclass
class _Sequence:
    """What a sequence has so far."""

    folder: Path
    view: View | None
    posed: bool
    poses: list[Float64] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)


class SemanticKittiExport:
    """Writes one sequence per scene, with sweeps counted from 0."""

    def __init__(self, folder: Path, space: LabelSpace) -> None:
        self.folder, self.space, self.raw_ids = folder, space, raw_ids_of(space)
        self.counts = np.zeros(len(space) + 1, np.int64)  # the last is unlabeled
        self._sequences: dict[str, _Sequence] = {}

    def write(self, sweep: ExportSweep) -> str:
        """Write the sweep, its labels and its image; see `Exporter`."""
        sequence = self._sequence(sweep)
        pose = self._pose(sequence, sweep)
        points = sweep.points(deskewed=True)
        name = f"{len(sequence.stamps):06d}"
        for view in _views(sequence, sweep):
            view.save(sequence.folder / "image_2" / f"{name}.png")
        (sequence.folder / "velodyne" / f"{name}.bin").write_bytes(points.astype("<f4").tobytes())
        labels = sequence.folder / "labels" / f"{name}.label"
        labels.write_bytes(encode_labels(sweep.labels, self.raw_ids))
        sequence.poses.append(pose)
        sequence.stamps.append(sweep.sample.stamp_ns)
        self.counts += np.bincount(
            np.where(sweep.labels < 0, len(self.space), sweep.labels), minlength=len(self.counts)
        )
        return labels.relative_to(self.folder).as_posix()

    def finish(self) -> list[str]:
        """Write calibration, poses, stamps and classes."""
        notes = []
        for scene, sequence in self._sequences.items():
            _write_calibration(sequence)
            seconds = (np.array(sequence.stamps) - sequence.stamps[0]) * 1e-9
            lines = "".join(f"{second:.9f}\n" for second in seconds)
            (sequence.folder / "times.txt").write_text(lines)
            if sequence.posed:
                _write_poses(sequence)
            else:
                notes.append(f"scene {scene}: no poses, so no poses.txt, which point_labeler needs")
        config = class_config(self.space, self.raw_ids, self.counts, len(self._sequences))
        text = yaml.safe_dump(config, sort_keys=False, default_flow_style=None)
        (self.folder / "semantic-kitti.yaml").write_text(text)
        (self.folder / "labels.xml").write_text(class_xml(self.space, self.raw_ids))
        return notes

    def _sequence(self, sweep: ExportSweep) -> _Sequence:
        scene = sweep.sample.scene
        if scene not in self._sequences:
            folder = self.folder / "sequences" / f"{len(self._sequences):02d}"
            for name in ("velodyne", "labels", "image_2"):
                (folder / name).mkdir(parents=True)
            posed = sweep.sample.trajectory is not None
            self._sequences[scene] = _Sequence(folder, None, posed)
        sequence = self._sequences[scene]
        sequence.view = sequence.view or front_view(sweep.sample)
        return sequence

    @staticmethod
    def _pose(sequence: _Sequence, sweep: ExportSweep) -> Float64:
        pose = sweep.sample.T_world_lidar if sequence.posed else np.eye(4)
        if pose is None:
            raise InputError("a sweep without a pose in a scene with poses")
        return pose


def _views(sequence: _Sequence, sweep: ExportSweep) -> list[View]:
    """The view of a sweep by the camera of its sequence; empty if it has no such image."""
    if sequence.view is None:
        return []
    name = sequence.view.frame.name
    return [View.of(frame) for frame in sweep.sample.cameras if frame.name == name]


def _write_calibration(sequence: _Sequence) -> None:
    """calib.txt: the camera of image_2 is camera 0, too."""
    view = sequence.view
    K = np.eye(3) if view is None else view.model.K
    rows = {f"P{number}": np.column_stack([K, np.zeros(3)]) for number in range(4)}
    rows["Tr"] = _T_cam_lidar(sequence)[:3]
    lines = [f"{name}: {_numbers(row)}\n" for name, row in rows.items()]
    (sequence.folder / "calib.txt").write_text("".join(lines))


def _write_poses(sequence: _Sequence) -> None:
    """poses.txt: camera 0 of each sweep in camera 0 of the first."""
    Tr = _T_cam_lidar(sequence)
    first = invert(sequence.poses[0])
    poses = [compose(Tr, first, pose, invert(Tr))[:3] for pose in sequence.poses]
    (sequence.folder / "poses.txt").write_text("".join(f"{_numbers(pose)}\n" for pose in poses))


def _T_cam_lidar(sequence: _Sequence) -> Float64:
    return _AXES if sequence.view is None else sequence.view.T_cam_lidar


def _numbers(row: Float64) -> str:
    return " ".join(f"{value:.12e}" for value in row.ravel())


def class_config(
    space: LabelSpace,
    raw_ids: npt.NDArray[np.uint32],
    counts: npt.NDArray[np.int64],
    sequences: int,
) -> dict[str, object]:
    """Configuration of semantic-kitti-api: names, colors (blue, green, red), shares and ids.

    Args:
        space: the classes.
        raw_ids: (C,) their numbers in label files.
        counts: (C + 1,) points of each class, and unlabeled ones.
        sequences: number of sequences.
    """
    ids = [0, *map(int, raw_ids)]
    order = [len(space), *range(len(space))]
    colors = np.vstack([space.palette, np.zeros((1, 3), np.uint8)])[order][:, ::-1]
    shares = counts[order] / max(int(counts.sum()), 1)
    return {
        "labels": dict(zip(ids, ["unlabeled", *space.names])),
        "color_map": dict(zip(ids, colors.tolist())),
        "content": dict(zip(ids, shares.tolist())),
        "learning_map": {raw: number for number, raw in enumerate(ids)},
        "learning_map_inv": dict(enumerate(ids)),
        "learning_ignore": {number: number == 0 for number in range(len(ids))},
        "split": {"train": list(range(sequences)), "valid": [], "test": []},
    }


def class_xml(space: LabelSpace, raw_ids: npt.NDArray[np.uint32]) -> str:
    """labels.xml of point_labeler: number, name and color (red, green, blue) of each class."""
    rows = [(0, "unlabeled", (0, 0, 0))]
    rows += [(int(raw), c.name, c.color) for raw, c in zip(raw_ids, space.classes)]
    labels = [
        f"<label><id>{raw}</id><name>{escape(name)}</name><description>{escape(name)}</description>"
        f"<color>{' '.join(map(str, color))}</color><root>{escape(name)}</root><macro></macro>"
        f"<category>{escape(name)}</category></label>\n"
        for raw, name, color in rows
    ]
    return f"<config>\n{''.join(labels)}</config>\n"
