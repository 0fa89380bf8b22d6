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


@pytest.mark.parametrize("encoding", ["32FC1", "16UC1", "yuv444", ""])
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


def test_a_tiff_whose_offsets_are_fractions_is_named() -> None:
    """Pillow raises TypeError for it."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(buffer, "TIFF")
    content = bytearray(buffer.getvalue())
    start = int.from_bytes(content[4:8], "little")
    entries = range(start + 2, start + 2 + 12 * content[start], 12)
    (strips,) = (at for at in entries if int.from_bytes(content[at : at + 2], "little") == 273)
    content[strips + 2] = 5  # a fraction of two numbers elsewhere in the file
    with pytest.raises(InputError, match="front: the image does not decode"):
        decode_image(bytes(content), "front")


def test_missing_and_wrongly_sized_files(tmp_path) -> None:
    with pytest.raises(InputError, match=r"absent\.png"):
        read_image(tmp_path / "absent.png")
    path = put(tmp_path / "small.png", png(picture()))
    with pytest.raises(InputError, match="40x20, its camera model is for 80x40"):
        read_image(path, (80, 40))


def _yuv_pixel(y: int, u: int, v: int) -> list[int]:
    """BT.601, 16 to 235, in floating point."""
    luma, blue, red = 1.164 * max(0, y - 16), u - 128, v - 128
    exact = (luma + 1.596 * red, luma - 0.813 * red - 0.391 * blue, luma + 2.018 * blue)
    return [round(min(255.0, max(0.0, value))) for value in exact]


PLACES = {"yuv422": "UYVY", "uyvy": "UYVY", "yuv422_yuy2": "YUYV", "yuyv": "YUYV"}


@pytest.mark.parametrize("encoding", PLACES)
@pytest.mark.parametrize("pad", [0, 6])
def test_packed_yuv_by_hand(encoding: str, pad: int) -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 256, (5, 4, 4), dtype=np.uint8)  # 5 rows of 4 pairs
    image = image_from_message(_message(values.reshape(5, 8, 2), encoding, pad))
    assert image.shape == (5, 8, 3)
    for row, pair, side in np.ndindex(5, 4, 2):
        given = dict(
            zip(PLACES[encoding].replace("Y", "y", 1).replace("Y", "z"), values[row, pair])
        )
        luma = int(given["z" if side else "y"])
        expected = _yuv_pixel(luma, int(given["U"]), int(given["V"]))
        np.testing.assert_allclose(image[row, 2 * pair + side], expected, atol=1)


@pytest.mark.parametrize("encoding", ["nv12", "nv21"])
@pytest.mark.parametrize("pad", [0, 5])
def test_planar_yuv_by_hand(encoding: str, pad: int) -> None:
    planes = np.random.default_rng(2).integers(0, 256, (9, 8, 1), dtype=np.uint8)
    message = _message(planes, encoding, pad)
    message.height = 6
    image = image_from_message(message)
    assert image.shape == (6, 8, 3)
    for row, column in np.ndindex(6, 8):
        first, second = planes[6 + row // 2, column // 2 * 2 : column // 2 * 2 + 2, 0].tolist()
        u, v = (first, second) if encoding == "nv12" else (second, first)
        expected = _yuv_pixel(int(planes[row, column, 0]), u, v)
        np.testing.assert_allclose(image[row, column], expected, atol=1)


def test_yuv_equals_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(3)
    packed = rng.integers(0, 256, (32, 48, 2), dtype=np.uint8)
    planes = rng.integers(0, 256, (48, 48, 1), dtype=np.uint8)
    codes = {"yuv422": cv2.COLOR_YUV2RGB_UYVY, "yuyv": cv2.COLOR_YUV2RGB_YUY2}
    for encoding, code in codes.items():
        image = image_from_message(_message(packed, encoding))
        np.testing.assert_array_equal(image, cv2.cvtColor(packed, code))
    codes = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21}
    for encoding, code in codes.items():
        message = _message(planes, encoding)
        message.height = 32
        image = image_from_message(message)
        np.testing.assert_array_equal(image, cv2.cvtColor(planes, code))


def test_a_row_of_any_step_needs_no_memory() -> None:
    message = _message(RED, "rgb8")
    message.step = 2**32 - 1
    np.testing.assert_array_equal(image_from_message(message), RED)


def test_the_size_is_checked_before_the_pixels_are_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("L", (6000, 6000)).save(buffer, "PNG")
    cut = buffer.getvalue()[:200]  # the header is whole, the pixels are not
    with pytest.raises(InputError, match="6000x6000, its camera model is for 40x20"):
        decode_image(cut, "/front", (40, 20))


def test_videos_and_rare_formats_are_refused() -> None:
    with pytest.raises(InputError, match=r"a video \(h264\)"):
        decode_image(bytes(10), "/front", format="bgr8; h264")
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "GIF")
    with pytest.raises(InputError, match="does not decode"):
        decode_image(buffer.getvalue())
