# SPDX-License-Identifier: Apache-2.0
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from recordings import picture, png, put

from pcseg_core.data.images import decode_image, image_from_message, read_image
from pcseg_core.errors import InputError


def _message(pixels: np.ndarray, encoding: str, pad: int = 0, big: bool = False) -> SimpleNamespace:
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1).view(np.uint8).reshape(height, -1)
    step = rows.shape[1] + pad
    data = np.zeros((height, step), dtype=np.uint8)
    data[:, : rows.shape[1]] = rows
    return SimpleNamespace(
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(big),
        step=step,
        data=data.reshape(-1),
    )


RED = np.array([[[200, 20, 10]]], dtype=np.uint8)


@pytest.mark.parametrize(
    ("encoding", "pixel", "expected"),
    [
        ("rgb8", [200, 20, 10], [200, 20, 10]),
        ("bgr8", [10, 20, 200], [200, 20, 10]),
        ("RGBA8", [200, 20, 10, 255], [200, 20, 10]),
        ("bgra8", [10, 20, 200, 255], [200, 20, 10]),
        ("8UC3", [10, 20, 200], [200, 20, 10]),
        ("mono8", [77], [77, 77, 77]),
    ],
)
@pytest.mark.parametrize("pad", [0, 3])
def test_encodings(encoding: str, pixel: list[int], expected: list[int], pad: int) -> None:
    pixels = np.tile(np.array(pixel, dtype=np.uint8), (2, 3, 1))
    image = image_from_message(_message(pixels, encoding, pad))
    assert image.shape == (2, 3, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image[1, 2], expected)


@pytest.mark.parametrize("big", [False, True])
def test_sixteen_bits_keep_the_upper_eight(big: bool) -> None:
    pixels = np.array([[0x1234, 0xFF00]], dtype=">u2" if big else "<u2")[:, :, None]
    image = image_from_message(_message(pixels, "mono16", big=big))
    np.testing.assert_array_equal(image[0, :, 0], [0x12, 0xFF])


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_of_an_even_color_is_that_color(pattern: str) -> None:
    color = {"r": 200, "g": 120, "b": 40}
    tile = np.array([color[c] for c in pattern], dtype=np.uint8).reshape(2, 2)
    image = image_from_message(_message(np.tile(tile, (3, 4))[:, :, None], f"bayer_{pattern}8"))
    np.testing.assert_array_equal(image, np.tile([200, 120, 40], (6, 8, 1)))


def test_bayer_interpolates_and_keeps_known_pixels() -> None:
    mosaic = np.zeros((4, 4), dtype=np.uint8)
    mosaic[0, 0], mosaic[0, 2], mosaic[2, 0], mosaic[2, 2] = 10, 30, 50, 70  # red of rggb
    red = image_from_message(_message(mosaic[:, :, None], "bayer_rggb8"))[:, :, 0]
    np.testing.assert_array_equal(red[:3, :3], [[10, 20, 30], [30, 40, 50], [50, 60, 70]])


def test_last_row_without_padding() -> None:
    message = _message(np.tile(RED, (2, 3, 1)), "rgb8", pad=3)
    message.data = message.data[:-3]
    assert image_from_message(message).shape == (2, 3, 3)


@pytest.mark.parametrize("encoding", ["32FC1", "16UC1", "yuv422", ""])
def test_images_without_colors_are_refused(encoding: str) -> None:
    with pytest.raises(InputError, match="encoding"):
        image_from_message(_message(np.zeros((2, 2, 4), np.uint8), encoding))


def test_truncated_message() -> None:
    message = _message(np.tile(RED, (4, 4, 1)), "rgb8")
    message.data = message.data[:20]
    with pytest.raises(InputError, match=r"/front: a 4x4 rgb8 image needs rows of 12 bytes"):
        image_from_message(message, "/front")


def test_png_modes() -> None:
    gray, deep, palette = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full((2, 2), 9, np.uint8)).save(gray, "PNG")
    Image.fromarray(np.full((2, 2), 0x4321, np.uint16)).save(deep, "PNG")
    Image.fromarray(picture()).convert("P").save(palette, "PNG")
    np.testing.assert_array_equal(decode_image(gray.getvalue())[0, 0], [9, 9, 9])
    np.testing.assert_array_equal(decode_image(deep.getvalue())[0, 0], [0x43] * 3)
    assert decode_image(palette.getvalue()).shape == (20, 40, 3)


@pytest.mark.parametrize("cut", [0, 8, 60, -100])
def test_truncated_png_is_named(tmp_path, cut: int) -> None:
    path = put(tmp_path / "broken.png", png(picture())[:cut])
    with pytest.raises(InputError, match=r"broken\.png"):
        read_image(path)


def test_missing_and_wrongly_sized_files(tmp_path) -> None:
    with pytest.raises(InputError, match=r"absent\.png"):
        read_image(tmp_path / "absent.png")
    path = put(tmp_path / "small.png", png(picture()))
    with pytest.raises(InputError, match="40x20, its camera model is for 80x40"):
        read_image(path, (80, 40))
