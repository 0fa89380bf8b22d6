# SPDX-License-Identifier: Apache-2.0
"""Picture of the points of a sweep over its images, to check the calibration by eye."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from pcseg_core.data.sample import Sample
from pcseg_core.errors import InputError
from pcseg_core.files import atomic_path
from pcseg_core.projection import project_sample

RGB = npt.NDArray[np.uint8]
DEPTHS_M = (2.0, 60.0)  # range of the logarithmic color scale
TILE_WIDTH = 1242
BAR_HEIGHT = 28


def draw_overlay(sample: Sample, path: str | Path) -> None:
    """Draw the visible points of a sweep over every image of the sample, colored by depth.

    Raises:
        InputError: the sample has no images, one does not decode, or `path` cannot be written.
    """
    if not sample.cameras:
        raise InputError(f"{sample.name}: no camera has an image here, so there is nothing to draw")
    tiles = [_tile(sample, k) for k in range(len(sample.cameras))]
    columns = 1 if len(tiles) < 3 else 2 if len(tiles) < 5 else 3
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    width = columns * max(tile.width for tile in tiles)
    sheet = Image.new("RGB", (width, sum(heights) + BAR_HEIGHT))
    y = 0
    for row, height in zip(rows, heights):
        for column, tile in enumerate(row):
            sheet.paste(tile, (column * width // columns, y))
        y += height
    sheet.paste(_scale_bar(width), (0, y))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def depth_colors(depth: npt.NDArray[np.float32]) -> RGB:
    """(N, 3) colors of depths [m], from near (red) to far (blue)."""
    from matplotlib import colormaps

    near, far = (math.log(end) for end in DEPTHS_M)
    place = (np.log(np.maximum(depth, 1e-3)) - near) / (far - near)
    colors: RGB = colormaps["turbo"](1.0 - np.clip(place, 0.0, 1.0), bytes=True)[..., :3]
    return colors


def _tile(sample: Sample, k: int) -> Image.Image:
    frame = sample.cameras[k]
    pixels = np.array(frame.image)
    projection = project_sample(sample, k)
    far_first = np.argsort(-projection.depth[projection.visible])
    rows, columns = (index[far_first] for index in projection.pixels())
    colors = depth_colors(projection.depth[projection.visible][far_first])
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):  # points two pixels wide
        inside = (rows + dy < pixels.shape[0]) & (columns + dx < pixels.shape[1])
        pixels[rows[inside] + dy, columns[inside] + dx] = colors[inside]
    tile = Image.fromarray(pixels)
    if tile.width > TILE_WIDTH:
        tile = tile.resize((TILE_WIDTH, round(tile.height * TILE_WIDTH / tile.width)))
    offset_ms = (frame.stamp_ns - sample.stamp_ns) * 1e-6
    share = projection.visible.sum() / max(1, int(sample.cloud.finite.sum()))
    _caption(tile, f"{frame.name}   image {offset_ms:+.1f} ms   sees {share:.1%} of the points")
    return tile


def _scale_bar(width: int) -> Image.Image:
    """The color scale of the depths, with tick labels."""
    near, far = (math.log(end) for end in DEPTHS_M)
    depths = np.exp(np.linspace(near, far, width)).astype(np.float32)
    bar = Image.fromarray(np.repeat(depth_colors(depths)[None], BAR_HEIGHT, axis=0))
    draw = ImageDraw.Draw(bar)
    for meters in (2, 5, 10, 20, 40, 60):
        x = (math.log(meters) - near) / (far - near) * width
        draw.text(
            (min(x + 4, width - 40), 8),
            f"{meters} m",
            fill="white",
            stroke_width=2,
            stroke_fill="black",
        )
    return bar


def _caption(tile: Image.Image, text: str) -> None:
    ImageDraw.Draw(tile).text((6, 4), text, fill="white", stroke_width=2, stroke_fill="black")
