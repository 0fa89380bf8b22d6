# SPDX-License-Identifier: Apache-2.0
"""Reader of rosbag2 recordings: sweeps with the nearest images, and poses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.body import read_body, without_body
from pcseg_core.cloud import IntensityScale, PointCloud
from pcseg_core.data import fingerprint
from pcseg_core.data.bag_account import bag_account
from pcseg_core.data.bag_calibration import BagCalibration, BagCamera
from pcseg_core.data.bag_cameras import find_cameras
from pcseg_core.data.bag_clouds import BagClouds, choose_topics, read_labels
from pcseg_core.data.bag_poses import build_tree, find_poses
from pcseg_core.data.bag_reader import (
    CAMERA_INFO,
    CLOUD,
    COMPRESSED_IMAGE,
    IMAGE,
    ODOMETRY,
    BagFile,
    TopicIndex,
)
from pcseg_core.data.calibration import Calibration, load_calibration
from pcseg_core.data.lidar_sets import MAX_LIDAR_OFFSET_S
from pcseg_core.data.odometry import cached_trajectory
from pcseg_core.data.sample import Sample
from pcseg_core.data.stamps import longest_increasing, nearest
from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory
from pcseg_core.labels import LabelSpace
from pcseg_core.progress import tracked


class BagRecording:
    """The sweeps of a bag, in the order of their header stamps.

    They are those of one cloud topic, or united ones of several. Sweeps are not deskewed; per-point
    times are kept. Every process that the recording is pickled to or forked into opens the bag
    itself.

    Attributes:
        name, label_space, pose_source, scenes, skipped: see `pcseg_core.data.Recording`.
        problems: sentences about missing parts (a calibration, poses).
        account: what the bag holds by topic, and what becomes of it.
        camera_faults: image topic -> why no inspected image of it can be used.
        cloud_topic: the topic of the sweeps, or the first of several.
        sweeps: reads the clouds.
        scale: scale of its intensities, one for the whole bag, with its source.
        reading: options of `read_cloud` for its clouds.
        lidar_frame: frame of the sweeps.
        body: box around the robot in it, or ().
        cameras: the usable cameras.
        trajectory: T_world_lidar, or None.
        T_body_lidar: (4, 4) of the given calibration, or None.
        tree: the transforms of the bag.
        indices: topic -> its messages, of the topics that were scanned.
    """

    def __init__(
        self,
        path: str | Path,
        cloud_topic: str | None = None,
        camera_topics: Sequence[str] | str | None = None,
        fixed_frame: str | None = None,
        poses: str = "auto",
        calibration: Calibration | str | Path | None = None,
        max_image_offset_s: float = 0.06,
        label_space: str | LabelSpace | None = None,
        intensity_scale: float | IntensityScale | None = None,
        time_field: str = "auto",
        time_unit: str = "auto",
        stamp_reference: str = "auto",
        max_lidar_offset_s: float = MAX_LIDAR_OFFSET_S,
        united_frame: str | None = None,
        body: str | Sequence[float] = (),
        index_all: bool = False,
    ) -> None:
        """Scan the bag once for stamps, transforms and calibrations.

        Args:
            path: bag folder, .mcap or .db3 file.
            cloud_topic: PointCloud2 topic; None if the bag has only one. Several with commas
                between them are united, in the frame of the first.
            camera_topics: image topics (a list, or comma-separated); None finds the cameras.
            fixed_frame: world frame of the poses in /tf; None tries odom, map, world and the root.
            poses: "auto": /tf, else Odometry, else kiss-icp if it is installed; "recorded": the
                same without kiss-icp; "tf", "odometry", "kiss-icp": this source or an error;
                "none"; or the path of a TUM file with T_world_lidar.
            calibration: extrinsics (and intrinsics and time offsets) that replace the bag's, or
                their file; its `T_body_lidar` is used with Odometry.
            max_image_offset_s: maximum stamp difference between a sweep and its image [s].
            label_space: space of the field `label` of the clouds, if they have one; None takes the
                space in the bag's `labels.yaml`, as written by `pcseg segment`.
            intensity_scale: see `read_cloud`; None or 0 guesses one scale for the whole bag.
            time_field, time_unit, stamp_reference: see `read_cloud`.
            max_lidar_offset_s: maximum stamp difference between sweeps that are united [s].
            united_frame: frame of united sweeps; None or "" takes that of the first topic.
            body: box around the robot in the frame of the sweeps; see `read_body`.
            index_all: index the cloud topics that are not read too, to compare them.

        Raises:
            InputError: the bag is unreadable, has no usable sweep, or lacks what is requested by
                name.
        """
        self.path = Path(path)
        self.name = self.path.name
        self.skipped: Counter[str] = Counter()
        self.problems: list[str] = []
        self.label_space = self._label_space(label_space)
        self.bag = BagFile(path)
        if isinstance(calibration, (str, Path)):
            calibration = load_calibration(calibration)
        self._united_frame = united_frame or ""
        self.body = read_body(body)
        self._scan(cloud_topic, index_all)
        if not isinstance(intensity_scale, IntensityScale):
            intensity_scale = IntensityScale(float(intensity_scale or 0))
        self.scale = intensity_scale
        times = {
            "time_field": time_field,
            "time_unit": time_unit,
            "stamp_reference": stamp_reference,
        }
        self.sweeps = self._find_sweeps(calibration, times, float(max_lidar_offset_s))
        self.reading = dict(self.sweeps.lidars[self.cloud_topic].reading)
        self.cameras = self._find_cameras(camera_topics, calibration)
        self.T_body_lidar = None if calibration is None else calibration.body()
        self.pose_source, self.trajectory = self._find_poses(poses, fixed_frame)
        self._drop_uncovered()
        self.cameras = self._readable_cameras(camera_topics is not None)
        self._pairs = [self._pair(camera, float(max_image_offset_s)) for camera in self.cameras]
        self.account = bag_account(self)
        self.scenes: Sequence[str] = [self.name] * len(self.clouds)

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, index: int) -> Sample:
        cloud = self.cloud(index)
        frames = [
            camera.frame(self.bag, int(pairs[index]))
            for camera, pairs in zip(self.cameras, self._pairs)
            if pairs[index] >= 0
        ]
        return Sample(
            cloud=cloud,
            cameras=frames,
            trajectory=self.trajectory,
            labels=read_labels(cloud, self.label_space, self.cloud_topic),
            label_space=self.label_space,
            name=f"{self.name}/{cloud.stamp_ns}",
            scene=self.name,
        )

    @property
    def clouds(self) -> TopicIndex:
        """Stamps and frame of the sweeps."""
        return self.sweeps.index

    def pairs(self, camera: BagCamera) -> npt.NDArray[np.int64]:
        """(sweeps,) int64: index of the camera's image of each sweep, -1 for none."""
        return self._pairs[self.cameras.index(camera)]

    def best_paired(self) -> int:
        """The sweep with the most images; of several the one nearest to the middle."""
        images = np.sum([pairs >= 0 for pairs in self._pairs], axis=0)
        best = np.flatnonzero(images == np.max(images)) if self._pairs else np.arange(len(self))
        return int(best[len(best) // 2])

    @property
    def intensity_scale(self) -> float | None:
        """Factor that maps intensities to 0..1, one for the whole bag; see `read_cloud`."""
        scale: float | None = self.reading["intensity_scale"]
        return scale

    def cloud(self, index: int) -> PointCloud:
        """One sweep.

        Raises:
            InputError: x, y or z is missing, or the sweep has no finite point.
        """
        try:
            cloud = without_body(self.sweeps.read(index), self.body)
            if not cloud.finite.any():
                raise InputError(f"cloud: none of its {len(cloud)} points is finite")
        except InputError as error:
            stamp = int(self.clouds.stamps_ns[index])
            raise InputError(f"{self.path}, {self.cloud_topic} at {stamp} ns: {error}") from error
        return cloud

    def _label_space(self, given: str | LabelSpace | None) -> LabelSpace | None:
        stored = self.path / "labels.yaml"
        if given is None and stored.is_file():
            given = str(stored)
        return LabelSpace.load(given) if isinstance(given, str) else given

    def _scan(self, cloud_topic: str | None, index_all: bool) -> None:
        """Index the topics in use and read all transforms."""
        self.cloud_topics = choose_topics(self.bag, cloud_topic)
        self.cloud_topic = self.cloud_topics[0]
        clouds = self.bag.of_type(CLOUD) if index_all else self.cloud_topics
        kinds = (IMAGE, COMPRESSED_IMAGE, CAMERA_INFO, ODOMETRY)
        self.indices, transforms = self.bag.index(
            [*clouds, *self.bag.of_type(*kinds)], self.skipped
        )
        self.tree = build_tree(transforms, self.skipped)

    def _find_sweeps(
        self, known: Calibration | None, reading: dict[str, Any], tolerance_s: float
    ) -> BagClouds:
        for topic in self.cloud_topics:
            if topic not in self.indices:
                raise InputError(f"{self.path}: no message of {topic} deserializes")
        indices = [self._ordered(self.indices[topic]) for topic in self.cloud_topics]
        self.lidar_frame = (len(indices) > 1 and self._united_frame) or indices[0].frame_id
        self._calibration, where = known, (self.lidar_frame, self.place_lidar)
        return BagClouds(self.bag, indices, *where, self.scale, reading, tolerance_s)

    def place_lidar(self, topic: str, frame: str) -> npt.NDArray[np.float64]:
        """T_united_lidar (4, 4) of a further LiDAR in the frame of the sweeps.

        Raises:
            InputError: it is unknown, or moves.
        """
        if frame.lstrip("/") == self.lidar_frame.lstrip("/"):
            return np.eye(4)
        known = self._calibration
        given = None if known is None else known.lidar(topic, frame)
        if given is not None:
            return given
        try:
            return self.tree.static(self.lidar_frame, frame)
        except InputError as error:
            raise InputError(
                f"{self.path}: {topic} cannot be united in '{self.lidar_frame}': {error}; record "
                "/tf_static or give a calibration file with `lidars`"
            ) from error

    def _ordered(self, index: TopicIndex) -> TopicIndex:
        """Messages with increasing stamps; the others are counted."""
        kept = longest_increasing(index.stamps_ns)
        if len(kept) < len(index):
            reason = f"{index.topic}: stamp that repeats or goes backwards"
            self.skipped[reason] += len(index) - len(kept)
        return index.take(kept)

    def _find_cameras(
        self, wanted: Sequence[str] | str | None, known: Calibration | None
    ) -> list[BagCamera]:
        topics = wanted.split(",") if isinstance(wanted, str) else wanted
        frames = {topic: index.frame_id for topic, index in self.indices.items()}
        found, cameras = find_cameras(self.bag, frames, topics), []
        calibration = BagCalibration(
            self.bag, self.indices, self.tree, self.lidar_frame, known, self.problems
        )
        if known is not None:
            known.check([n for camera in found for n in (camera.name, camera.image)], self.name)
        for camera in found:
            if camera.image not in self.indices:
                continue  # no message deserializes; counted
            images = self._ordered(self.indices[camera.image])
            try:
                cameras.append(calibration.camera(camera, images))
            except InputError as error:
                if topics is not None:
                    raise InputError(f"{self.path}, {camera.image}: {error}") from error
                self.problems.append(f"camera {camera.image} cannot be used: {error}")
        return cameras

    def _readable_cameras(self, chosen: bool) -> list[BagCamera]:
        """The cameras without those that do not decode, unless chosen by name or all fail."""
        found = {} if chosen else {c.topics.image: c.fault(self.bag) for c in self.cameras}
        self.camera_faults = {topic: fault for topic, fault in found.items() if fault}
        if len(self.camera_faults) == len(self.cameras):
            return self.cameras
        for topic, fault in self.camera_faults.items():
            self.problems.append(f"camera {topic} cannot be used: {fault}")
        return [camera for camera in self.cameras if camera.topics.image not in self.camera_faults]

    def _find_poses(self, mode: str, fixed_frame: str | None) -> tuple[str, Trajectory | None]:
        inputs = (self.bag, self.indices, self.tree, self.clouds)
        body = self.T_body_lidar
        found = find_poses(mode, *inputs, fixed_frame, self._estimate, body, self.skipped)
        if found.problem:
            self.problems.append(found.problem)
        return found.source, found.trajectory

    def _estimate(self) -> Trajectory:
        """Poses by LiDAR odometry."""
        key = f"{self.path.resolve()} {fingerprint(self.path)} {self.cloud_topics} {self.reading}"
        return cached_trajectory(key, self._readable_clouds())

    def _readable_clouds(self) -> Iterator[PointCloud]:
        for index in tracked(range(len(self.clouds)), "Estimating poses with kiss-icp"):
            try:
                yield self.cloud(index)
            except InputError:
                continue  # reported when the sweep itself is read

    def _drop_uncovered(self) -> None:
        if self.trajectory is None:
            return
        stamps = self.clouds.stamps_ns.tolist()
        kept = np.flatnonzero([self.trajectory.covers(stamp) for stamp in stamps])
        if len(kept) < len(stamps):
            self.skipped["sweep outside the time of the poses"] += len(stamps) - len(kept)
        self.sweeps.take(kept)

    def _pair(self, camera: BagCamera, max_offset_s: float) -> npt.NDArray[np.int64]:
        """(sweeps,) int64: position of the nearest image in the index of the camera, or -1."""
        stamps = camera.index.stamps_ns
        pairs = np.full(len(self.clouds), -1, dtype=np.int64)
        for sweep, stamp in enumerate(self.clouds.stamps_ns.tolist()):
            position = nearest(stamps, stamp)
            image_stamp = int(stamps[position])
            taken = image_stamp + camera.time_offset_ns
            if abs(image_stamp - stamp) > max_offset_s * 1e9:
                self.skipped[f"{camera.topics.image}: no image near the sweep"] += 1
            elif self.trajectory is not None and not self.trajectory.covers(taken):
                self.skipped[f"{camera.topics.image}: image outside the time of the poses"] += 1
            else:
                pairs[sweep] = position
        return pairs
