# SPDX-License-Identifier: Apache-2.0
"""Standard ROS 2 messages from core types, to write bags without ROS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import EncodedCloud
from pcseg_core.data.bag_reader import (
    CAMERA_INFO,
    CLOUD,
    COMPRESSED_IMAGE,
    IMAGE,
    ODOMETRY,
    TF,
    type_store,
)
from pcseg_core.errors import InputError, require
from pcseg_core.geometry import to_quaternion

Array = npt.NDArray[Any]
MAX_DEFINITION_CHARACTERS = 100_000  # parsing takes seconds beyond that


def header(frame_id: str, stamp_ns: int) -> Any:
    """A std_msgs/Header."""
    seconds, nanoseconds = divmod(int(stamp_ns), 1_000_000_000)
    stamp = _new("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
    return _new("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)


def cloud(encoded: EncodedCloud, frame_id: str, stamp_ns: int) -> Any:
    """A sensor_msgs/PointCloud2."""
    fields = [
        _new(
            "sensor_msgs/msg/PointField",
            name=field.name,
            offset=field.offset,
            datatype=field.datatype,
            count=field.count,
        )
        for field in encoded.fields
    ]
    return _new(
        CLOUD,
        header=header(frame_id, stamp_ns),
        height=encoded.height,
        width=encoded.width,
        fields=fields,
        is_bigendian=encoded.is_bigendian,
        point_step=encoded.point_step,
        row_step=encoded.row_step,
        data=encoded.data,
        is_dense=encoded.is_dense,
    )


def image(pixels: npt.NDArray[np.uint8], frame_id: str, stamp_ns: int) -> Any:
    """A sensor_msgs/Image of (H, W, 3) RGB (rgb8) or (H, W) gray (mono8) uint8.

    Raises:
        InputError: pixels of another shape or type.
    """
    shape = pixels.shape
    if pixels.dtype != np.uint8 or len(shape) not in (2, 3) or shape[2:] not in ((), (3,)):
        raise InputError(f"image: expected (H, W, 3) or (H, W) uint8, got {shape} {pixels.dtype}")
    channels = shape[2] if len(shape) == 3 else 1
    return _new(
        IMAGE,
        header=header(frame_id, stamp_ns),
        height=shape[0],
        width=shape[1],
        encoding="rgb8" if channels == 3 else "mono8",
        is_bigendian=0,
        step=shape[1] * channels,
        data=np.ascontiguousarray(pixels).reshape(-1),
    )


def compressed_image(data: bytes, format: str, frame_id: str, stamp_ns: int) -> Any:
    """A sensor_msgs/CompressedImage of an image file; `format` is "png" or "jpeg"."""
    return _new(
        COMPRESSED_IMAGE,
        header=header(frame_id, stamp_ns),
        format=format,
        data=np.frombuffer(data, dtype=np.uint8),
    )


def camera_info(camera: CameraModel, frame_id: str, stamp_ns: int) -> Any:
    """A sensor_msgs/CameraInfo of the images, after region of interest and binning.

    A camera without distortion ("none") becomes plumb_bob with zeros, as usual in ROS.
    """
    P = np.hstack([camera.K, np.zeros((3, 1))]) if camera.P is None else camera.P
    plain = camera.distortion_model == "none"
    whole = _new(
        "sensor_msgs/msg/RegionOfInterest",
        x_offset=0,
        y_offset=0,
        height=0,
        width=0,
        do_rectify=False,
    )
    return _new(
        CAMERA_INFO,
        header=header(frame_id, stamp_ns),
        height=camera.height,
        width=camera.width,
        distortion_model="plumb_bob" if plain else camera.distortion_model,
        d=np.zeros(5) if plain else np.array(camera.D, dtype=np.float64),
        k=np.array(camera.K, dtype=np.float64).reshape(9),
        r=np.array(camera.R, dtype=np.float64).reshape(9),
        p=np.array(P, dtype=np.float64).reshape(12),
        binning_x=0,
        binning_y=0,
        roi=whole,
    )


def tf(transforms: Mapping[tuple[str, str], Array], stamp_ns: int) -> Any:
    """A tf2_msgs/TFMessage from (parent, child) -> T_parent_child (4, 4)."""
    stamped = [
        _new(
            "geometry_msgs/msg/TransformStamped",
            header=header(parent, stamp_ns),
            child_frame_id=child,
            transform=_new(
                "geometry_msgs/msg/Transform",
                translation=_vector(T[:3, 3]),
                rotation=_quaternion(T),
            ),
        )
        for (parent, child), T in transforms.items()
    ]
    return _new(TF, transforms=stamped)


def odometry(
    pose: Array,
    frame_id: str,
    child_frame_id: str,
    stamp_ns: int,
    linear: Sequence[float],
    angular: Sequence[float],
) -> Any:
    """A nav_msgs/Odometry of T_frame_child (4, 4), velocities in the child frame."""
    x, y, z = pose[:3, 3].tolist()
    place = _new(
        "geometry_msgs/msg/Pose",
        position=_new("geometry_msgs/msg/Point", x=x, y=y, z=z),
        orientation=_quaternion(pose),
    )
    velocity = _new("geometry_msgs/msg/Twist", linear=_vector(linear), angular=_vector(angular))
    unknown = np.zeros(36)
    return _new(
        ODOMETRY,
        header=header(frame_id, stamp_ns),
        child_frame_id=child_frame_id,
        pose=_new("geometry_msgs/msg/PoseWithCovariance", pose=place, covariance=unknown),
        twist=_new("geometry_msgs/msg/TwistWithCovariance", twist=velocity, covariance=unknown),
    )


def _vector(values: Sequence[float] | Array) -> Any:
    x, y, z = (float(value) for value in values)
    return _new("geometry_msgs/msg/Vector3", x=x, y=y, z=z)


def _quaternion(T: Array) -> Any:
    x, y, z, w = to_quaternion(T)[0].tolist()
    return _new("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)


def _new(msgtype: str, **values: Any) -> Any:
    return type_store().types[msgtype](**values)


def store_with(connection: Any) -> Any:
    """A type store with the message definition of a connection (mcap has no type hash)."""
    if not connection.msgdef.data:
        return type_store()
    size = len(connection.msgdef.data)
    if size > MAX_DEFINITION_CHARACTERS:
        raise bad_definition(connection, f"it has {size} characters")
    typesys = require("rosbags.typesys", "core")
    store = typesys.get_typestore(typesys.Stores.EMPTY)
    try:
        store.register(typesys.get_types_from_msg(connection.msgdef.data, connection.msgtype))
    except Exception as error:  # a definition in another language, or a broken one
        raise bad_definition(connection, str(error)) from error
    return store


def bad_definition(connection: Any, reason: str) -> InputError:
    """The error of a definition that cannot be used."""
    name = f"{connection.topic}: the definition of {connection.msgtype}"
    return InputError(f"{name} cannot be used ({reason[:200]})")
