# SPDX-License-Identifier: Apache-2.0
"""WaffleIron (Puy, Boulch, Marlet, ICCV 2023): dense 2D convolutions and linear layers.

Points are embedded with their nearest neighbors. Each layer then averages their features in the
cells of a plane, convolves them there and adds the result of its cell to each point; after that it
mixes the channels of each point. The planes are seen along z, y and x in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from pcseg_core.config import Section
from pcseg_core.models.neighbors import nearest, neighborhoods
from pcseg_core.models.network import Network
from pcseg_core.sparse import SparseTensor

_ROWS = 1024  # points whose neighborhoods are embedded at once, without gradients
PLANES = ((0, 1), (0, 2), (1, 2))
"""Axes of the planes seen along z, y and x."""

_BORDER_M = 1e-4  # a point this close to the border of the box is outside

Norm = Literal["batch", "layer"]
Activation = Literal["relu", "gelu"]


class WaffleIronConfig(Section):
    """Size and grids of a WaffleIron."""

    layers: int = Field(12, ge=1, le=96, description="Layers, each on one plane")
    channels: int = Field(64, ge=8, le=2048, description="Channels of every layer")
    neighbors: int = Field(8, ge=1, le=64, description="Nearest neighbors of a voxel")
    norm: Norm = Field("batch", description="Normalization in the layers")
    activation: Activation = Field("relu", description="Activation in the layers")
    box_min_m: tuple[float, float, float] = Field(
        (-64.0, -64.0, -8.0), description="Lowest x, y, z of the planes [m]"
    )
    box_max_m: tuple[float, float, float] = Field(
        (64.0, 64.0, 8.0),
        description="Highest x, y, z; voxels outside of the box take the answer of the nearest "
        "one inside [m]",
    )
    cells: tuple[int, int, int] = Field(
        (256, 256, 32), description="Cells of the box along x, y and z"
    )

    @model_validator(mode="after")
    def _check_box(self) -> Self:
        if any(a >= b for a, b in zip(self.box_min_m, self.box_max_m, strict=True)):
            raise ValueError(
                f"box_min_m {self.box_min_m}: expected less than box_max_m {self.box_max_m}"
            )
        if not all(1 <= n <= 2048 for n in self.cells):
            raise ValueError(f"cells {self.cells}: expected 1 to 2048 along each axis")
        return self


@dataclass(frozen=True, eq=False)
class Plane:
    """Points on the cells of a plane, for one or several sweeps.

    Attributes:
        cell: (N,) int64 cell of each point, over all sweeps.
        share: (N, 1) one divided by the number of points in that cell.
        shape: sweeps B, cells H and W.
    """

    cell: Tensor
    share: Tensor
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, cell: Tensor, shape: tuple[int, int, int], dtype: torch.dtype) -> Plane:
        count = torch.bincount(cell, minlength=shape[0] * shape[1] * shape[2])
        return cls(cell, (1 / count[cell].to(dtype))[:, None], shape)

    def flatten(self, x: Tensor) -> Tensor:
        """Mean (B, C, H, W) of the points (N, C) of each cell, zero where there are none."""
        sweeps, height, width = self.shape
        sums = x.new_zeros(sweeps * height * width, x.shape[1])
        sums = sums.index_add(0, self.cell, x * self.share)
        return sums.view(sweeps, height, width, -1).permute(0, 3, 1, 2)  # channels last

    def inflate(self, image: Tensor) -> Tensor:
        """The cell (N, C) of each point."""
        rows = image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])
        return rows.index_select(0, self.cell)


class Embedding(nn.Module):
    """First features of a point, from its inputs and their differences to its neighbors."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(in_channels)
        self.point = nn.Linear(in_channels, channels)
        self.around = nn.Sequential(
            nn.BatchNorm1d(in_channels),
            nn.Linear(in_channels, channels, bias=False),
            nn.BatchNorm1d(channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, channels, bias=False),
        )
        self.merge = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor, neighbors: Tensor) -> Tensor:
        """Map inputs (N, F) and rows of neighbors (N, K) to (N, C)."""
        x = self.norm(x)
        if torch.is_grad_enabled() or self.training:
            around = self._strongest(x, x, neighbors)
        else:
            pieces = zip(x.split(_ROWS), neighbors.split(_ROWS), strict=True)
            around = torch.cat([self._strongest(x, centers, rows) for centers, rows in pieces])
        merged: Tensor = self.merge(torch.cat([self.point(x), around], dim=1))
        return merged

    def _strongest(self, x: Tensor, centers: Tensor, neighbors: Tensor) -> Tensor:
        """Largest embedding over the neighbors of some points."""
        rows, count = neighbors.shape
        apart = x[neighbors] - centers[:, None]
        embedded: Tensor = self.around(apart.flatten(0, 1))
        return embedded.view(rows, count, -1).amax(1)


def _norm(kind: Norm, channels: int) -> nn.Module:
    return nn.BatchNorm1d(channels) if kind == "batch" else nn.LayerNorm(channels)


def _between(kind: Activation, first: nn.Module, second: nn.Module) -> nn.Sequential:
    return nn.Sequential(first, nn.ReLU(inplace=True) if kind == "relu" else nn.GELU(), second)


class SpatialMix(nn.Module):
    """Two depthwise convolutions on a plane, added to its points with a factor per channel."""

    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__()
        width = config.channels
        self.norm = _norm(config.norm, width)
        convolutions = (nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(2))
        self.ffn = _between(config.activation, *convolutions)
        self.scale = nn.Parameter(torch.empty(width).uniform_(-1, 1))

    def forward(self, x: Tensor, plane: Plane) -> Tensor:
        """Features (N, C) of the points."""
        return x + self.scale * plane.inflate(self.ffn(plane.flatten(self.norm(x))))


class ChannelMix(nn.Module):
    """Two linear layers on each point, added with a factor per channel."""

    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__()
        width = config.channels
        self.norm = _norm(config.norm, width)
        self.mlp = _between(config.activation, *(nn.Linear(width, width) for _ in range(2)))
        self.scale = nn.Parameter(torch.empty(width).uniform_(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C) of the points."""
        mixed: Tensor = self.mlp(self.norm(x))
        return x + self.scale * mixed


class WaffleIron(Network):
    """The backbone with a linear classifier.

    Attributes:
        config: size and grids.
    """

    def __init__(
        self, inputs: Sequence[tuple[str, float]], out_channels: int, config: WaffleIronConfig
    ) -> None:
        """Build the network.

        Args:
            inputs: name and divisor of each input feature, x, y and z among them; see
                `student.input_features`.
            out_channels: classes.
            config: size and grids.
        """
        super().__init__()
        self.config = config
        self.in_channels, self.out_channels = len(inputs), out_channels
        self.feature_channels = config.channels
        names = [name for name, _ in inputs]
        self._columns = [names.index(axis) for axis in "xyz"]
        self._units_m = [inputs[column][1] for column in self._columns]
        self.embed = Embedding(self.in_channels, config.channels)
        self.spatial = nn.ModuleList(SpatialMix(config) for _ in range(config.layers))
        self.channel = nn.ModuleList(ChannelMix(config) for _ in range(config.layers))
        self.classifier = nn.Linear(config.channels, out_channels)

    def features(self, x: SparseTensor) -> Tensor:
        """Features (M, C); a sweep without a voxel in the box has zeros."""
        xyz, batch = self.positions(x)
        inside = self.inside(xyz)
        if bool(inside.all()):
            return self._inside(x.feats, xyz, batch)
        kept = inside.nonzero()[:, 0]
        answers = x.feats.new_zeros(1, self.feature_channels)
        if len(kept):
            found = self._inside(x.feats[kept], xyz[kept], batch[kept])
            answers = torch.cat([found, answers])
        return answers.index_select(0, _answering(xyz, batch, inside))

    def positions(self, x: SparseTensor) -> tuple[Tensor, Tensor]:
        """Positions (M, 3) of the voxels [m] and their sweeps (M,) int64."""
        units_m = x.feats.new_tensor(self._units_m)
        return x.feats[:, self._columns] * units_m, x.coords[:, 0].long()

    def inside(self, xyz: Tensor) -> Tensor:
        """Which positions (M, 3) lie in the box."""
        low, high = self._box(xyz)
        return ((xyz > low + _BORDER_M) & (xyz < high - _BORDER_M)).all(1)

    def _box(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        return xyz.new_tensor(self.config.box_min_m), xyz.new_tensor(self.config.box_max_m)

    def _inside(self, feats: Tensor, xyz: Tensor, batch: Tensor) -> Tensor:
        """Features of voxels that lie in the box."""
        neighbors = neighborhoods(xyz, batch, self.config.neighbors)
        planes = self.planes(xyz, batch, feats.dtype)
        return self.mix(self.embed(feats, neighbors), planes)

    def places(self, xyz: Tensor) -> Tensor:
        """Cells (N, 3) int64 of points in the box along x, y and z."""
        low, high = self._box(xyz)
        cells = torch.tensor(self.config.cells, device=xyz.device)
        place = ((xyz - low) / ((high - low) / cells)).long().clamp_(min=0)
        return torch.minimum(place, cells - 1)

    def planes(self, xyz: Tensor, batch: Tensor, dtype: torch.dtype) -> list[Plane]:
        """The planes of points (N, 3) in the box, of the sweeps (N,)."""
        place, sweeps, found = self.places(xyz), int(batch[-1]) + 1, []
        windows = [
            _window(place[:, axis], batch, sweeps, count)
            for axis, count in enumerate(self.config.cells)
        ]
        for a, b in PLANES:
            (row, height), (column, width) = windows[a], windows[b]
            cell = (batch * height + row) * width + column
            found.append(Plane.of(cell, (sweeps, height, width), dtype))
        return found

    def mix(self, x: Tensor, planes: Sequence[Plane]) -> Tensor:
        """The layers, on embedded points (N, C)."""
        for i, (spatial, channel) in enumerate(zip(self.spatial, self.channel, strict=True)):
            x = channel(spatial(x, planes[i % len(planes)]))
        return x


def _window(place: Tensor, batch: Tensor, sweeps: int, cells: int) -> tuple[Tensor, int]:
    """Cells (N,) of points from the start of the part of a plane that a sweep needs, and its size.

    Two convolutions of kernel 3 need the cells of the points and one more on each side: beyond it,
    cells are empty as in the padding. Where the plane ends, the part ends too.
    """
    low = batch.new_full((sweeps,), cells).scatter_reduce(0, batch, place, "amin")
    high = batch.new_zeros(sweeps).scatter_reduce(0, batch, place, "amax")
    start, end = (low - 1).clamp(min=0), (high + 2).clamp(max=cells)
    size = int((end - start).max())
    return place - start.clamp(max=cells - size)[batch], size


def _answering(xyz: Tensor, batch: Tensor, inside: Tensor) -> Tensor:
    """Row among the voxels inside that answers for each voxel: itself, or the nearest one.

    The row after the last one stands for voxels of a sweep that has none inside.
    """
    rows = inside.long().cumsum(0) - 1
    for sweep in batch[~inside].unique():
        own = batch == sweep
        outside, candidates = (own & ~inside).nonzero()[:, 0], (own & inside).nonzero()[:, 0]
        if len(candidates):
            place = nearest(xyz[outside], xyz[candidates], 1)[:, 0]
            rows[outside] = rows[candidates[place]]
        else:
            rows[outside] = int(inside.sum())
    return rows
