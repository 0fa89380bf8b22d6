# SPDX-License-Identifier: Apache-2.0
"""Picture of depth edges over the edges of images, before and after the correction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from pcseg_core.calibration.alignment import View, pixels
from pcseg_core.calibration.calibrate import Checked
from pcseg_core.calibration.verdict import CameraVerdict
from pcseg_core.data.bag_picture import depth_colors
from pcseg_core.files import atomic_path

RGB = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]

_IMAGES = 2  # of each camera
_TILE_WIDTH = 960
_DIM = 0.45  # brightness of the image below the points


def draw_checked(checked: Checked, path: str | Path) -> None:
    """Draw two images of each camera with depth edges, colored by depth.

    On the left are edges of the given calibration, on the right of the corrected one; without a
    correction there is one column.

    Raises:
        InputError: `path` cannot be written.
    """
    rows = [row for verdict in checked.report.cameras for row in _rows(checked, verdict)]
    width = max(sum(tile.width for tile in row) for row in rows)
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (width, sum(heights)))
    top = 0
    for row, height in zip(rows, heights):
        for column, tile in enumerate(row):
            sheet.paste(tile, (column * row[0].width, top))
        top += height
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _rows(checked: Checked, verdict: CameraVerdict) -> list[list[Image.Image]]:
    views = checked.views[verdict.camera]
    chosen = _most_edges(views)
    changes = {"given": np.zeros(7)}
    if verdict.correction is not None:
        changes["corrected"] = verdict.change
    return [
        [_tile(view, change, f"{verdict.camera}, {name}") for name, change in changes.items()]
        for view in chosen
    ]


def _most_edges(views: Sequence[View]) -> list[View]:
    """The views with the most edges, in the order of the drive."""
    order = sorted(range(len(views)), key=lambda k: -len(views[k].edges))
    return [views[k] for k in sorted(order[:_IMAGES])]


def _tile(view: View, change: Float64, text: str) -> Image.Image:
    image = (view.frame.image * _DIM).astype(np.uint8)
    uv, depth = pixels(view, change)
    inside = view.frame.camera.contains(uv) & (depth > 0)
    far_first = np.argsort(-depth[inside])
    column, row = np.rint(uv[inside][far_first]).astype(np.int64).T
    colors = depth_colors(depth[inside][far_first].astype(np.float32))
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):  # points two pixels wide
        y, x = row + dy, column + dx
        kept = (y < image.shape[0]) & (x < image.shape[1])
        image[y[kept], x[kept]] = colors[kept]
    tile = Image.fromarray(image)
    tile = tile.resize((_TILE_WIDTH, round(tile.height * _TILE_WIDTH / tile.width)))
    ImageDraw.Draw(tile).text((6, 4), text, fill="white", stroke_width=2, stroke_fill="black")
    return tile
