# SPDX-License-Identifier: Apache-2.0
"""Decode image files, compressed messages and `sensor_msgs/Image` messages to RGB."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from pcseg_core.errors import InputError

RGB = npt.NDArray[np.uint8]
Size: TypeAlias = "tuple[int, int] | None"
"""Expected (width, height) of an image; None accepts any."""

MAX_PIXELS = 80_000_000
"""Larger images are refused before they are decoded."""
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")

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


def read_image(path: str | Path, size: Size = None) -> RGB:
    """Read an image file as (H, W, 3) uint8 RGB; gray becomes three equal channels.

    Args:
        path: the file.
        size: expected (width, height), compared before the pixels are decoded.

    Raises:
        InputError: the file is missing, truncated, not an image, or of another size.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the image: {error.strerror or error}") from error
    return decode_image(content, str(path), size)


def decode_image(
    data: bytes | memoryview | npt.NDArray[np.uint8], name: str = "image", size: Size = None
) -> RGB:
    """Decode the bytes of a PNG, JPEG, WebP or TIFF file to (H, W, 3) uint8 RGB.

    Args:
        data: the file.
        name: names the image in the error.
        size: expected (width, height), compared before the pixels are decoded.

    Raises:
        InputError: the bytes are not a complete image of these formats, or of another size.
    """
    content = data if isinstance(data, bytes) else bytes(data)
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _check_size(image.size, size, name)
            if image.mode.startswith("I;16") or image.mode == "I":
                return _stack(_eight_bits(np.asarray(image).astype(np.uint16)))
            return np.array(image.convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # Pillow raises exceptions of many kinds for damaged files
        raise InputError(
            f"{name}: the image does not decode ({error}); expected a whole PNG, JPEG, WebP or "
            f"TIFF of {len(content)} bytes"
        ) from error


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of an image file; reads the header only.

    Raises:
        InputError: the file is missing, not an image, or too large.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check_size(image.size, None, str(path))
            return image.size
    except InputError:
        raise
    except Exception as error:  # Pillow raises exceptions of many kinds for damaged files
        raise InputError(f"{path}: not a readable image: {error}") from error


def image_from_message(message: ImageMessage, name: str = "image", size: Size = None) -> RGB:
    """Convert a `sensor_msgs/Image` to (H, W, 3) uint8 RGB.

    16-bit images keep their upper 8 bits; Bayer mosaics are interpolated.

    Args:
        message: the image.
        name: names the image in the error.
        size: expected (width, height), compared before the pixels are converted.

    Raises:
        InputError: an encoding without colors (such as depth), too few bytes, or another size.
    """
    _check_size((int(message.width), int(message.height)), size, name)
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
    # A view of the rows without their padding, which the last one may lack.
    rows = np.ndarray((height, row), np.uint8, data, strides=(step, 1))
    return np.ascontiguousarray(rows).view(dtype).reshape(height, width, channels)


def _check_size(found: tuple[int, int], size: Size, name: str) -> None:
    """Refuse a (width, height) that is not the expected one, or too large."""
    width, height = found
    if size is not None and found != size:
        raise InputError(
            f"{name}: the image is {width}x{height}, its camera model is for {size[0]}x{size[1]}; "
            "give the calibration of the images as stored"
        )
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name}: the image is {width}x{height}; at most {MAX_PIXELS:,} pixels are decoded"
        )


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
