# SPDX-License-Identifier: Apache-2.0
"""Contrast: points against superpixels and pixels of their images, and across sweeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pcseg_core.distill import contrast
from pcseg_core.labels import IGNORE
from pcseg_core.learning.dataset import Batch, SegmentBatch
from pcseg_core.learning.distributed import gather_rows, ranks
from pcseg_core.learning.objectives import Objective
from pcseg_core.learning.recipe import LossConfig
from pcseg_core.models.student import StudentOutput


class PixelContrast(Objective):
    """Superpixel contrast (SLidR, Seal) and point-pixel contrast (PPKT), on one projection.

    Args:
        config: weights, and the choice of negatives.
        width: size of the student's features.
        channels: size of the image features.
        min_points: superpixels with fewer points are left out.
    """

    def __init__(self, config: LossConfig, width: int, channels: int, min_points: int) -> None:
        super().__init__()
        self.config, self.min_points = config, min_points
        self.points = nn.Linear(width, config.channels)
        self.pixels = nn.Linear(channels, config.channels)

    def losses(self, output: StudentOutput, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`."""
        found = {}
        if self.config.superpixel:
            found["superpixel"] = self.config.superpixel * self._superpixel(output, batch)
        if self.config.point_pixel:
            found["point_pixel"] = self.config.point_pixel * self._point_pixel(output, batch)
        return found

    def _superpixel(self, output: StudentOutput, batch: Batch) -> Tensor:
        assert batch.pixels is not None and batch.segments is not None
        config, segments, count = self.config, batch.segments, len(batch.segments.names)
        point_rows = row_of(segments.point_segment, segments.names)
        pixel_rows = row_of(segments.pixel_segment, segments.names)
        used = batch.pixels.point[point_rows != IGNORE]
        projected = _unit(self.points(output.features[output.voxels.inverse[used]]))
        points, sizes = contrast.segment_means(projected, point_rows[point_rows != IGNORE], count)
        pixels, _ = contrast.segment_means(_unit(self.pixels(segments.pixels)), pixel_rows, count)
        frozen, _ = contrast.segment_means(segments.pixels, pixel_rows, count)
        kept = sizes >= self.min_points
        sweeps = segments.sector + ranks()[0] * 1000
        places = segments.place[segments.sector]
        parts = (points, pixels, frozen, segments.classes, sweeps, places)
        points, pixels, frozen, classes, sweeps, places = (gather_rows(p[kept]) for p in parts)
        excluded = contrast.false_negatives(
            frozen,
            config.false_negative_quantile,
            classes if config.class_negatives else None,
            sweeps,
            places,
        )
        anchors = contrast.balanced_anchors(frozen) if config.balanced and len(frozen) > 1 else None
        alike = contrast.same_class(classes) if config.class_positives else None
        return contrast.superpixel_contrast(
            points, pixels, config.temperature, excluded, anchors, alike
        )

    def _point_pixel(self, output: StudentOutput, batch: Batch) -> Tensor:
        assert batch.pixels is not None and batch.pixels.image is not None
        share = max(1, self.config.pairs // ranks()[1])
        total = len(batch.pixels.point)
        # Evenly spaced rather than random: no state to restore, and all cameras contribute.
        drawn = torch.linspace(0, max(total - 1, 0), min(total, share)).round().long()
        drawn = drawn.to(batch.pixels.point.device)
        voxel = output.voxels.inverse[batch.pixels.point[drawn]]
        return contrast.point_pixel_contrast(
            gather_rows(_unit(self.points(output.features[voxel]))),
            gather_rows(_unit(self.pixels(batch.pixels.image[drawn]))),
            self.config.temperature,
        )


class TemporalContrast(Objective):
    """Points against temporal segments: of the other sweep of a pair, and of their own (Seal).

    Its projection is not that of `PixelContrast`, which has to encode something else.

    Args:
        config: weights, and the choice of negatives.
        width: size of the student's features.
    """

    def __init__(self, config: LossConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.points = nn.Linear(width, config.channels)

    def losses(self, output: StudentOutput, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`."""
        assert batch.segments is not None
        config, segments = self.config, batch.segments
        drawn = (segments.temporal != IGNORE).nonzero().squeeze(1)
        projected = _unit(self.points(output.features[output.voxels.inverse[drawn]]))
        classes = _point_classes(batch, segments)[drawn]
        parts = (projected, segments.temporal[drawn], segments.second[drawn].long(), classes)
        projected, names, second, classes = (gather_rows(part) for part in parts)
        known, ids = torch.unique(names, return_inverse=True)
        excluded = None
        if config.class_negatives:
            excluded = contrast.same_class(majority(ids, classes, len(known)))
        losses = {}
        now, then = second == 0, second == 1
        if config.temporal:
            losses["temporal"] = config.temporal * contrast.temporal_consistency(
                (projected[now], ids[now]),
                (projected[then], ids[then]),
                len(known),
                config.temperature,
                excluded,
            )
        if config.point_to_segment:
            inside = [
                self._inside(projected[side], ids[side], len(known), excluded)
                for side in (now, then)
                if side.any()
            ]
            mean = torch.stack(inside).mean() if inside else projected.sum() * 0.0
            losses["point_to_segment"] = config.point_to_segment * mean
        return losses

    def _inside(
        self, projected: Tensor, ids: Tensor, count: int, excluded: Tensor | None
    ) -> Tensor:
        means, sizes = contrast.segment_means(projected, ids, count)
        absent = (sizes == 0).expand(count, count)
        mask = absent if excluded is None else excluded | absent
        return contrast.point_to_segment(projected, ids, means, self.config.temperature, mask)


def _point_classes(batch: Batch, segments: SegmentBatch) -> Tensor:
    """(N,) class of the superpixel that shows each point, IGNORE for none."""
    assert batch.pixels is not None
    classes = torch.full_like(segments.temporal, IGNORE)
    rows = row_of(segments.point_segment, segments.names)
    seen = rows != IGNORE
    classes[batch.pixels.point[seen]] = segments.classes[rows[seen]]
    return classes


def row_of(names: Tensor, known: Tensor) -> Tensor:
    """Row of each name among the sorted known ones; IGNORE for IGNORE."""
    if len(known) == 0:
        return torch.full_like(names, IGNORE)
    rows = torch.searchsorted(known, names).clamp_max(len(known) - 1)
    return torch.where(known[rows] == names, rows, IGNORE)


def majority(ids: Tensor, classes: Tensor, count: int) -> Tensor:
    """(S,) most frequent class among the members of each segment; IGNORE if none is known."""
    known = classes != IGNORE
    if not bool(known.any()):
        return torch.full((count,), IGNORE, device=ids.device)
    width = int(classes.max()) + 1
    votes = torch.bincount(ids[known] * width + classes[known], minlength=count * width)
    top, winner = votes.view(count, width).max(1)
    return torch.where(top > 0, winner, IGNORE)


def _unit(features: Tensor) -> Tensor:
    return functional.normalize(features, dim=1)
