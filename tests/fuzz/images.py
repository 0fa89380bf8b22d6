# SPDX-License-Identifier: Apache-2.0
"""Image, CompressedImage and CameraInfo messages, and image files."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from pcseg_core.camera import CameraModel
from pcseg_core.data.bag_reader import CAMERA_INFO, IMAGE, type_store
from pcseg_core.data.images import decode_image, image_from_message, image_size, read_image
from pcseg_core.data.messages import camera_info, header
from pcseg_core.errors import InputError

from .harness import Target
from .mutations import FLOATS, floats, mutated

ENCODINGS = (
    *("rgb8", "bgr8", "rgba8", "bgra8", "8UC3", "8UC4", "mono8", "8UC1", "rgb16", "bgra16"),
    *("mono16", "bayer_rggb8", "bayer_gbrg16", "yuv422", "uyvy", "yuv422_yuy2", "nv12", "nv21"),
    *("32FC1", "16UC1", "", "rgb8\x00", "x" * 500),
)
BYTES = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "8UC3": 3, "8UC4": 4, "rgb16": 6}
BYTES |= {"bgra16": 8, "mono16": 2, "bayer_gbrg16": 2, "yuv422": 2, "uyvy": 2, "yuv422_yuy2": 2}


@st.composite
def images(draw: st.DrawFn) -> bytes:
    """A serialized Image; most have enough bytes."""
    encoding = draw(st.sampled_from(ENCODINGS))
    sizes = st.sampled_from([0, 1, 2, 3, 4, 6, 7, 16, 31])
    height, width = draw(sizes), draw(sizes)
    step = (width + width % 2) * BYTES.get(encoding, 1) + draw(st.sampled_from([0, 0, 1, 2, 64]))
    rows = height + height // 2 if encoding.startswith("nv") else height
    size = max(0, rows * step + draw(st.sampled_from([0, 0, 0, -1, 1, -64, 5000])))
    if draw(st.integers(0, 3)) == 0:
        numbers = st.sampled_from([0, 1, 5, 2**13, 2**16, 2**27, 2**31, 2**32 - 1])
        height, width, step = (draw(st.one_of(st.just(v), numbers)) for v in (height, width, step))
    pixels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, size, dtype=np.uint8)
    message = type_store().types[IMAGE](
        header=header("camera", 10**18),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=draw(st.sampled_from([0, 1, 255])),
        step=step,
        data=pixels,
    )
    raw = bytes(type_store().serialize_cdr(message, IMAGE))
    return draw(mutated([raw], 2)) if draw(st.integers(0, 7)) == 0 else raw


def deserialized(case: bytes, msgtype: str, name: str) -> Any:
    """The message of a case; InputError for bytes that are none."""
    try:
        return type_store().deserialize_cdr(case, msgtype)
    except Exception as error:  # not of this project
        raise InputError(f"{name}: {type(error).__name__}") from error


def check_image(case: bytes, folder: Path) -> None:
    """(H, W, 3) uint8, the same with other padding, and refused for another size."""
    msg = deserialized(case, IMAGE, "front")
    pixels = image_from_message(msg, "front")
    height, width = int(msg.height), int(msg.width)
    assert pixels.shape == (height, width, 3) and pixels.dtype == np.uint8
    assert np.array_equal(image_from_message(msg, "front", (width, height)), pixels)
    must_refuse(lambda: image_from_message(msg, "front", (width + 1, height)))
    rows = height + height // 2 if msg.encoding.strip().lower().startswith("nv") else height
    step = min(int(msg.step), len(msg.data)) if rows == 1 else int(msg.step)
    padded = np.full((rows, step + 6), 0x5A, np.uint8)
    source = np.zeros(rows * step, np.uint8)
    source[: min(len(source), len(msg.data))] = msg.data[: len(source)]
    padded[:, :step] = source.reshape(rows, step)
    other = SimpleNamespace(
        height=height,
        width=width,
        encoding=msg.encoding.upper(),
        is_bigendian=msg.is_bigendian,
        step=step + 6,
        data=padded.reshape(-1),
    )
    assert np.array_equal(image_from_message(other, "front"), pixels)


def must_refuse(call: Any) -> None:
    """Fail unless the call raises InputError."""
    try:
        call()
    except InputError:
        return
    raise AssertionError("a size that the input does not have is accepted")


@functools.cache
def pictures() -> list[bytes]:
    """Small files of many formats and modes."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 17, 3), dtype=np.uint8)
    color = Image.fromarray(pixels)
    deep = Image.fromarray(rng.integers(0, 65536, (12, 17), dtype=np.uint16))
    kinds = [("PNG", color), ("JPEG", color), ("WEBP", color), ("TIFF", color), ("GIF", color)]
    kinds += [("BMP", color), ("PNG", deep), ("TIFF", deep), ("PNG", color.convert("P"))]
    kinds += [("PNG", color.convert("RGBA")), ("PNG", color.convert("1")), ("TIFF", color)]
    kinds += [("JPEG", color.convert("CMYK")), ("PPM", color), ("JPEG2000", color)]
    found = []
    for number, (kind, image) in enumerate(kinds):
        buffer = io.BytesIO()
        options = {"compression": "tiff_lzw"} if number == 11 else {}
        image.save(buffer, kind, **options)
        found.append(buffer.getvalue())
    return found


def check_picture(case: bytes, folder: Path) -> None:
    """A decoded image has the size that its header says."""
    path = folder / "front.png"
    path.write_bytes(case)
    sizes: list[tuple[int, int]] = []
    try:
        sizes.append(image_size(path))
    except InputError as error:
        assert "front" in str(error) and len(str(error)) < 1000
    pixels = decode_image(case, "front")
    height, width = pixels.shape[:2]
    assert pixels.shape == (height, width, 3) and pixels.dtype == np.uint8
    assert sizes == [(width, height)]
    assert np.array_equal(read_image(path, (width, height)), pixels)
    must_refuse(lambda: decode_image(np.frombuffer(case, np.uint8), "front", (width, height + 1)))


@st.composite
def camera_infos(draw: st.DrawFn) -> bytes:
    """A serialized CameraInfo: a good one with some numbers replaced."""
    focal = draw(st.sampled_from([30.0, 500.0, 0.0, 1e-3, 1e6]))
    camera = CameraModel.pinhole(focal or 1.0, 40.0, 19.5, 9.5, 40, 20)
    message = camera_info(camera, "camera", 10**18)
    message.k[0] = focal
    count = draw(st.sampled_from([0, 4, 5, 5, 8, 12, 14, 3, 20]))
    small = st.floats(-0.5, 0.5, width=32)
    message.d = np.array(draw(st.lists(small, min_size=count, max_size=count)), np.float64)
    models = ["", "none", "plumb_bob", "plumb_bob", "rational_polynomial", "equidistant", "x" * 300]
    message.distortion_model = draw(st.sampled_from([*models, "fisheye", "thin_prism"]))
    if draw(st.booleans()):
        angle = draw(st.sampled_from([0.0, 0.01, 1.0]))
        c, s = np.cos(angle), np.sin(angle)
        message.r = np.array([c, -s, 0, s, c, 0, 0, 0, 1], np.float64)
    for name in draw(st.lists(st.sampled_from(["d", "k", "r", "p"]), max_size=2)):
        values = getattr(message, name)
        if len(values):
            values[draw(st.integers(0, len(values) - 1))] = draw(floats())
    if draw(st.booleans()):
        whole = st.sampled_from([0, 1, 2, 5, 19, 40, 41, 2**31, 2**32 - 1])
        message.binning_x, message.binning_y = draw(whole), draw(whole)
        message.roi.x_offset, message.roi.width = draw(whole), draw(whole)
        message.height, message.width = draw(whole), draw(whole)
    raw = bytes(type_store().serialize_cdr(message, CAMERA_INFO))
    return draw(mutated([raw], 2)) if draw(st.integers(0, 5)) == 0 else raw


def check_camera(case: bytes, folder: Path) -> None:
    """Valid pixels are finite, and each pixel is seen by the ray that it is unprojected to."""
    info = deserialized(case, CAMERA_INFO, "camera")
    rng = np.random.default_rng(len(case))
    points = rng.normal(0, 10, (64, 3))
    points[:11, rng.integers(3)] = FLOATS
    refused = []
    for rectified in (False, True):
        try:
            camera = CameraModel.from_camera_info(info, rectified)
        except InputError as error:
            refused.append(error)
            continue
        uv, valid = camera.project(points)
        assert uv.shape == (64, 2) and valid.shape == (64,)
        assert np.isfinite(uv[valid]).all() and np.isnan(uv[~valid]).all()
        assert not camera.contains(uv[~valid]).any()
        _check_inverse(camera, rng)
        half = camera.scaled(max(1, camera.width // 2), max(1, camera.height // 2))
        assert half.project(points)[1].shape == (64,)
    if len(refused) == 2:
        raise refused[0]


def _check_inverse(camera: CameraModel, rng: np.random.Generator) -> None:
    usual = 1 < camera.K[0, 0] < 1e4 and 1 < camera.K[1, 1] < 1e4 and abs(camera.K[0, 1]) < 1e3
    usual = usual and abs(camera.K[:2, 2]).max() < 1e5 and np.abs(camera._offset).max() < 1e-3
    usual = usual and max(camera.width, camera.height) < 1e4
    usual = usual and np.abs(camera.R @ camera.R.T - np.eye(3)).max() < 1e-6
    pixels = rng.uniform(-0.5, (camera.width - 0.5, camera.height - 0.5), (50, 2))
    rays = camera.unproject(pixels, np.full(50, 20.0))
    assert rays.shape == (50, 3)
    seen = np.isfinite(rays).all(axis=1) & (rays[:, 2] > 1)
    if usual and seen.any() and np.linalg.det(camera.R) > 0:
        uv, valid = camera.project(rays[seen])
        assert np.abs(uv[valid] - pixels[seen][valid]).max(initial=0) < 0.1


TARGETS = (
    Target("image", images, check_image, ("front",), 200),
    Target("picture", lambda: mutated(pictures()), check_picture, ("front",), 150),
    Target("camera-info", camera_infos, check_camera, ("camera",), 100),
)
