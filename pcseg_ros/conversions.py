# SPDX-License-Identifier: Apache-2.0
"""Conversion of messages to core types and back; no other file reads or fills messages of data."""

from __future__ import annotations

import array
import functools
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Quaternion, Transform, Vector3
from nav_msgs.msg import OccupancyGrid, Odometry
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from pcseg_core import cloud_records
from pcseg_core.camera import CameraModel
from pcseg_core.cloud import EncodedCloud, IntensityScale, PointCloud, read_cloud, structured
from pcseg_core.data.images import decode_image, image_from_message
from pcseg_core.errors import InputError
from pcseg_core.geometry import from_quaternion
from pcseg_core.labels import WIRE_UNLABELED, LabelSpace, from_wire
from pcseg_core.online.grid import Grid

Message = TypeVar("Message", PointCloud2, Image, OccupancyGrid)


def read_sweep(
    msg: PointCloud2,
    intensity_scale: float | IntensityScale,
    *,
    time_field: str = "none",
    stamp_reference: str = "auto",
) -> PointCloud:
    """A sweep, whose arrays view the message; an intensity scale of 0 is guessed from it alone.

    Raises:
        InputError: the message is malformed or has no x, y and z.
    """
    return read_cloud(
        msg, intensity_scale=intensity_scale, time_field=time_field, stamp_reference=stamp_reference
    )


def read_image(
    msg: Image | CompressedImage, name: str, size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """(H, W, 3) RGB pixels of an image of this (width, height).

    Raises:
        InputError: the image has another size or does not decode, or its encoding has no colors.
    """
    if isinstance(msg, CompressedImage):
        return decode_image(np.frombuffer(msg.data, np.uint8), name, size)
    return image_from_message(msg, name, size)


def read_camera(msg: CameraInfo, rectified: bool) -> CameraModel:
    """Model of a camera's raw or rectified images.

    Raises:
        InputError: the camera is not calibrated, or its distortion model is unknown.
    """
    return CameraModel.from_camera_info(msg, rectified)


def read_labels(msg: PointCloud2) -> npt.NDArray[np.int32]:
    """(N,) class ids of a labeled sweep, -1 where unlabeled.

    Raises:
        InputError: the cloud has no field `label`, as with `output.profile` autoware.
    """
    points = structured(msg)
    if "label" not in (points.dtype.names or ()):
        raise InputError(
            "labeled cloud: it has no field label; set output.profile to append or minimal"
        )
    return from_wire(points["label"]).ravel()


def read_transform(msg: Transform) -> npt.NDArray[np.float64]:
    """(4, 4) pose of the child frame in the parent frame.

    Raises:
        InputError: the quaternion is zero or not finite.
    """
    return _pose(msg.translation, msg.rotation)


def read_odometry(msg: Odometry) -> npt.NDArray[np.float64]:
    """(4, 4) pose of `child_frame_id` in the message's frame; raises as `read_transform`."""
    return _pose(msg.pose.pose.position, msg.pose.pose.orientation)


def _pose(t: Point | Vector3, q: Quaternion) -> npt.NDArray[np.float64]:
    return from_quaternion((q.x, q.y, q.z, q.w), (t.x, t.y, t.z))


def filtered_messages(
    msg: PointCloud2, parts: Sequence[npt.NDArray[np.bool_]]
) -> list[PointCloud2]:
    """Parts of a cloud, of the points that are chosen with all their fields, unorganized.

    Args:
        msg: the cloud.
        parts: (N,) each, in the order of its points, whether a point is in the part.
    """
    if not parts:
        return []
    # As points of bytes: fields may overlap or leave gaps.
    rows = np.frombuffer(msg.data, np.uint8)[: msg.height * msg.row_step]
    points = rows.reshape(msg.height, msg.row_step)[:, : msg.width * msg.point_step]
    whole = np.ascontiguousarray(points).reshape(msg.height * msg.width, msg.point_step)
    return [_unorganized(msg, kept) for kept in cloud_records.take(whole, parts)]


def _unorganized(msg: PointCloud2, kept: array.array[int]) -> PointCloud2:
    """Points of a cloud."""
    part = PointCloud2(
        header=msg.header,
        height=1,
        width=len(kept) // max(msg.point_step, 1),
        fields=msg.fields,
        is_bigendian=msg.is_bigendian,
        point_step=msg.point_step,
        row_step=len(kept),
        is_dense=msg.is_dense,
    )
    return _with_data(part, kept)


def image_message(pixels: npt.NDArray[np.uint8], header: Header) -> Image:
    """(H, W, 3) RGB as a message."""
    return _image(pixels, header, "rgb8")


def mono_message(pixels: npt.NDArray[Any], header: Header) -> Image:
    """(H, W) uint8 or uint16 as a message."""
    return _image(pixels, header, f"mono{8 * pixels.itemsize}")


def _image(pixels: npt.NDArray[Any], header: Header, encoding: str) -> Image:
    height, width = pixels.shape[:2]
    big, step = sys.byteorder == "big", pixels[0].nbytes
    image = Image(
        header=header, height=height, width=width, encoding=encoding, is_bigendian=big, step=step
    )
    return _with_data(image, _bytes(pixels.view(np.uint8)))


def grid_message(drawn: Grid, stamp: Time, frame_id: str) -> OccupancyGrid:
    """An occupancy grid as a message."""
    message = OccupancyGrid(header=Header(stamp=stamp, frame_id=frame_id))
    message.info.map_load_time = stamp
    message.info.resolution = drawn.resolution_m
    message.info.height, message.info.width = drawn.costs.shape
    origin = message.info.origin.position
    origin.x, origin.y = drawn.origin_m
    origin.z = drawn.height_m
    return _with_data(message, array.array("b", drawn.costs.tobytes()))


def cloud_message(header: Header, cloud: EncodedCloud) -> PointCloud2:
    """An encoded cloud as a message."""
    message = PointCloud2(
        header=header,
        height=cloud.height,
        width=cloud.width,
        fields=[_field(f.name, f.offset, f.datatype, f.count) for f in cloud.fields],
        is_bigendian=cloud.is_bigendian,
        point_step=cloud.point_step,
        row_step=cloud.row_step,
        is_dense=cloud.is_dense,
    )
    return _with_data(message, cloud.buffer)


@functools.lru_cache(maxsize=256)
def _field(name: str, offset: int, datatype: int, count: int) -> PointField:
    """A field, one object for all clouds that have it."""
    return PointField(name=name, offset=offset, datatype=datatype, count=count)


def _with_data(message: Message, data: array.array[int]) -> Message:
    """The message with these data, which the setter of some distributions copies."""
    message._data = data
    return message


def _bytes(values: npt.NDArray[Any]) -> array.array[int]:
    """The bytes of an array, as the type that rclpy of every distribution assigns quickly."""
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(values).data)
    return data


def stamp_ns(header: Header) -> int:
    """Stamp of a header in nanoseconds."""
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)


def class_names(space: LabelSpace) -> list[str]:
    """Class names; the position is the value of the field `label`."""
    return list(space.names)


def class_colors(space: LabelSpace) -> list[str]:
    """Class colors as #rrggbb, in the order of the names."""
    return ["#{:02x}{:02x}{:02x}".format(*color) for color in space.palette]


def label_info(space: LabelSpace, header: Header, unlabeled: int = WIRE_UNLABELED) -> Any:
    """The classes as a vision_msgs/LabelInfo, with `unlabeled` as the id of what has no class.

    Raises:
        ImportError: vision_msgs is not installed.
    """
    from vision_msgs.msg import LabelInfo, VisionClass

    classes = [VisionClass(class_id=c.id, class_name=c.name) for c in space.classes]
    classes.append(VisionClass(class_id=unlabeled, class_name="unlabeled"))
    return LabelInfo(header=header, class_map=classes)
