# SPDX-License-Identifier: Apache-2.0
"""The classes that cameras show of a recording, by a teacher on a few of its images."""

from __future__ import annotations

import numpy as np

from pcseg_core.data import Recording, evenly_spaced, readable
from pcseg_core.distill.pseudo_labels import (
    PseudoLabelConfig,
    gather_evidence,
    label_points,
    pixel_evidence,
)
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE, LabelSpace, grouping
from pcseg_core.vision.pixel_classes import PixelClasses

SWEEPS = 4


def seen_classes(recording: Recording, teacher: PixelClasses) -> dict[str, float]:
    """Share of each class of `street` among the points that cameras see, in a few sweeps.

    Raises:
        InputError: no image of them can be used.
    """
    config = PseudoLabelConfig()
    space = LabelSpace.load(config.label_space)
    groups = grouping(teacher.label_space, space)
    counts = np.zeros(len(space), np.int64)
    reason = "no cameras"
    for _, sample in readable(recording, evenly_spaced(len(recording), SWEEPS)):
        try:
            images = pixel_evidence(sample, teacher, groups, len(space))
            evidence = gather_evidence(sample.cloud.xyz, images, len(space), config)
        except InputError as error:
            reason = str(error)
            continue
        label, _ = label_points(evidence, len(sample.cloud))
        counts += np.bincount(label[label != IGNORE], minlength=len(space))
    if not counts.any():
        raise InputError(
            f"{recording.name}: no points that the images of {SWEEPS} sweeps show ({reason})"
        )
    return {name: float(share) for name, share in zip(space.names, counts / counts.sum())}
