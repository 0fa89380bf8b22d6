# SPDX-License-Identifier: Apache-2.0
"""Bags with one camera whose messages are what a test makes them."""

from collections.abc import Callable

from recordings import CAMERA, PERIOD, START, T_CAM_LIDAR, picture, points

from pcseg_core.cloud import encode_cloud
from pcseg_core.data import messages
from pcseg_core.data.bag_reader import CAMERA_INFO, IMAGE
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.geometry import invert

FRONT = "/front/image_raw"


def image_message(stamp: int, encoding: str = "rgb8") -> object:
    """A sensor_msgs/Image of noise in an encoding of one, two or three bytes per pixel."""
    message = messages.image(picture(), "cam", stamp)
    if encoding != "rgb8":
        message.encoding, message.step = encoding, 2 * message.width
        message.data = message.data[: message.step * message.height]
    return message


def camera_bag(
    path,
    sweeps: int = 6,
    image: Callable[[int], tuple[str, str, object]] | None = None,
    info: Callable[[int], object] | None = None,
    static: Callable[[BagWriter, int], None] | None = None,
    extra: Callable[[BagWriter, int], None] = lambda writer, i: None,
):
    """A bag with one camera; parts of its messages are made by functions of the sweep's number."""
    image = image or (lambda i: (FRONT, IMAGE, image_message(START + i * PERIOD)))
    info = info or (lambda i: messages.camera_info(CAMERA, "cam", START + i * PERIOD))
    with BagWriter(path) as writer:
        if static is None:
            writer.write_tf({("lidar", "cam"): invert(T_CAM_LIDAR)}, START, static=True)
        for i in range(sweeps):
            stamp = START + i * PERIOD
            cloud = encode_cloud(dict(zip("xyz", points(seed=i).T)))
            writer.write_cloud("/points", cloud, "lidar", stamp)
            topic, kind, message = image(i)
            writer.write_message(topic, kind, message, stamp)
            writer.write_message("/front/camera_info", CAMERA_INFO, info(i), stamp)
            if static is not None:
                static(writer, i)
            extra(writer, i)
    return path
