# SPDX-License-Identifier: Apache-2.0
"""Training batches: sectors of sweeps, augmented; each batch is a function of seed and step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pcseg_core.distill.cache import write_arrays
from pcseg_core.distill.lidar_teacher import LidarTargets
from pcseg_core.distill.losses import confident_labels
from pcseg_core.distill.pixels import PointPixels
from pcseg_core.labels import IGNORE
from pcseg_core.models.student import Points
from pcseg_core.sparse.voxels import Voxels

Array = npt.NDArray[Any]
Part = TypeVar("Part", bound="_Tensors")

NAMES_PER_SECTOR = 100_000  # more segments than a sector has, to number them in a batch


@dataclass
class TrainingSweep:
    """A labeled sweep.

    Attributes:
        xyz: (N, 3) float32 finite points [m].
        intensity: (N,) float32 in 0..1.
        label: (N,) int16, IGNORE where unknown.
        confidence: (N,) float32 in 0..1.
        scene: sweeps of one scene show one place.
        pixels: image features of points, or None.
        lidar: targets by a 3D teacher, or None.
    """

    xyz: Array
    intensity: Array
    label: Array
    confidence: Array
    scene: str
    pixels: PointPixels | None = None
    lidar: LidarTargets | None = None

    def save(self, path: Path) -> None:
        """Write points and labels as an uncompressed npz, atomically."""
        others = ("pixels", "lidar")
        write_arrays(path, {name: v for name, v in vars(self).items() if name not in others})

    def confident(self, required: float | Array) -> npt.NDArray[np.int64]:
        """(N,) labels, IGNORE where the confidence is too low, see `confident_labels`."""
        return confident_labels(self.label, self.confidence, required)


class _Tensors:
    """A dataclass of tensors, of parts like itself, and of None."""

    def to(self: Part, device: torch.device) -> Part:
        """The same on a device."""
        values = {k: v if v is None else v.to(device) for k, v in vars(self).items()}
        return type(self)(**values)


@dataclass
class PixelBatch(_Tensors):
    """Points that cameras see, with the features of their pixels.

    Attributes:
        point: (S,) int64 positions in the batch.
        image: (S, D) float32 features of the teacher or encoder, or None.
        text: (S, K) float32 features for the text head, or None.
        patch: (S,) int64 row of `patch_image` of each, or None.
        patch_image: (R, D) float32 mean features of image patches, or None.
    """

    point: Tensor
    image: Tensor | None
    text: Tensor | None = None
    patch: Tensor | None = None
    patch_image: Tensor | None = None


@dataclass
class LidarBatch(_Tensors):
    """Points that a 3D teacher has targets for.

    Attributes:
        point: (S,) int64 positions in the batch.
        probabilities: (S, C) float32 of the classes of the student, sums at most 1; or None.
        features: (S, D) float32 features of the teacher, or None.
    """

    point: Tensor
    probabilities: Tensor | None = None
    features: Tensor | None = None


@dataclass
class SegmentBatch(_Tensors):
    """Superpixels and temporal segments. Their names are unique in the step.

    Attributes:
        place: (B,) int64 place of each sector; the two sectors of a pair share it.
        second: (N,) bool, points of the later sweep of a pair.
        temporal: (N,) int64 temporal segment of each point, IGNORE for none or not drawn.
        point_segment: (S,) int64 superpixel under each point of `PixelBatch`, IGNORE for none.
        pixels: (R, D) float32 frozen features of pixels drawn from the superpixels.
        pixel_segment: (R,) int64 superpixel of each of these pixels.
        names: (M,) int64 superpixels with points, ascending.
        classes: (M,) int64 class of each, IGNORE for none.
    """

    place: Tensor
    second: Tensor
    temporal: Tensor
    point_segment: Tensor
    pixels: Tensor
    pixel_segment: Tensor
    names: Tensor
    classes: Tensor

    @property
    def sector(self) -> Tensor:
        """(M,) int64 sector of each superpixel."""
        return torch.div(self.names, NAMES_PER_SECTOR, rounding_mode="floor")


@dataclass
class VoxelLabels(_Tensors):
    """Labels of voxels: (M,) int64, IGNORE for none, and (M,) float32 confidence in 0..1."""

    labels: Tensor
    confidence: Tensor


@dataclass
class Batch(_Tensors):
    """Input and targets of one optimizer step, or of one sector of it.

    Attributes:
        points: of all sectors, one sector after the other.
        labels: (N,) int64, IGNORE where not trained on; None without labels.
        confidence: (N,) float32 in 0..1; None without labels.
        pixels: image features of points, or None.
        lidar: targets by a 3D teacher, or None.
        segments: superpixels and temporal segments, or None.
        targets: labels of the voxels, set during the step.
    """

    points: Points
    labels: Tensor | None = None
    confidence: Tensor | None = None
    pixels: PixelBatch | None = None
    lidar: LidarBatch | None = None
    segments: SegmentBatch | None = None
    targets: VoxelLabels | None = None

    def voted(self, voxels: Voxels, classes: int) -> VoxelLabels | None:
        """Labels of voxels by the vote of their points; None without labels."""
        if self.labels is None or self.confidence is None:
            return None
        found = vote(self.labels, self.confidence, voxels.inverse, len(voxels), classes)
        return VoxelLabels(*found)


def vote(
    labels: Tensor, confidence: Tensor, inverse: Tensor, voxels: int, classes: int
) -> tuple[Tensor, Tensor]:
    """Label of each voxel by the summed confidence of its points.

    Returns:
        (M,) int64 labels, IGNORE without any labeled point; (M,) float32 mean confidence of the
        points that voted for the winner, times their share of the vote.
    """
    labeled = (labels != IGNORE).nonzero().squeeze(1)
    cells = inverse[labeled] * classes + labels[labeled]
    ballot = confidence.new_zeros(voxels * classes)
    ballot.index_add_(0, cells, confidence[labeled])
    counts = torch.zeros_like(ballot).index_add_(0, cells, torch.ones_like(confidence[labeled]))
    ballot, counts = ballot.view(voxels, classes), counts.view(voxels, classes)
    top, winner = ballot.max(1)
    won = counts.gather(1, winner[:, None]).squeeze(1)
    share = top / ballot.sum(1).clamp_min(1e-6)
    mean = top / won.clamp_min(1)
    return torch.where(top > 0, winner, IGNORE), mean * share


class Sectors(Protocol):
    """Draws the sectors of a step."""

    def draw(self, step: int, rank: int, world: int) -> list[Batch]:
        """The share of process `rank` of `world` in the sectors of a step, a batch each."""


class StepDataset(Dataset[Batch]):
    """The batches of the steps first..first+count-1, of process `rank` of `world`."""

    def __init__(
        self, sectors: Sectors, first: int, count: int, rank: int = 0, world: int = 1
    ) -> None:
        self.sectors, self.first, self.count = sectors, first, count
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        return collate(self.sectors.draw(self.first + index, self.rank, self.world))


def sector_points(xyz: Array, intensity: Array) -> Points:
    """Points (N, 3), (N,) of one sector."""
    batch = torch.zeros(len(xyz), dtype=torch.int64)
    return Points(torch.from_numpy(xyz), torch.from_numpy(intensity), batch)


def collate(sectors: Sequence[Batch]) -> Batch:
    """Sectors as one batch. Positions count through, names become unique."""
    numbered, start, patches = [], 0, 0
    for number, sector in enumerate(sectors):
        points, pixels, segments = sector.points, sector.pixels, sector.segments
        lidar = sector.lidar
        points = replace(points, batch=points.batch + number)
        if pixels is not None:
            patch = None if pixels.patch is None else pixels.patch + patches
            patches += 0 if pixels.patch_image is None else len(pixels.patch_image)
            pixels = replace(pixels, point=pixels.point + start, patch=patch)
        if lidar is not None:
            lidar = replace(lidar, point=lidar.point + start)
        if segments is not None:
            segments = replace(
                segments,
                temporal=_renamed(segments.temporal, int(segments.place[0])),
                **{n: _renamed(getattr(segments, n), number) for n in _NAMES},
            )
        numbered.append(
            replace(sector, points=points, pixels=pixels, lidar=lidar, segments=segments)
        )
        start += len(points.xyz)
    result: Batch = _joined(numbered)
    return result


_NAMES = ("point_segment", "pixel_segment", "names")


def _renamed(ids: Tensor, number: int) -> Tensor:
    return torch.where(ids == IGNORE, IGNORE, ids + number * NAMES_PER_SECTOR)


def _joined(parts: Sequence[Any]) -> Any:
    """Dataclasses of one kind as one; empty tensors may have other widths."""
    values: dict[str, Any] = {}
    for name in vars(parts[0]):
        members = [member for part in parts if (member := getattr(part, name)) is not None]
        if members and isinstance(members[0], Tensor):
            values[name] = torch.cat([m for m in members if len(m)] or members[:1])
        else:
            values[name] = _joined(members) if members else None
    return type(parts[0])(**values)
