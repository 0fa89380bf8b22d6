# SPDX-License-Identifier: Apache-2.0
"""Decode image files, compressed messages and `sensor_msgs/Image` messages to RGB."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from pcseg_core.camera import CameraModel
from pcseg_core.errors import InputError

RGB = npt.NDArray[np.uint8]

# encoding: (channels, dtype, indices of R, G, B)
_PACKED: dict[str, tuple[int, str, tuple[int, int, int]]] = {
    "rgb8": (3, "u1", (0, 1, 2)),
    "bgr8": (3, "u1", (2, 1, 0)),
    "rgba8": (4, "u1", (0, 1, 2)),
    "bgra8": (4, "u1", (2, 1, 0)),
    "8uc3": (3, "u1", (2, 1, 0)),
    "8uc4": (4, "u1", (2, 1, 0)),
    "mono8": (1, "u1", (0, 0, 0)),
    "8uc1": (1, "u1", (0, 0, 0)),
    "rgb16": (3, "u2", (0, 1, 2)),
    "bgr16": (3, "u2", (2, 1, 0)),
    "rgba16": (4, "u2", (0, 1, 2)),
    "bgra16": (4, "u2", (2, 1, 0)),
    "mono16": (1, "u2", (0, 0, 0)),
}
# Color (0 red, 1 green, 2 blue) of the pixels at rows 0 0 1 1, columns 0 1 0 1.
_BAYER: dict[str, tuple[int, int, int, int]] = {
    "bayer_rggb": (0, 1, 1, 2),
    "bayer_bggr": (2, 1, 1, 0),
    "bayer_gbrg": (1, 2, 0, 1),
    "bayer_grbg": (1, 0, 2, 1),
}

# encoding: places of Y, U, Y, V in the four bytes of two pixels (4:2:2)
_PACKED_YUV: dict[str, tuple[int, int, int, int]] = {
    "yuv422": (1, 0, 3, 2),
    "uyvy": (1, 0, 3, 2),
    "yuv422_yuy2": (0, 1, 2, 3),
    "yuyv": (0, 1, 2, 3),
    "yuy2": (0, 1, 2, 3),
}
# encoding: places of U and V in the pairs of the second plane (4:2:0)
_PLANAR_YUV: dict[str, tuple[int, int]] = {"nv12": (0, 1), "nv21": (1, 0)}
_VIDEO = ("h264", "h265", "hevc", "av1", "vp8", "vp9", "theora", "ffmpeg")
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")  # decoders that may see data from outside
MAX_PIXELS = 1 << 27


class ImageMessage(Protocol):
    """Attributes of a `sensor_msgs/Image` that are read."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: Any


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> RGB:
    """Read an image file as (H, W, 3) uint8 RGB; gray becomes three equal channels.

    Args:
        path: the file.
        size: expected (width, height); None accepts any.

    Raises:
        InputError: the file is missing, truncated, not an image, or of another size.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the image: {error.strerror or error}") from error
    return decode_image(content, str(path), size)


def check_size(image: RGB, size: tuple[int, int] | None, name: str) -> RGB:
    """The image; raises InputError unless it has the (width, height) of its camera."""
    height, width = image.shape[:2]
    _check_numbers(width, height, size, name)
    return image


def decode_image(
    data: bytes | memoryview | npt.NDArray[np.uint8],
    name: str = "image",
    size: tuple[int, int] | None = None,
    format: str = "",
) -> RGB:
    """Decode the bytes of a PNG, JPEG, WebP or TIFF file to (H, W, 3) uint8 RGB.

    The size is checked by the header, before the pixels are decoded.

    Args:
        data: the file.
        name: in messages.
        size: expected (width, height); None accepts any up to 2^27 pixels.
        format: of a CompressedImage, to name videos.

    Raises:
        InputError: the bytes are not a complete image of a known format, or of another size.
    """
    content = data if isinstance(data, bytes) else bytes(data)
    video = next((word for word in _VIDEO if word in format.lower()), "")
    if video:
        raise InputError(
            f"{name}: the images are a video ({video}), which is not read; record "
            "sensor_msgs/Image, or CompressedImage with png or jpeg"
        )
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _check_numbers(image.width, image.height, size, name)
            if image.mode.startswith("I;16") or image.mode == "I":
                return _stack(_eight_bits(np.asarray(image).astype(np.uint16)))
            return np.array(image.convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # decoders raise various errors
        raise InputError(
            f"{name}: the image does not decode ({error}); expected a whole PNG or JPEG of "
            f"{len(content)} bytes"
        ) from error


def undistort(image: RGB, camera: CameraModel) -> RGB:
    """The image of `camera.without_distortion()`; black where the lens shows nothing.

    Args:
        image: (H, W, 3) uint8, as recorded.
        camera: its model.
    """
    if camera.distortion_model != "equidistant" and not any(camera.D):
        return image
    view, _ = camera.without_distortion()
    height, width = image.shape[:2]
    v, u = np.mgrid[:height, :width]
    rays = view.unproject(np.stack([u.ravel(), v.ravel()], axis=1), depth=1.0)
    lens = replace(camera, R=np.eye(3), P=None)
    pixels, seen = lens.project(rays)
    seen &= lens.contains(pixels)
    at = np.where(seen[:, None], pixels, 0)[:, ::-1].T
    channels = [
        ndimage.map_coordinates(image[..., k], at, order=1, mode="nearest") for k in range(3)
    ]
    found: RGB = np.where(seen[:, None], np.stack(channels, axis=1), 0).reshape(image.shape)
    return found.astype(np.uint8)


def _check_numbers(width: int, height: int, size: tuple[int, int] | None, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(f"{name}: the image is {width}x{height}; expected up to 2^27 pixels")
    if size is not None and (width, height) != size:
        raise InputError(
            f"{name}: the image is {width}x{height}, its camera model is for {size[0]}x{size[1]}; "
            "give the calibration of the images as stored"
        )


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of a PNG, JPEG, WebP or TIFF file; reads the header only.

    Raises:
        InputError: the file is missing or not such an image.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            result: tuple[int, int] = image.size
            return result
    except Exception as error:  # decoders raise various errors
        raise InputError(f"{path}: not a readable image: {error}") from error


def image_from_message(
    message: ImageMessage, name: str = "image", size: tuple[int, int] | None = None
) -> RGB:
    """Convert a `sensor_msgs/Image` to (H, W, 3) uint8 RGB.

    16-bit images keep their upper 8 bits; Bayer mosaics are interpolated; YUV (4:2:2 packed, nv12,
    nv21) is BT.601 of 16 to 235, as in OpenCV.

    Args:
        message: the message.
        name: in error messages.
        size: expected (width, height); None accepts any up to 2^27 pixels.

    Raises:
        InputError: an encoding without colors (such as depth), too few bytes, or another size.
    """
    encoding = message.encoding.strip().lower()
    pattern = encoding.rstrip("0123456789")
    _check_numbers(int(message.width), int(message.height), size, name)
    if encoding in _PACKED:
        channels, kind, order = _PACKED[encoding]
        pixels = _unpack(message, channels, kind, name)
        return np.ascontiguousarray(_eight_bits(pixels)[:, :, list(order)])
    if pattern in _BAYER:
        mosaic = _unpack(message, 1, "u2" if encoding.endswith("16") else "u1", name)
        return _demosaic(_eight_bits(mosaic)[:, :, 0], _BAYER[pattern])
    if encoding in _PACKED_YUV:
        return _from_packed_yuv(message, _PACKED_YUV[encoding], name)
    if encoding in _PLANAR_YUV:
        return _from_planar_yuv(message, _PLANAR_YUV[encoding], name)
    bayer = [f"{pattern}8" for pattern in _BAYER]
    known = ", ".join([*_PACKED, *bayer, *_PACKED_YUV, *_PLANAR_YUV])
    raise InputError(
        f"{name}: image encoding '{message.encoding[:40]}' is not supported; expected one of "
        f"{known}"
    )


def _unpack(message: ImageMessage, channels: int, kind: str, name: str) -> npt.NDArray[Any]:
    """View the pixels as (H, W, channels), after a check of the sizes."""
    dtype = np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
    height, width = int(message.height), int(message.width)
    rows = _rows(message, height, width * channels * dtype.itemsize, name)
    result: npt.NDArray[Any] = rows.view(dtype).reshape(height, width, channels)
    return result


def _rows(message: ImageMessage, height: int, row: int, name: str) -> RGB:
    """The first `height` rows of the data, without padding: (height, row) uint8."""
    step = int(message.step)
    data = np.frombuffer(message.data, dtype=np.uint8)
    if height < 1 or row < 1 or step < row or len(data) < step * (height - 1) + row:
        raise InputError(
            f"{name}: a {message.width}x{message.height} {message.encoding} image needs rows of "
            f"{row} bytes or more; this one has step {step} and {len(data)} bytes in all"
        )
    # The last row may lack its padding. A single row needs no step, which may be anything.
    strides = (step if height > 1 else row, 1)
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(data, (height, row), strides))


def _from_packed_yuv(message: ImageMessage, order: tuple[int, int, int, int], name: str) -> RGB:
    height, width = int(message.height), int(message.width)
    pairs = _rows(message, height, (width + width % 2) * 2, name).reshape(height, -1, 4)
    luma = np.stack([pairs[:, :, order[0]], pairs[:, :, order[2]]], axis=2).reshape(height, -1)
    u, v = (np.repeat(pairs[:, :, order[k]], 2, axis=1) for k in (1, 3))
    return _rgb_of_yuv(luma, u, v)[:, :width]


def _from_planar_yuv(message: ImageMessage, order: tuple[int, int], name: str) -> RGB:
    """nv12 and nv21: all Y, then rows of U and V for each second row and column."""
    height, width = int(message.height), int(message.width)
    if height % 2 or width % 2:
        raise InputError(
            f"{name}: a {width}x{height} {message.encoding} image; expected even sizes"
        )
    planes = _rows(message, height + height // 2, width, name)
    pairs = planes[height:].reshape(height // 2, width // 2, 2)
    u, v = (np.repeat(np.repeat(pairs[:, :, k], 2, axis=0), 2, axis=1) for k in order)
    return _rgb_of_yuv(planes[:height], u, v)


def _rgb_of_yuv(luma: RGB, u: RGB, v: RGB) -> RGB:
    """BT.601 with Y of 16 to 235, in OpenCV's integers of 20 bits: (H, W) each to (H, W, 3)."""
    y = np.maximum(luma.astype(np.int32) - 16, 0) * 1220542 + (1 << 19)
    blue, red = u.astype(np.int32) - 128, v.astype(np.int32) - 128
    channels = (y + 1673527 * red, y - 852492 * red - 409993 * blue, y + 2116026 * blue)
    return np.stack([np.clip(c >> 20, 0, 255).astype(np.uint8) for c in channels], axis=2)


def _demosaic(mosaic: RGB, pattern: tuple[int, int, int, int]) -> RGB:
    """Bilinear interpolation of the two colors that each pixel (H, W) of a mosaic lacks."""
    kernel = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=np.float32)
    colors = np.empty((*mosaic.shape, 3), dtype=np.uint8)
    for color in range(3):
        known = np.zeros(mosaic.shape, dtype=np.float32)
        for place, here in enumerate(pattern):
            known[place // 2 :: 2, place % 2 :: 2] = here == color
        total = ndimage.convolve(known * mosaic, kernel, mode="constant")
        mean = total / ndimage.convolve(known, kernel, mode="constant")
        colors[:, :, color] = np.where(known > 0, mosaic, np.rint(mean))
    return colors


def _eight_bits(pixels: npt.NDArray[Any]) -> RGB:
    return pixels if pixels.dtype.itemsize == 1 else (pixels >> 8).astype(np.uint8)


def _stack(gray: RGB) -> RGB:
    return np.repeat(gray[:, :, None], 3, axis=2)
