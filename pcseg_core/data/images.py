# SPDX-License-Identifier: Apache-2.0
"""Decode image files, compressed messages and `sensor_msgs/Image` messages to RGB."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

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
    return check_size(decode_image(content, str(path)), size, str(path))


def check_size(image: RGB, size: tuple[int, int] | None, name: str) -> RGB:
    """The image; raises InputError unless it has the (width, height) of its camera."""
    height, width = image.shape[:2]
    if size is not None and (width, height) != size:
        raise InputError(
            f"{name}: the image is {width}x{height}, its camera model is for {size[0]}x{size[1]}; "
            "give the calibration of the images as stored"
        )
    return image


def decode_image(data: bytes | memoryview | npt.NDArray[np.uint8], name: str = "image") -> RGB:
    """Decode the bytes of a PNG, JPEG or other image file to (H, W, 3) uint8 RGB.

    Raises:
        InputError: the bytes are not a complete image of a known format; the message has `name`.
    """
    content = data if isinstance(data, bytes) else bytes(data)
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith("I;16") or image.mode == "I":
                return _stack(_eight_bits(np.asarray(image).astype(np.uint16)))
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{name}: the image does not decode ({error}); expected a whole PNG or JPEG of "
            f"{len(content)} bytes"
        ) from error


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of an image file; reads the header only.

    Raises:
        InputError: the file is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable image: {error}") from error


def image_from_message(message: ImageMessage, name: str = "image") -> RGB:
    """Convert a `sensor_msgs/Image` to (H, W, 3) uint8 RGB.

    16-bit images keep their upper 8 bits; Bayer mosaics are interpolated.

    Raises:
        InputError: an encoding without colors (such as depth), or too few bytes.
    """
    encoding = message.encoding.strip().lower()
    pattern = encoding.rstrip("0123456789")
    if encoding in _PACKED:
        channels, kind, order = _PACKED[encoding]
        pixels = _unpack(message, channels, kind, name)
        return np.ascontiguousarray(_eight_bits(pixels)[:, :, list(order)])
    if pattern in _BAYER:
        mosaic = _unpack(message, 1, "u2" if encoding.endswith("16") else "u1", name)
        return _demosaic(_eight_bits(mosaic)[:, :, 0], _BAYER[pattern])
    known = ", ".join([*_PACKED, *(f"{pattern}8" for pattern in _BAYER)])
    raise InputError(
        f"{name}: image encoding '{message.encoding}' is not supported; expected one of {known}"
    )


def _unpack(message: ImageMessage, channels: int, kind: str, name: str) -> npt.NDArray[Any]:
    """View the pixels as (H, W, channels), after a check of the sizes."""
    dtype = np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
    height, width, step = int(message.height), int(message.width), int(message.step)
    row = width * channels * dtype.itemsize
    data = np.frombuffer(message.data, dtype=np.uint8)
    if height < 1 or width < 1 or step < row or len(data) < step * (height - 1) + row:
        raise InputError(
            f"{name}: a {width}x{height} {message.encoding} image needs rows of {row} bytes or "
            f"more; this one has step {step} and {len(data)} bytes in all"
        )
    data = np.pad(data, (0, max(0, step * height - len(data))))  # the last row may lack padding
    rows = np.ascontiguousarray(data[: step * height].reshape(height, step)[:, :row])
    return rows.view(dtype).reshape(height, width, channels)


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
