# SPDX-License-Identifier: Apache-2.0
"""Bounds of images: refused by their header, before the pixels take memory."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pcseg_core.data.images import MAX_PIXELS, decode_image, image_from_message, image_size
from pcseg_core.errors import InputError


def raw(width: int, height: int, encoding: str = "rgb8", channels: int = 3) -> SimpleNamespace:
    """An image message of zeros."""
    step = width * channels
    data = np.zeros(height * step, np.uint8)
    return SimpleNamespace(
        height=height, width=width, encoding=encoding, is_bigendian=0, step=step, data=data
    )


def _peak_bytes(refused: Callable[[], object], expected: str) -> int:
    """Memory that a refusal takes."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=expected):
            refused()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _black_png(width: int, height: int) -> bytes:
    """A PNG whose file is small for its size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        sum_ = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", sum_)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(width + 1) * height)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_huge_step_takes_no_memory() -> None:
    message = raw(1, 1)
    message.step = 2**32 - 1
    tracemalloc.start()
    image = image_from_message(message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.shape == (1, 1, 3)
    assert peak < 1e6


def test_a_step_beyond_the_data_is_refused() -> None:
    message = raw(1, 2)
    message.step = 2**32 - 1
    with pytest.raises(InputError, match="this one has step 4294967295"):
        image_from_message(message)


def test_sizes_are_compared_before_pixels_are_decoded() -> None:
    file = _black_png(4000, 4000)
    expected = "4000x4000, its camera model is for 64x48"
    assert _peak_bytes(lambda: decode_image(file, size=(64, 48)), expected) < 4e6
    message = raw(2000, 2000, "bayer_rggb8", 1)
    refused = lambda: image_from_message(message, size=(64, 48))  # noqa: E731
    assert _peak_bytes(refused, "2000x2000, its camera model is for 64x48") < 1e6


@pytest.mark.filterwarnings("ignore:Image size")  # Pillow has a limit of its own
def test_images_that_are_too_large_are_refused() -> None:
    file = _black_png(MAX_PIXELS // 1000, 1001)
    with pytest.raises(InputError, match=r"expected up to 2\^27 pixels"):
        decode_image(file)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_formats_that_are_decoded(kind: str) -> None:
    content = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(content, kind)
    assert np.abs(decode_image(content.getvalue()).astype(int) - 90).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "BMP", "PPM", "EPS", "PCX", "ICO"])
def test_other_formats_are_refused(kind: str) -> None:
    content = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(content, kind)
    with pytest.raises(InputError, match="does not decode"):
        decode_image(content.getvalue())


@pytest.mark.parametrize("kind", ["GIF", "PPM", "EPS"])
def test_sizes_come_from_the_decoders_of_the_images(tmp_path, kind: str) -> None:
    """Other decoders of Pillow, which images are not read with, see no file either."""
    path = tmp_path / "front.png"
    Image.new("RGB", (4, 3)).save(path, kind)
    with pytest.raises(InputError, match="front.png: not a readable image"):
        image_size(path)
