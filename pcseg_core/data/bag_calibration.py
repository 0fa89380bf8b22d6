# SPDX-License-Identifier: Apache-2.0
"""The calibration of the cameras of a bag, and their images."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from pcseg_core.camera import CameraModel
from pcseg_core.data.bag_cameras import CameraTopics, in_own_frame
from pcseg_core.data.bag_reader import CAMERA_INFO, COMPRESSED_IMAGE, BagFile, TopicIndex
from pcseg_core.data.calibration import Calibration
from pcseg_core.data.images import RGB, decode_image, image_from_message
from pcseg_core.data.sample import CameraFrame
from pcseg_core.data.tf_tree import TfTree
from pcseg_core.errors import InputError


@dataclass(frozen=True, eq=False)
class BagCamera:
    """A usable camera of a bag: images, model and extrinsics."""

    topics: CameraTopics
    index: TopicIndex
    model: CameraModel
    T_cam_lidar: npt.NDArray[np.float64]
    time_offset_ns: int = 0  # added to the stamps of the images

    def frame(self, bag: BagFile, position: int) -> CameraFrame:
        """One of its images, which is read on access."""
        size = (self.model.width, self.model.height)
        loader = partial(_load_image, bag, self.index, position, size)
        stamp = int(self.index.stamps_ns[position]) + self.time_offset_ns
        return CameraFrame(self.topics.name, stamp, self.model, self.T_cam_lidar, loader)

    def fault(self, bag: BagFile) -> str:
        """Why none of three images spread over the recording can be used; empty if one can."""
        fault = ""
        for position in np.unique(np.linspace(0, len(self.index) - 1, 3).astype(int)).tolist():
            try:
                self.frame(bag, position).image  # noqa: B018 - does it decode?
            except InputError as error:
                fault = fault or str(error)
            else:
                return ""
        return fault


def _load_image(bag: BagFile, index: TopicIndex, position: int, size: tuple[int, int]) -> RGB:
    message = bag.read(index, position)
    name = f"{bag.path}, {index.topic} at {int(index.stamps_ns[position])} ns"
    if index.msgtype == COMPRESSED_IMAGE:
        return decode_image(message.data, name, size, message.format)
    return image_from_message(message, name, size)


@dataclass(frozen=True)
class BagCalibration:
    """Intrinsics and extrinsics of cameras: of a file, else CameraInfo and transforms of the bag.

    Attributes:
        bag, indices: the bag and its scanned topics.
        tree: its transforms.
        lidar_frame: frame of the sweeps.
        known: of a file, or None.
        problems: gets sentences about calibrations that change.
    """

    bag: BagFile
    indices: Mapping[str, TopicIndex]
    tree: TfTree
    lidar_frame: str
    known: Calibration | None
    problems: list[str]

    def camera(self, topics: CameraTopics, index: TopicIndex) -> BagCamera:
        """A camera with its calibration.

        Args:
            topics: of the camera.
            index: its images, with increasing stamps.

        Raises:
            InputError: the intrinsic or the extrinsic calibration is missing.
        """
        given = None if self.known is None else self.known.camera(topics.name, topics.image)
        model = given.model() if given is not None else None
        if model is None:
            model = self._intrinsics(topics)
        if given is not None:
            return BagCamera(topics, index, model, given.extrinsic(), given.time_offset_ns)
        if not index.frame_id:
            raise InputError("its images have no frame_id; give a calibration file")
        try:
            T_cam_lidar = self.tree.static(index.frame_id, self.lidar_frame)
        except InputError as error:
            raise InputError(
                f"the extrinsic calibration is missing: {error}; record /tf_static or give a "
                "calibration file"
            ) from error
        for other in {i.frame_id for i in self.indices.values() if i.msgtype == CAMERA_INFO}:
            with suppress(InputError):  # frames that are not connected
                model = in_own_frame(model, self.tree.static(other, index.frame_id))
        return BagCamera(topics, index, model, T_cam_lidar)

    def _intrinsics(self, topics: CameraTopics) -> CameraModel:
        if topics.info is None or topics.info not in self.indices:
            raise InputError(
                "no CameraInfo for it; record its camera_info topic or give a calibration file"
            )
        models, refused = [], []
        for raw in self.bag.infos[topics.info]:
            try:
                info = self.bag.deserialize(raw, CAMERA_INFO)
                models.append(CameraModel.from_camera_info(info, rectified=topics.rectified))
            except InputError as error:
                refused.append(error)
        if not models:
            raise refused[0]
        if len(models) > 1:
            self.problems.append(
                f"camera {topics.image}: its CameraInfo changes during the recording "
                f"({len(models)} versions); the first is used for all images"
            )
        return models[0]
