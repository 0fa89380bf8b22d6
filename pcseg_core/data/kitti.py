# SPDX-License-Identifier: Apache-2.0
"""KITTI raw drives ("sync" recordings) and the KITTI object benchmark.

Geiger, Lenz, Stiller, Urtasun: "Vision meets Robotics: The KITTI Dataset", IJRR 2013.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pcseg_core.camera import CameraModel
from pcseg_core.data import kitti_files as files
from pcseg_core.data.account import Account, grouped
from pcseg_core.data.images import read_image
from pcseg_core.data.sample import Box, CameraFrame, Sample
from pcseg_core.data.stamps import longest_increasing
from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory, invert, transform
from pcseg_core.labels import LabelSpace

Float64 = npt.NDArray[np.float64]
NANOSECONDS = 1_000_000_000
REVOLUTION_S = 0.1034  # of the scanner: from timestamps_start.txt to timestamps_end.txt
MAX_TRIGGER_DELAY_NS = 50_000_000  # from a sweep to the arrival of its image: half a revolution


class KittiRawRecording:
    """One drive of KITTI raw, rectified and synchronized, with the calibration of the day.

    Clouds and images get the time at which the scanner faces forward and triggers the cameras:
    `velodyne_points/timestamps.txt`. The recorded stamps of the images are their arrival times,
    about 10 ms later. Unlike those of the odometry benchmark, these sweeps are not deskewed
    (readme of the development kit). The times of their points follow from the azimuth: the scanner
    turns clockwise, and begins and ends behind the car.

    Poses come from `oxts`, or from a `poses*.txt` in the drive with one T_world_lidar (12 numbers)
    per sweep.
    """

    label_space: LabelSpace | None = None

    def __init__(self, path: str | Path, cameras: Sequence[str] | str | None = None) -> None:
        """Index a drive; reads no sweeps and no images.

        Args:
            path: folder with velodyne_points, image_02 and so on, next to calib_*.txt.
            cameras: image folders to use; None takes the color cameras (image_02, image_03), or
                the gray ones if there are none. A string is split at commas.

        Raises:
            InputError: no sweeps, no calibration, or an invalid file.
        """
        self.path = Path(path)
        self.name = self.path.name
        self.skipped: Counter[str] = Counter()
        self.frames, self.stamps = self._sweeps()
        self.cameras = self._cameras(cameras)
        self._images = {name: self._triggered(name) for name in self.cameras}
        self._packets = 0, 0  # of oxts: held and used
        looked_for = len(self.frames)
        self.pose_source, self.trajectory = self._trajectory()
        self._drop_uncovered()
        self.account = self._account(looked_for)
        self.scenes: Sequence[str] = [self.name] * len(self.frames)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        frame = self.frames[index]
        cloud = files.read_sweep(self.sweep_path(frame), int(self.stamps[index]))
        x, y, _ = cloud.xyz.T.astype(np.float64)
        cloud.time = -np.arctan2(y, x) / (2 * np.pi) * REVOLUTION_S
        images = [self._image(name, index) for name in self.cameras]
        return Sample(
            cloud=cloud,
            cameras=[image for image in images if image is not None],
            trajectory=self.trajectory,
            name=f"{self.name}/{frame:010d}",
            scene=self.name,
        )

    def sweep_path(self, frame: int) -> Path:
        """File of a sweep."""
        return self.path / "velodyne_points" / "data" / f"{frame:010d}.bin"

    def image_path(self, camera: str, frame: int) -> Path:
        """File of an image, which may not exist."""
        return self.path / camera / "data" / f"{frame:010d}.png"

    def T_velo_imu(self) -> Float64:
        """(4, 4): IMU frame to LiDAR frame, from the calibration of the day."""
        path = self.path.parent / "calib_imu_to_velo.txt"
        return _pose_entry(files.read_calibration(path), path)

    def _account(self, looked_for: int) -> Account:
        """Account of the files of sweeps, and of the images of the `looked_for` good sweeps."""
        sweeps = len(files.numbered(self.path / "velodyne_points" / "data", ".bin"))
        held = {"sweeps": sweeps} | dict.fromkeys(self.cameras, looked_for)
        used = {name: len(taken & set(self.frames)) for name, taken in self._images.items()}
        held["oxts"], used["oxts"] = self._packets
        found = Account.of(held, {"sweeps": len(self.frames)} | used, self.skipped)
        for name, taken in self._images.items():
            if len(taken) > used[name]:
                found.left_out[name]["image of a sweep that is left out"] = len(taken) - used[name]
        return found

    def _sweeps(self) -> tuple[list[int], npt.NDArray[np.int64]]:
        paths = files.numbered(self.path / "velodyne_points" / "data", ".bin")
        if not paths:
            raise InputError(
                f"{self.path}: no velodyne_points/data/*.bin; give the folder of one drive, as "
                "2011_09_26/2011_09_26_drive_0013_sync"
            )
        stamps = files.read_stamps(self.path / "velodyne_points" / "timestamps.txt")
        good = [int(path.stem) for path in paths if self._usable(path, stamps)]
        chosen = np.array([stamps[frame] for frame in good], dtype=np.int64)
        kept = longest_increasing(chosen)
        if len(kept) < len(good):
            self.skipped["sweep whose stamp repeats or goes backwards"] = len(good) - len(kept)
        if not len(kept):
            raise InputError(f"{self.path}: no usable sweep; {_reasons(self.skipped)}")
        return [good[i] for i in kept], chosen[kept]

    def _usable(self, path: Path, stamps: npt.NDArray[np.int64]) -> bool:
        fault = files.file_fault(path, 4)
        if not fault and (int(path.stem) >= len(stamps) or not stamps[int(path.stem)]):
            fault = "the sweep has no time stamp"
        if fault:
            self.skipped[f"{path.name}: {fault}"] += 1
        return not fault

    def _cameras(self, names: Sequence[str] | str | None) -> dict[str, tuple[CameraModel, Float64]]:
        names = names.split(",") if isinstance(names, str) else names
        if names is None:
            present = [f"image_0{k}" for k in range(4) if (self.path / f"image_0{k}").is_dir()]
            names = [name for name in present if name in ("image_02", "image_03")] or present
        return {name: self._camera(name) for name in names}

    def _camera(self, name: str) -> tuple[CameraModel, Float64]:
        """Camera model and T_cam_lidar of rectified images."""
        folder = self.path.parent
        intrinsic_path = folder / "calib_cam_to_cam.txt"
        intrinsic = files.read_calibration(intrinsic_path)
        number = name[-2:]
        size = files.entry(intrinsic, f"S_rect_{number}", 2, intrinsic_path)
        P = files.entry(intrinsic, f"P_rect_{number}", 12, intrinsic_path).reshape(3, 4)
        try:
            model, T_cam_rect0 = files.projective_camera(P, int(size[0]), int(size[1]))
        except InputError as error:
            raise InputError(f"{intrinsic_path}, P_rect_{number}: {error}") from error
        T_rect0_cam0 = files.rotation_entry(intrinsic, "R_rect_00", intrinsic_path)
        extrinsic_path = folder / "calib_velo_to_cam.txt"
        T_cam0_velo = _pose_entry(files.read_calibration(extrinsic_path), extrinsic_path)
        return model, T_cam_rect0 @ T_rect0_cam0 @ T_cam0_velo

    def _trajectory(self) -> tuple[str, Trajectory | None]:
        packets = files.numbered(self.path / "oxts" / "data", ".txt")
        if packets:
            return "oxts", self._oxts(packets)
        listed = sorted(self.path.glob("poses*.txt"))
        if not listed:
            return "none", None
        poses = files.read_poses(listed[0])
        if len(poses) <= max(self.frames):
            raise InputError(
                f"{listed[0]}: {len(poses)} poses for sweeps up to number {max(self.frames)}; "
                "expected one for every sweep"
            )
        source = "kiss-icp" if "kiss_icp" in listed[0].stem else "file"
        return source, files.trajectory(self.stamps, poses[self.frames], listed[0])

    def _oxts(self, packets: list[Path]) -> Trajectory:
        """Poses of the packets; those without a stamp or a pose are counted."""
        path = self.path / "oxts" / "timestamps.txt"
        stamps = files.read_stamps(path)
        times, rows = [], []
        for packet in packets:
            number = int(packet.stem)
            try:
                if number >= len(stamps):
                    raise InputError(f"{packet}: the packet has no time stamp")
                rows.append(files.oxts_packet(packet))
                times.append(stamps[number])
            except InputError as error:
                self.skipped[f"oxts: {error}"] += 1
        if not rows:
            raise InputError(f"{path.parent}: no usable packet; {_reasons(self.skipped)}")
        poses = files.oxts_poses(np.stack(rows)) @ invert(self.T_velo_imu())
        kept = longest_increasing(np.array(times))
        if len(kept) < len(times):
            self.skipped["oxts: stamp that repeats or goes backwards"] += len(times) - len(kept)
        self._packets = len(packets), len(kept)
        return files.trajectory(np.array(times)[kept], poses[kept], path)

    def _drop_uncovered(self) -> None:
        if self.trajectory is None:
            return
        kept = [i for i, stamp in enumerate(self.stamps) if self.trajectory.covers(int(stamp))]
        if len(kept) < len(self.frames):
            self.skipped["sweep outside the time of the poses"] = len(self.frames) - len(kept)
        if not kept:
            raise InputError(f"{self.path}: the poses cover the time of no sweep")
        self.frames, self.stamps = [self.frames[i] for i in kept], self.stamps[kept]

    def _triggered(self, name: str) -> set[int]:
        """Frames with an image that was taken with the sweep."""
        stamps = files.read_stamps(self.path / name / "timestamps.txt")
        taken = set()
        for frame, stamp in zip(self.frames, self.stamps.tolist()):
            if not self.image_path(name, frame).is_file():
                self.skipped[f"{name}: image that is missing"] += 1
            elif frame < len(stamps) and abs(int(stamps[frame]) - stamp) > MAX_TRIGGER_DELAY_NS:
                self.skipped[f"{name}: image that was not taken with its sweep"] += 1
            else:
                taken.add(frame)
        return taken

    def _image(self, name: str, index: int) -> CameraFrame | None:
        frame = self.frames[index]
        if frame not in self._images[name]:
            return None
        model, T_cam_lidar = self.cameras[name]
        loader = partial(read_image, self.image_path(name, frame), (model.width, model.height))
        return CameraFrame(name, int(self.stamps[index]), model, T_cam_lidar, loader)


class KittiObjectRecording:
    """The KITTI object benchmark: single frames with 3D boxes, without poses.

    Stamps are nominal (one second per frame), and each frame is its own scene.
    """

    label_space: LabelSpace | None = None
    pose_source = "none"

    def __init__(self, path: str | Path) -> None:
        """Index a folder such as `training` with velodyne, calib, image_2 and label_2.

        Raises:
            InputError: no usable sweep.
        """
        self.path = Path(path)
        self.name = f"kitti-object-{self.path.name}"
        self.skipped: Counter[str] = Counter()
        paths = files.numbered(self.path / "velodyne", ".bin")
        if not paths:
            raise InputError(
                f"{self.path}: no velodyne/*.bin; give the folder that holds velodyne, calib and "
                "image_2, usually 'training'"
            )
        self.frames = [path.stem for path in paths if self._usable(path)]
        if not self.frames:
            raise InputError(f"{self.path}: no usable sweep; {_reasons(self.skipped)}")
        used = {"sweeps": len(self.frames)}
        self.account = Account.of({"sweeps": len(paths)}, used, self.skipped)
        self.scenes: Sequence[str] = [f"{self.name}/{frame}" for frame in self.frames]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        frame = self.frames[index]
        stamp_ns = index * NANOSECONDS
        calibration_path = self.path / "calib" / f"{frame}.txt"
        calibration = files.read_calibration(calibration_path)
        T_rect0_lidar = rect0_from_lidar(calibration, calibration_path)
        return Sample(
            cloud=files.read_sweep(self.path / "velodyne" / f"{frame}.bin", stamp_ns),
            cameras=self._cameras(frame, stamp_ns, calibration, T_rect0_lidar),
            boxes=self._boxes(frame, T_rect0_lidar),
            name=self.scenes[index],
            scene=self.scenes[index],
        )

    def _usable(self, path: Path) -> bool:
        fault = files.file_fault(path, 4)
        if not fault and not (self.path / "calib" / f"{path.stem}.txt").is_file():
            fault = "no calibration file for the sweep"
        if fault:
            self.skipped[f"{path.name}: {fault}"] += 1
        return not fault

    def _cameras(
        self, frame: str, stamp_ns: int, calibration: dict[str, Float64], T_rect0_lidar: Float64
    ) -> list[CameraFrame]:
        cameras = []
        for number in (2, 3):
            image = self.path / f"image_{number}" / f"{frame}.png"
            if not image.is_file():
                continue
            P = files.entry(calibration, f"P{number}", 12, image).reshape(3, 4)
            try:
                model, T_cam_rect0 = files.camera_of_image(P, image)
            except InputError as error:
                raise InputError(
                    f"{self.path / 'calib' / frame}.txt, P{number}: {error}"
                ) from error
            loader = partial(read_image, image)
            T_cam_lidar = T_cam_rect0 @ T_rect0_lidar
            cameras.append(CameraFrame(f"image_{number}", stamp_ns, model, T_cam_lidar, loader))
        return cameras

    def _boxes(self, frame: str, T_rect0_lidar: Float64) -> list[Box] | None:
        path = self.path / "label_2" / f"{frame}.txt"
        return read_object_boxes(path, invert(T_rect0_lidar)) if path.is_file() else None


def rect0_from_lidar(calibration: dict[str, Float64], path: Path) -> Float64:
    """(4, 4): LiDAR frame to rectified camera 0, from R0_rect and Tr_velo_to_cam."""
    T_rect0_cam0 = files.rotation_entry(calibration, "R0_rect", path)
    return T_rect0_cam0 @ files.pose_entry(calibration, "Tr_velo_to_cam", path)


def read_object_boxes(path: Path, T_lidar_rect0: Float64) -> list[Box]:
    """Boxes of a KITTI object label file in the LiDAR frame, without DontCare regions.

    A line holds height, width, length, the center of the bottom face in rectified camera 0 (y down)
    and the heading `rotation_y` about the y axis of that camera.

    Raises:
        InputError: a line is not a class name and 14 numbers, or its box is impossible.
    """
    boxes = []
    for number, line in enumerate(files.read_text(path).splitlines(), start=1):
        words = line.split()
        if not words or words[0] == "DontCare":
            continue
        try:
            height, width, length, x, y, z, turn = (float(word) for word in words[8:15])
            center = transform(T_lidar_rect0, np.array([[x, y - height / 2, z]]))[0]
            heading = T_lidar_rect0[:3, :3] @ [np.cos(turn), 0.0, -np.sin(turn)]
            yaw = float(np.arctan2(heading[1], heading[0]))
            boxes.append(Box(center, np.array([length, width, height]), yaw, words[0]))
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: not a KITTI object label ({error}): {line[:200]}"
            ) from error
    return boxes


def _pose_entry(values: dict[str, Float64], path: Path) -> Float64:
    T = files.rotation_entry(values, "R", path)
    T[:3, 3] = files.entry(values, "T", 3, path)
    return T


def _reasons(skipped: Counter[str]) -> str:
    return "; ".join(f"{count} x {reason}" for reason, count in grouped(skipped)[:3])
