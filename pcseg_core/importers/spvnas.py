# SPDX-License-Identifier: Apache-2.0
"""MinkUNets of the SPVNAS model zoo (Tang et al., ECCV 2020): torchsparse, SemanticKITTI.

Inputs are x, y, z and the intensity (0..1) of the first point of each voxel of 0.05 m; positions
are rounded, and counted from the smallest of the sweep. SPVCNN and SPVNAS have a branch of points
and are other networks.
"""

from __future__ import annotations

from pcseg_core.importers.family import Family, Head, Imported
from pcseg_core.importers.minkunet import Channel, Layout, read_minkunet, take_linear
from pcseg_core.importers.published import Keys
from pcseg_core.models.student import StudentConfig

_CLASSES = {19: "semantic_kitti"}
_INPUTS = ("x", "y", "z", "intensity")


def _net(name: str) -> tuple[str, str]:
    return f"{name}.net.0.kernel", f"{name}.net.1"


_LAYOUT = Layout(
    stem=(("stem.0.kernel", "stem.1"), ("stem.3.kernel", "stem.4")),
    down=tuple(_net(f"stage{i}.0") for i in range(1, 5)),
    up=tuple(_net(f"up{i}.0") for i in range(1, 5)),
    blocks=(*(f"stage{i}." for i in range(1, 5)), *(f"up{i}.1." for i in range(1, 5))),
    parts=(
        ("net.0.kernel", "net.1"),
        ("net.3.kernel", "net.4"),
        ("downsample.0.kernel", "downsample.1"),
    ),
    first=1,
)


def convert(keys: Keys) -> Imported:
    """The network with its classes."""
    grid = StudentConfig(
        voxel_size_m=0.05,
        rounding="round",
        origin="minimum",
        reduce="first",
        inputs=_INPUTS,
        max_range_m=120.0,
    )
    inputs = [Channel(name, (i,)) for i, name in enumerate(_INPUTS)]
    config, state = read_minkunet(keys, _LAYOUT, grid, inputs)
    weight, bias = take_linear(keys, "classifier.0.weight", "classifier.0.bias", config)
    keys.drop("point_transforms.", "layers that the published network has but does not run")
    return Imported(config, state, Head(weight, bias), _CLASSES.get(len(weight)))


FAMILY = Family(
    name="spvnas",
    title="MinkUNet of the SPVNAS model zoo",
    license="MIT",
    source="https://hanlab.mit.edu/files/SPVNAS/minkunet",
    probes=("stem.0.kernel",),
    convert=convert,
)
