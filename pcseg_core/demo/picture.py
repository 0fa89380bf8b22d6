# SPDX-License-Identifier: Apache-2.0
"""Picture of the demo: labels of the camera teacher, labels of the student, and the truth."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pcseg_core.data import Sample
from pcseg_core.demo.measure import ALL, Scores, project_teacher
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
from pcseg_core.evaluation import pictures
from pcseg_core.labels import LabelSpace, grouping, regroup, truth_of
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.projection import project_sample
from pcseg_core.vision.pixel_classes import PixelClasses

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# All in pixels.
_WIDTH, _GAP = 1500, 28
_HEAD, _CAPTION, _LEGEND = 92, 30, 56
_EXTENT_M = 36.0
_IMAGES = 2  # at most; more would be too small


def draw(
    sample: Sample,
    student: Pipeline,
    teacher: PixelClasses,
    config: PseudoLabelConfig,
    scores: Scores,
    path: str | os.PathLike[str],
) -> None:
    """Write the picture of one sweep of the replayed drive, atomically.

    Top: camera images with the teacher's labels of the points. Bottom: bird's-eye views of the
    teacher's labels, the student's labels and the truth.
    """
    space = LabelSpace.load(config.label_space)
    taught = project_teacher(sample, teacher, config)
    labeled = student.process(Sweep.of(sample))
    given = regroup(labeled.labels, grouping(labeled.label_space, space))
    image_height = _image_height(sample)
    side = (_WIDTH - 4 * _GAP) // 3
    height = _HEAD + _CAPTION + image_height + _CAPTION + side + _LEGEND + _GAP // 2
    figure = pictures.new_figure(_WIDTH, height)
    _headline(figure, height)
    _draw_images(figure, sample, taught, space, _HEAD + _CAPTION, height)
    top = _HEAD + _CAPTION + image_height + _CAPTION + _GAP // 2
    share, miou = _percent((taught >= 0).mean()), _percent(scores.miou("student", ALL))
    panels = {
        f"2  Teacher: labels of the points in view of a camera ({share})": taught,
        f"3  Student: labels of all points, LiDAR only (mIoU {miou})": given,
        "Ground truth": truth_of(sample, space),
    }
    for column, (title, labels) in enumerate(panels.items()):
        axes = _axes(figure, _GAP + column * (side + _GAP), top, side, side, height)
        _from_above(axes, sample, labels, space, title)
    shown = [i for i in range(len(space)) if (given == i).any() or (taught == i).any()]
    names = [*(space.names[i] for i in shown), "no label"]
    colors = [*(space.palette[i] / 255 for i in shown), pictures.UNLABELED]
    pictures.legend(figure, names, colors, anchor=(0.5, 12 / height))
    pictures.save(figure, path)


def _headline(figure: Figure, height: int) -> None:
    left = _GAP / _WIDTH
    figure.text(
        left,
        1 - 40 / height,
        "LiDAR segmentation distilled from camera images, without manual labels",
        fontsize=17,
        weight="bold",
        color=pictures.INK,
    )
    figure.text(
        left,
        1 - 68 / height,
        "A LiDAR sweep of a simulated drive, in a town that neither network was trained in. "
        "Bottom: bird's-eye views of the sweep, with the vehicle in the center.",
        fontsize=11,
        color=pictures.FAINT,
    )


def _image_height(sample: Sample) -> int:
    frames = sample.cameras[:_IMAGES]
    width = (_WIDTH - _GAP * (len(frames) + 1)) / max(len(frames), 1)
    return round(max((width * f.camera.height / f.camera.width for f in frames), default=0))


def _draw_images(
    figure: Figure,
    sample: Sample,
    taught: npt.NDArray[np.int64],
    space: LabelSpace,
    top: int,
    height: int,
) -> None:
    """The images with the teacher's labels of the points in view."""
    frames = sample.cameras[:_IMAGES]
    width = (_WIDTH - _GAP * (len(frames) + 1)) / max(len(frames), 1)
    for k, frame in enumerate(frames):
        projection = project_sample(sample, k)
        seen = np.flatnonzero(projection.visible & (taught >= 0))
        far_first = seen[np.argsort(-projection.depth[seen])]
        axes = _axes(
            figure,
            _GAP + k * (width + _GAP),
            top,
            width,
            width * frame.camera.height / frame.camera.width,
            height,
        )
        looking = "ahead" if k == 0 else "back" if len(frames) == 2 else frame.name
        title = f"Camera looking {looking}"
        if k == 0:
            title = f"1  Image network: labels of the camera images ({title.lower()})"
        colors = pictures.label_colors(taught[far_first], space.palette)
        pictures.overlay(
            axes,
            frame.image,
            projection.uv[far_first],
            colors,
            title=title,
            point_size=5.0,
            dim=0.25,
        )


def _from_above(
    axes: Axes, sample: Sample, labels: npt.NDArray[np.int64], space: LabelSpace, title: str
) -> None:
    finite = sample.cloud.finite
    colors = pictures.label_colors(labels[finite], space.palette)
    pictures.bev(
        axes, sample.cloud.xyz[finite], colors, extent_m=_EXTENT_M, title=title, point_size=1.6
    )
    axes.title.set_fontsize(10)


def _axes(figure: Figure, left: float, top: float, width: float, height: float, total: int) -> Axes:
    """Axes at a position in pixels from the top left corner."""
    return figure.add_axes(
        (left / _WIDTH, 1 - (top + height) / total, width / _WIDTH, height / total)
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
