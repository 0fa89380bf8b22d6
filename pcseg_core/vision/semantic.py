# SPDX-License-Identifier: Apache-2.0
"""Superpixels from a teacher of pixel classes: connected regions of its classes, split by SLIC."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pcseg_core.labels import IGNORE, LabelSpace
from pcseg_core.vision.pixel_classes import PixelClasses, TeacherConfig, load_teacher
from pcseg_core.vision.regions import connected_regions
from pcseg_core.vision.slic import Slic
from pcseg_core.vision.superpixels import SegmentMap, check_image, tidy


class SemanticSuperpixels:
    """Segments with one known class each.

    Args:
        teacher: pixel classes.
        teacher_parameters: parameters of the predictions (weights by checksum), for the manifest.
        slic: splits the regions; None does not split them.
        min_area: smaller regions join the neighbor with the longest common border; smaller splits
            join the largest neighbor of the same class [px].
        min_confidence: pixels whose best class is less probable belong to no segment, including
            those where most of the probability lies outside the teacher's classes.
    """

    name = "semantic"

    def __init__(
        self,
        teacher: PixelClasses,
        teacher_parameters: dict[str, Any],
        slic: Slic | None = None,
        min_area: int = 100,
        min_confidence: float = 0.0,
    ) -> None:
        self.teacher = teacher
        self.slic = slic
        self.min_area = min_area
        self.min_confidence = min_confidence
        self.parameters: dict[str, Any] = {
            "teacher": teacher_parameters,
            "classes": teacher.label_space.names,
            "slic": None if slic is None else slic.parameters,
            "min_area": min_area,
            "min_confidence": min_confidence,
        }

    @property
    def label_space(self) -> LabelSpace:
        """Classes of the segments."""
        return self.teacher.label_space

    def segment(self, image: npt.NDArray[np.uint8]) -> SegmentMap:
        """See SuperpixelGenerator."""
        check_image(image)
        probabilities = self.teacher.probabilities(image)
        winner = winners(probabilities, image.shape[:2], self.min_confidence)
        regions = connected_regions(winner)
        whole = tidy(regions, classes_of(regions, winner), self.min_area)
        if self.slic is None or whole.count == 0:
            return whole
        return split(whole, self.slic.assign(image), self.min_area)


def winners(
    probabilities: npt.NDArray[np.float32], size: tuple[int, ...], min_confidence: float = 0.0
) -> npt.NDArray[np.int16]:
    """(H, W) int16 best class of (C, h, w).

    IGNORE where it is less probable than `min_confidence`, or than having no class.
    """
    values = torch.from_numpy(np.ascontiguousarray(probabilities))[None]
    full = functional.interpolate(values, size, mode="bilinear", align_corners=False)[0]
    best, winner = full.max(0)
    known = (best >= min_confidence) & (best >= 1 - full.sum(0))
    return torch.where(known, winner, IGNORE).to(torch.int16).numpy()


def classes_of(ids: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """(max id + 1,) label of each id; all pixels of an id have the same label."""
    classes = np.full(int(ids.max(initial=IGNORE)) + 1, IGNORE, np.int16)
    covered = ids != IGNORE
    classes[ids[covered]] = labels[covered]
    return classes


def split(whole: SegmentMap, pieces: npt.NDArray[np.int32], min_area: int) -> SegmentMap:
    """Split segments at the borders of another map, into pieces of at least `min_area`.

    Args:
        whole: segments of at least `min_area` pixels each.
        pieces: (H, W) non-negative ids.
        min_area: smaller pieces join a neighbor of the same segment [px].

    Returns:
        Segments with the class of their original segment.
    """
    combined = whole.ids.astype(np.int64) * (int(pieces.max()) + 1) + pieces
    regions = connected_regions(np.where(whole.ids == IGNORE, IGNORE, combined))
    parent = classes_of(regions, whole.ids)
    cut = tidy(regions, parent, min_area, within_class=True)
    if whole.classes is None or cut.classes is None:
        return SegmentMap(cut.ids)
    return SegmentMap(cut.ids, whole.classes[cut.classes])


def load_semantic(
    config: TeacherConfig, slic: Slic | None, min_area: int, device: str = "cpu"
) -> SemanticSuperpixels:
    """Semantic superpixels from the teacher of a configuration.

    Raises:
        InputError: its weights are missing or of another network.
    """
    teacher = load_teacher(config, device)
    return SemanticSuperpixels(teacher, config.identity, slic, min_area)
