# SPDX-License-Identifier: Apache-2.0
"""The student network: LiDAR points in, class logits and image features per voxel out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import Self

from pcseg_core.checkpoint import check_fits
from pcseg_core.config import Section, parse_section
from pcseg_core.models.minkunet import PLANES, MinkUNet
from pcseg_core.models.network import Network
from pcseg_core.models.ptv3 import Ptv3, Ptv3Config
from pcseg_core.models.waffleiron import WaffleIron, WaffleIronConfig
from pcseg_core.sparse.tensor import SparseTensor
from pcseg_core.sparse.voxels import Voxels, first_features, mean_features, voxelize

Family = Literal["minkunet", "waffleiron", "ptv3"]
Channels = Annotated[int, Field(ge=4, le=4096, multiple_of=4)]
InputName = Literal["x", "y", "z", "range", "intensity", "one", "offset"]

# Divisors that scale each input to a spread near one; part of the checkpoint format.
_INPUT_SCALE = {"x": 30.0, "y": 30.0, "z": 2.0, "range": 30.0, "intensity": 0.3, "one": 1.0}
_OFFSET_SCALE = 0.3  # of the offset inside a voxel, in voxels
# Fields that only one family of networks reads.
_FAMILY_FIELDS: dict[Family, tuple[str, ...]] = {
    "minkunet": ("depth", "width", "planes", "stem_kernel", "stem_convs"),
    "waffleiron": ("waffleiron",),
    "ptv3": ("ptv3",),
}


class StudentConfig(Section):
    """Architecture and inputs of the student network."""

    network: Family = Field("minkunet", description="Family of networks")
    depth: Literal[14, 18, 34] = Field(18, description="MinkUNet depth")
    width: float = Field(0.5, gt=0, le=4, description="Factor on the channels of every level")
    planes: tuple[Channels, ...] = Field(
        (), description="Channels of the eight stages, multiples of 4, in place of width"
    )
    stem_kernel: Literal[3, 5] = Field(3, description="Kernel size of the first convolution")
    stem_convs: Literal[1, 2] = Field(1, description="Number of convolutions before the stages")
    waffleiron: WaffleIronConfig = Field(default_factory=WaffleIronConfig)
    ptv3: Ptv3Config = Field(default_factory=Ptv3Config)
    voxels: Literal["cartesian", "cylindrical"] = Field("cartesian", description="Voxel grid")
    voxel_size_m: float = Field(
        0.1,
        gt=0.005,
        le=2,
        description="Edge of a voxel; radius and height of a cylindrical one [m]",
    )
    azimuth_deg: float = Field(
        1.0, gt=0, le=10, description="Azimuth of a cylindrical voxel [deg]; unused by cartesian"
    )
    rounding: Literal["floor", "round"] = Field(
        "floor", description="How a position in voxels becomes the index of its voxel"
    )
    origin: Literal["absolute", "minimum"] = Field(
        "absolute",
        description="Where the grid begins, which decides what voxels the coarser levels join: the "
        "sensor, or the smallest index of the sweep along each axis",
    )
    reduce: Literal["mean", "first"] = Field(
        "mean", description="Input features of a voxel: their mean, or those of its first point"
    )
    inputs: tuple[InputName, ...] = Field(
        ("z", "intensity"),
        min_length=1,
        description="Input features of a point; offset is its position inside the voxel",
    )
    max_range_m: float = Field(
        80.0, gt=1, le=500, description="Points beyond this distance get no label [m]"
    )
    feature_channels: int = Field(
        0,
        ge=0,
        le=4096,
        description="Channels of the teacher's features for the regression head; 0 for none",
    )
    text_channels: int = Field(
        0, ge=0, le=4096, description="Channels of the text space for the text head; 0 for none"
    )

    @field_validator("planes")
    @classmethod
    def _eight(cls, planes: tuple[int, ...]) -> tuple[int, ...]:
        if len(planes) not in (0, len(PLANES)):
            raise ValueError(f"expected {len(PLANES)} numbers or none")
        return planes

    @model_validator(mode="after")
    def _check_family(self) -> Self:
        """Fields of another family of networks have no effect: they keep their defaults."""
        for family, names in _FAMILY_FIELDS.items():
            changed = [name for name in names if getattr(self, name) != _default(name)]
            if changed and family != self.network:
                raise ValueError(
                    f"{', '.join(changed)}: of the network '{family}', but 'network' is "
                    f"'{self.network}'; leave out what that one does not have"
                )
        if self.network != "minkunet" and not {"x", "y", "z"} <= set(self.inputs):
            raise ValueError(
                f"inputs {list(self.inputs)}: the network '{self.network}' takes positions from "
                "its inputs; expected x, y and z among them, as in [intensity, x, y, z, range]"
            )
        return self

    @model_serializer(mode="wrap")
    def _own_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Without the fields of other families, whose defaults may change."""
        other = {n for f, names in _FAMILY_FIELDS.items() if f != self.network for n in names}
        return {name: value for name, value in handler(self).items() if name not in other}


def stored_config(described: Mapping[str, object], source: object) -> StudentConfig:
    """The configuration that a checkpoint stores; `source` names it in messages.

    Raises:
        InputError: unknown or wrong values.
    """
    return parse_section(described, StudentConfig, f"checkpoint {source}")


def _default(name: str) -> object:
    return StudentConfig.model_fields[name].get_default(call_default_factory=True)


def input_features(config: StudentConfig) -> list[tuple[str, float]]:
    """Name and divisor of each input feature of a point; "offset" is one for each axis."""
    features: list[tuple[str, float]] = [
        (name, _INPUT_SCALE[name]) for name in config.inputs if name != "offset"
    ]
    if "offset" in config.inputs:
        features += [(f"offset_{axis}", _OFFSET_SCALE) for axis in "xyz"]
    return features


def voxel_edges(config: StudentConfig) -> tuple[float, float, float]:
    """Edges of a voxel: three of a cube [m], or radius [m], azimuth [rad] and height [m]."""
    edge = config.voxel_size_m
    middle = edge if config.voxels == "cartesian" else math.radians(config.azimuth_deg)
    return edge, middle, edge


def input_channels(config: StudentConfig) -> int:
    """Number of input features of a point."""
    return len(input_features(config))


@dataclass
class Points:
    """Points of a batch of sweeps: finite, within range.

    Attributes:
        xyz: (N, 3) float32, LiDAR frame [m].
        intensity: (N,) float32 in 0..1.
        batch: (N,) int64 sweep of each point.
    """

    xyz: Tensor
    intensity: Tensor
    batch: Tensor

    def to(self, device: torch.device) -> Points:
        return Points(self.xyz.to(device), self.intensity.to(device), self.batch.to(device))


@dataclass
class StudentOutput:
    """Output of the student per voxel.

    Attributes:
        logits: (M, C) class logits.
        features: (M, D) penultimate features.
        regressed: (M, F) prediction of the teacher's features; None without regression head.
        voxels: voxels of the points.
        text_head: maps features to the text space; None without text head.
    """

    logits: Tensor
    features: Tensor
    regressed: Tensor | None
    voxels: Voxels
    text_head: nn.Linear | None = None

    def float(self) -> StudentOutput:
        """The same in float32."""
        regressed = None if self.regressed is None else self.regressed.float()
        return replace(
            self, logits=self.logits.float(), features=self.features.float(), regressed=regressed
        )

    @cached_property
    def text(self) -> Tensor | None:
        """(M, D) unit vectors in the text space; large, computed on first access."""
        if self.text_head is None:
            return None
        with torch.set_grad_enabled(self.logits.requires_grad):  # as in the forward pass
            return F.normalize(self.text_head(self.features), dim=1)


def make_network(config: StudentConfig, classes: int) -> Network:
    """The network of the configured family, with random weights."""
    if config.network == "waffleiron":
        return WaffleIron(input_features(config), classes, config.waffleiron)
    if config.network == "ptv3":
        return Ptv3(input_features(config), classes, config.ptv3)
    return MinkUNet(
        input_channels(config),
        classes,
        config.depth,
        config.width,
        config.planes,
        config.stem_kernel,
        config.stem_convs,
    )


class Student(nn.Module):
    """A network over the voxels of a sweep, with a linear head per class.

    Args:
        config: architecture and inputs.
        classes: number of classes.
    """

    def __init__(self, config: StudentConfig, classes: int) -> None:
        super().__init__()
        self.config = config
        self.network = make_network(config, classes)
        self.regression: nn.Module | None = None
        if config.feature_channels:
            width = self.network.feature_channels
            self.regression = nn.Sequential(
                nn.Linear(width, 2 * width),
                nn.ReLU(),
                nn.Linear(2 * width, config.feature_channels),
            )
        # Linear: any set of words then folds with it into one small matrix.
        self.text_head: nn.Linear | None = None
        if config.text_channels:
            self.text_head = nn.Linear(self.network.feature_channels, config.text_channels)

    def voxelize(self, points: Points, backend: str = "auto") -> Voxels:
        """Voxels of the points on the configured grid; `backend` as in `sparse.voxelize`."""
        config = self.config
        return voxelize(
            points.xyz,
            voxel_edges(config),
            points.batch,
            config.voxels,
            backend,
            config.rounding,
            config.origin,
        )

    def inputs(self, points: Points, voxels: Voxels) -> Tensor:
        """(N, F) input features, scaled to a spread near one; see `input_features`.

        "offset" is the position of the point inside its voxel. It separates smooth from rough
        surfaces below the size of a voxel.
        """
        x, y, z = points.xyz.unbind(1)
        columns: dict[str, Callable[[], Tensor]] = {
            "x": lambda: x,
            "y": lambda: y,
            "z": lambda: z,
            "range": lambda: points.xyz.norm(dim=1),
            "intensity": lambda: points.intensity,
            "one": lambda: torch.ones_like(points.intensity),
            "offset_x": lambda: _offset(voxels.grid[:, 0]),
            "offset_y": lambda: _offset(voxels.grid[:, 1]),
            "offset_z": lambda: _offset(voxels.grid[:, 2]),
        }
        features = input_features(self.config)
        return torch.stack([columns[name]() / scale for name, scale in features], 1)

    def sparse_input(self, points: Points, voxels: Voxels, backend: str = "auto") -> SparseTensor:
        """The network's input: input features of each voxel, reduced as configured.

        Args:
            points: points of the sweeps.
            voxels: their voxels.
            backend: runs the convolutions; see `pcseg_core.sparse.backends`.
        """
        reduce = mean_features if self.config.reduce == "mean" else first_features
        features = reduce(self.inputs(points, voxels), voxels)
        return SparseTensor.of_keys(voxels.keys, features, backend)

    def forward(self, points: Points) -> StudentOutput:
        """Logits and features of every occupied voxel."""
        voxels = self.voxelize(points)
        features = self.network.features(self.sparse_input(points, voxels))
        regressed = self.regression(features) if self.regression is not None else None
        logits = self.network.classifier(features)
        return StudentOutput(logits, features, regressed, voxels, self.text_head)


def _offset(grid: Tensor) -> Tensor:
    """Position inside the voxel, -0.5 to 0.5 voxels."""
    return grid - grid.floor() - 0.5


class _Uninitialized(TorchFunctionMode):
    """Parameters are not filled with random numbers, which torch compiles on the meta device."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = kwargs or {}
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def load_student(
    config: StudentConfig, classes: int, state: Mapping[str, Tensor], source: object
) -> Student:
    """Build a student with the weights of a checkpoint, on the CPU.

    Nothing of the described size is allocated before it is known that the weights have it.

    Raises:
        InputError: the weights do not fit the configuration; `source` names them.
    """
    with _Uninitialized():
        with torch.device("meta"):
            described = Student(config, classes)
        check_fits(described, state, source)
        student = Student(config, classes)
    student.load_state_dict(dict(state))
    return student


def cosine_logits(
    features_unit: Tensor, class_vectors: Tensor, temperature: float = 0.07
) -> Tensor:
    """Logits of a cosine classifier: <z, t_c> / tau.

    Args:
        features_unit: (M, D) unit rows.
        class_vectors: (C, D) unit rows.
        temperature: tau.

    Returns:
        (M, C), between -1/tau and 1/tau.
    """
    return features_unit @ class_vectors.t() / temperature
