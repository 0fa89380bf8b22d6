# SPDX-License-Identifier: Apache-2.0
"""The picture vocabulary: colors, and that points land where they should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from pcseg_core.errors import InputError
from pcseg_core.evaluation import pictures

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def drawn(tmp_path: Path, draw: Callable[[Axes], None], size: int = 400) -> np.ndarray:
    """Pixels (size, size, 3) of axes that fill the whole picture."""
    figure = pictures.new_figure(size, size)
    draw(figure.add_axes((0, 0, 1, 1)))
    pictures.save(figure, tmp_path / "picture.png")
    return np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"))


def center(pixels: np.ndarray, color: tuple[float, float, float]) -> tuple[float, float]:
    """Mean (row, column) of the pixels of a pure color."""
    rows, columns = np.nonzero((pixels == np.round(255 * np.array(color))).all(axis=2))
    assert len(rows), "the color does not appear"
    return float(rows.mean()), float(columns.mean())


def test_label_colors_and_ignored_ones() -> None:
    palette = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    colors = pictures.label_colors(np.array([1, 0, -1, 2]), palette)
    assert colors.tolist() == [[*BLUE], [*RED], [*pictures.UNLABELED], [*pictures.UNLABELED]]


def test_error_colors() -> None:
    colors = pictures.error_colors(np.array([0, 1, -1, 3]), np.array([0, 0, 0, -1]))
    expected = [pictures.RIGHT, pictures.WRONG, pictures.WRONG, pictures.UNLABELED]
    assert colors.tolist() == [list(color) for color in expected]


def test_scalar_colors_clip_and_gray_out_nan() -> None:
    colors = pictures.scalar_colors(np.array([-5, 0, 1, 9, np.nan]), 0, 1, "viridis")
    assert np.array_equal(colors[0], colors[1])
    assert np.array_equal(colors[2], colors[3])
    assert colors[4].tolist() == list(pictures.UNLABELED)
    assert not np.array_equal(colors[1], colors[2])
    flat = pictures.scalar_colors(np.full(3, 2.0), 2.0, 2.0)  # an empty span is no division by 0
    assert np.isfinite(flat).all()


def test_from_above_forward_is_up_and_left_is_left(tmp_path: Path) -> None:
    xyz = np.array([[30.0, 0, 0], [0, 30.0, 0]])
    pixels = drawn(tmp_path, lambda ax: pictures.bev(ax, xyz, np.array([RED, BLUE]), point_size=60))
    assert center(pixels, RED) == pytest.approx((50, 200), abs=2)  # 40 m are 200 px
    assert center(pixels, BLUE) == pytest.approx((200, 50), abs=2)


def test_from_above_the_highest_point_hides_the_others(tmp_path: Path) -> None:
    xyz = np.array([[20.0, 5, 3], [20.0, 5, -1]])
    colors = np.array([RED, BLUE])

    def draw(ax: Axes, on_top: np.ndarray | None = None) -> None:
        pictures.bev(ax, xyz, colors, point_size=100, on_top=on_top)

    assert not (drawn(tmp_path, draw) == [0, 0, 255]).all(axis=2).any()
    stacked = drawn(tmp_path, lambda ax: draw(ax, np.array([0.0, 1.0])))
    assert not (stacked == [255, 0, 0]).all(axis=2).any()


def test_points_lie_on_the_pixels_that_they_belong_to(tmp_path: Path) -> None:
    image = np.full((50, 100, 3), 255, np.uint8)
    uv = np.array([[0.0, 0.0], [74.5, 24.5]])
    pixels = drawn(
        tmp_path,
        lambda ax: (
            ax.set_aspect("auto"),
            pictures.overlay(ax, image, uv, np.array([RED, BLUE]), point_size=20),
            ax.set_aspect("auto"),
        ),
    )
    row, column = center(pixels, BLUE)
    # the picture shows 100 x 50 pixels on 400 x 400: pixel (u, v) is centered at 4 (u + 0.5)
    assert (column, row) == pytest.approx((4 * 75, 8 * 25), abs=2)
    row, column = center(pixels, RED)
    assert row < 10
    assert column < 10


def test_an_empty_cloud_and_no_visible_points_still_draw(tmp_path: Path) -> None:
    none = np.zeros((0, 3))
    drawn(tmp_path, lambda ax: pictures.bev(ax, none, none))
    image = np.zeros((10, 20, 3), np.uint8)
    drawn(tmp_path, lambda ax: pictures.overlay(ax, image, np.zeros((0, 2)), none))
    drawn(tmp_path, lambda ax: pictures.confusion(ax, np.zeros((2, 2)), ["a", "b"]))
    drawn(tmp_path, lambda ax: pictures.bars(ax, ["a"], {"x": [float("nan")]}))


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    figure = pictures.new_figure(100, 100)
    with pytest.raises(ValueError, match="xyz"):
        pictures.save(figure, tmp_path / "picture.xyz")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        pictures.save(figure, tmp_path / "file" / "picture.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
