# SPDX-License-Identifier: Apache-2.0
"""Contact sheet of sweeps that are worth correcting: where networks doubt or disagree."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pcseg_core.data.sample import Sample
from pcseg_core.errors import InputError
from pcseg_core.evaluation import pictures
from pcseg_core.evaluation.selection import Candidate, Opinion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 24  # sweeps of a sheet
_COLUMNS = 4
_CELL, _VIEW, _BAND, _HEAD = 400, 260, 44, 64  # [px]: width, side of a view, text, title
_EXTENT_M = 30.0
_TEACHER, _TIME = (0.84, 0.12, 0.14), (0.94, 0.64, 0.01)
_ORDER = ("teacher", "time", "entropy")

Row = tuple[Candidate, Sample, Opinion, Opinion | None]


def draw_sheet(rows: Iterable[Row], chosen: int, path: str | os.PathLike[str]) -> None:
    """Write the sheet: per sweep a bird's-eye view, an image, and its reasons.

    Args:
        rows: of `opinions`, at most `SHOWN` of them.
        chosen: number of sweeps that are chosen in all.
        path: of the picture; its suffix chooses the format.
    """
    cells = list(rows)
    lines = -(-len(cells) // _COLUMNS)
    height = _HEAD + lines * (_VIEW + _BAND)
    figure = pictures.new_figure(_COLUMNS * _CELL, height)
    _title(figure, len(cells), chosen, height)
    for number, row in enumerate(cells):
        left = (number % _COLUMNS) * _CELL
        top = _HEAD + (number // _COLUMNS) * (_VIEW + _BAND)
        _draw_cell(figure, row, number + 1, left, top, height)
    pictures.save(figure, path)


def point_colors(opinion: Opinion, before: Opinion | None) -> pictures.Colors:
    """(N, 3) colors: red where the teacher differs, orange where the sweep before does, else gray,
    darker with the entropy.
    """
    colors = np.repeat(0.9 - 0.75 * np.clip(opinion.entropy, 0, 1)[:, None], 3, axis=1)
    colors[opinion.time_differs(before)[0]] = _TIME
    colors[opinion.teacher_differs[0]] = _TEACHER
    return colors


def _title(figure: Figure, shown: int, chosen: int, height: int) -> None:
    part = f"the first {shown} of {chosen}" if chosen > shown else f"{chosen}"
    axes = _axes(figure, 0, 0, _COLUMNS * _CELL, _HEAD, height)
    axes.axis("off")
    text = f"Sweeps worth correcting: {part}, the most useful first"
    axes.text(0.01, 0.62, text, fontsize=15, weight="bold", color=pictures.INK)
    legend = (
        ("teacher and student differ", _TEACHER),
        ("the sweep before was labeled differently", _TIME),
        ("the darker, the higher the entropy", (0.3, 0.3, 0.3)),
    )
    for place, (words, color) in zip((0.01, 0.17, 0.42), legend):
        axes.plot(place + 0.004, 0.28, "s", color=color, markersize=8)
        axes.text(place + 0.012, 0.2, words, fontsize=10.5, color=pictures.INK)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def _draw_cell(figure: Figure, row: Row, number: int, left: float, top: float, height: int) -> None:
    candidate, sample, opinion, before = row
    view = _axes(figure, left + 6, top + _BAND - 6, _VIEW, _VIEW, height)
    colors = point_colors(opinion, before)
    marked = colors[:, 0] > colors[:, 2] + 0.2
    pictures.bev(view, opinion.xyz, colors, extent_m=_EXTENT_M, on_top=marked)
    beside = _CELL - _VIEW - 18
    image = _image(sample)
    if image is not None:
        high = beside * image.shape[0] / image.shape[1]
        axes = _axes(figure, left + _VIEW + 10, top + _BAND - 6, beside, high, height)
        axes.imshow(image)
        axes.axis("off")
    bars = _axes(figure, left + _VIEW + 10, top + _BAND + _VIEW - 116, beside, 100, height)
    _draw_reasons(bars, candidate)
    text = _axes(figure, left, top, _CELL, _BAND - 6, height)
    text.axis("off")
    text.set_xlim(0, 1)
    text.set_ylim(0, 1)
    place = f"{candidate.sweep}  (sweep {candidate.index})"
    text.text(0.015, 0.3, f"{number}. {_short(place)}", fontsize=10, color=pictures.INK)


def _draw_reasons(axes: Axes, candidate: Candidate) -> None:
    """Bars of the reasons, and of how new the sweep is."""
    names = [*(name for name in _ORDER if name in candidate.reasons), "new"]
    values = [*(candidate.reasons[name] for name in names[:-1]), candidate.novelty]
    colors = {"teacher": _TEACHER, "time": _TIME, "entropy": (0.3, 0.3, 0.3)}
    for place, (name, value) in enumerate(zip(names, values)):
        axes.barh(place, value, color=colors.get(name, pictures.ACCENT), height=0.6)
        axes.text(-0.05, place, name, ha="right", va="center", fontsize=8)
        axes.text(value + 0.04, place, f"{value:.2f}", va="center", fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(-0.8, 1.35)
    axes.axis("off")


def _image(sample: Sample) -> pictures.Colors | None:
    """The image of the camera that looks most ahead, small; None without one."""
    ahead = sorted(sample.cameras, key=lambda frame: -float(frame.T_cam_lidar[2, 0]))
    for frame in ahead[:1]:
        try:
            pixels = frame.image
        except InputError:
            return None
        step = max(1, pixels.shape[1] // 320)
        small: pictures.Colors = pixels[::step, ::step].astype(np.float64) / 255
        return small
    return None


def _short(text: str, most: int = 42) -> str:
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _axes(figure: Figure, left: float, top: float, width: float, height: float, total: int) -> Axes:
    """Axes at a position in pixels from the top left corner."""
    wide = _COLUMNS * _CELL
    place: Sequence[float] = (left / wide, 1 - (top + height) / total, width / wide, height / total)
    return figure.add_axes((place[0], place[1], place[2], place[3]))
