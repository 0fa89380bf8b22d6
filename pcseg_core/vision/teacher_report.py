# SPDX-License-Identifier: Apache-2.0
"""A teacher on one image: its classes, what they map to, its speed, and a picture."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pcseg_core.labels import IGNORE, LabelSpace, grouping
from pcseg_core.vision.class_names import NameMatch, is_ignored, nearest
from pcseg_core.vision.named_classes import NamedClasses, NamedConfig
from pcseg_core.vision.pixel_classes import PixelClasses, TeacherConfig, load_teacher
from pcseg_core.vision.semantic import winners

RGB = npt.NDArray[np.uint8]
_REPEATS = 3
_ROW_PX = 18


@dataclass(frozen=True)
class ClassRow:
    """One class of a teacher.

    Attributes:
        name: by the teacher.
        mapped: class in the teacher's label space, "" for none.
        target: class in the label space of the student, "" for none.
        share: of the pixels of the image, of the class in the teacher's label space.
        nearest: classes with a similar name, if it has none and is not ignored.
    """

    name: str
    mapped: str
    target: str
    share: float
    nearest: tuple[str, ...] = ()


@dataclass(frozen=True)
class TeacherReport:
    """What a teacher does with an image.

    Attributes:
        rows: its classes.
        seconds: median time of an image [s].
        map_size: width and height of the map of probabilities.
        undecided: share of pixels where no class has most of the probability.
        picture: (H, W, 3) image, labels and legend.
    """

    rows: tuple[ClassRow, ...]
    seconds: float
    map_size: tuple[int, int]
    undecided: float
    picture: RGB

    @property
    def unmapped(self) -> tuple[ClassRow, ...]:
        """Classes that have no class in the label space and are not ignored."""
        return tuple(row for row in self.rows if row.mapped == "?")

    def figures(self) -> dict[str, Any]:
        """Everything but the picture, for JSON."""
        return {
            "classes": [asdict(row) for row in self.rows],
            "seconds": self.seconds,
            "map_size": self.map_size,
            "undecided": self.undecided,
        }


def report_teacher(
    config: TeacherConfig, image: RGB, target: LabelSpace, device: str = "cpu"
) -> TeacherReport:
    """Run a teacher on an image. Names without a class are reported; they are no error here.

    Args:
        config: of the teacher.
        image: (H, W, 3) uint8.
        target: label space of the student.
        device: "cpu" or "cuda".

    Raises:
        InputError, MissingDependency: the teacher cannot be loaded, or fails on the image.
    """
    lenient = config
    if isinstance(config, NamedConfig):
        lenient = config.model_copy(update={"ignore": ("*",)})
    teacher = load_teacher(lenient, device)
    probabilities = teacher.probabilities(image)
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        teacher.probabilities(image)
        times.append(time.perf_counter() - started)
    winner = winners(probabilities, image.shape[:2])
    space = teacher.label_space
    counts = np.bincount(winner[winner >= 0], minlength=len(space)) / winner.size
    rows = _rows(teacher, config, target, counts)
    return TeacherReport(
        rows,
        float(np.median(times)),
        (probabilities.shape[2], probabilities.shape[1]),
        float((winner == IGNORE).mean()),
        draw_labels(image, winner, space),
    )


def _rows(
    teacher: PixelClasses,
    config: TeacherConfig,
    target: LabelSpace,
    shares: npt.NDArray[np.float64],
) -> tuple[ClassRow, ...]:
    space = teacher.label_space
    groups = grouping(space, target)
    match = teacher.match if isinstance(teacher, NamedClasses) else NameMatch.of(space)
    ignore = config.ignore if isinstance(config, NamedConfig) else ()
    rows = []
    for name, id_ in zip(match.names, match.table):
        if id_ == IGNORE:
            open_ = not is_ignored(name, ignore)
            near = tuple(nearest(name, space)) if open_ else ()
            rows.append(ClassRow(name, "?" if open_ else "", "", 0.0, near))
            continue
        goal = target.names[groups[id_]] if groups[id_] != IGNORE else ""
        rows.append(ClassRow(name, space.names[id_], goal, float(shares[id_])))
    return tuple(rows)


def draw_labels(image: RGB, winner: npt.NDArray[np.integer], space: LabelSpace) -> RGB:
    """The image above its labels, with a legend of the classes that occur, most frequent first."""
    colors = space.colorize(winner)
    mixed = np.where((winner >= 0)[..., None], 0.35 * image + 0.65 * colors, 0.35 * image)
    height, width = image.shape[:2]
    counts = np.bincount(winner[winner >= 0], minlength=len(space))
    shown = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    columns = max(1, width // 180)
    lines = -(-len(shown) // columns)
    canvas = np.full((2 * height + _ROW_PX * lines + 4, width, 3), 255, np.uint8)
    canvas[:height], canvas[height : 2 * height] = image, mixed.astype(np.uint8)
    picture = Image.fromarray(canvas)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for place, k in enumerate(shown):
        x = (place % columns) * (width // columns) + 4
        y = 2 * height + _ROW_PX * (place // columns) + 4
        draw.rectangle((x, y, x + 12, y + 12), fill=tuple(int(v) for v in space.palette[k]))
        share = 100 * counts[k] / winner.size
        draw.text((x + 18, y - 1), f"{space.names[k]} {share:.1f} %", fill=(0, 0, 0), font=font)
    return np.asarray(picture)
