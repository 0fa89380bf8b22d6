# SPDX-License-Identifier: Apache-2.0
"""SuperFlow and relatives in mmdetection3d (Xu et al., ECCV 2024): MinkUNet34 of torchsparse 1.4.

Inputs are x, y, z and the intensity (nuScenes: 0..255) of the first point of each cylindrical voxel
of 0.1 m, 1 degree and 0.1 m; positions are rounded, and counted from the smallest of the sweep.
"""

from __future__ import annotations

from pcseg_core.checkpoint import UNKNOWN_LICENSE
from pcseg_core.importers.family import Family, Head, Imported
from pcseg_core.importers.minkunet import Channel, Layout, read_minkunet, take_linear
from pcseg_core.importers.published import Keys
from pcseg_core.models.student import StudentConfig

_HEAD = "decode_head.conv_seg"
_CLASSES = {17: "nuscenes16", 20: "semantic_kitti"}  # outputs: the last row is "ignored"


def _pair(name: str) -> tuple[str, str]:
    return f"{name}.conv.kernel", f"{name}.norm"


_LAYOUT = Layout(
    stem=(_pair("conv0.0"), _pair("conv0.1")),
    down=tuple(_pair(f"conv{i}") for i in range(1, 5)),
    up=tuple(_pair(f"conv{i}") for i in range(5, 9)),
    blocks=tuple(f"block{stage}." for stage in range(1, 9)),
    parts=(("conv1.kernel", "norm1"), ("conv2.kernel", "norm2"), _pair("downsample")),
)


def convert(keys: Keys) -> Imported:
    """The network, and its classes if the file has a head of a segmenter."""
    inputs = [Channel(name, (i,)) for i, name in enumerate("xyz")]
    inputs.append(Channel("intensity", (3,), 255.0))
    grid = StudentConfig(
        voxels="cylindrical",
        voxel_size_m=0.1,
        azimuth_deg=1.0,
        rounding="round",
        origin="minimum",
        reduce="first",
        inputs=("x", "y", "z", "intensity"),
        max_range_m=120.0,
    )
    config, state = read_minkunet(keys, _LAYOUT, grid, inputs)
    head = keys.beside(_HEAD)
    if head is None:
        return Imported(config, state)
    weight, bias = take_linear(head, "weight", "bias", config)
    head.check()
    return Imported(
        config, state, Head(weight, bias, ignored=len(weight) - 1), _CLASSES.get(len(weight))
    )


FAMILY = Family(
    name="superflow",
    title="SuperFlow and relatives, MinkUNet34 of torchsparse",
    license=UNKNOWN_LICENSE,
    source="no weights are published; train them with https://github.com/Xiangxu-0103/SuperFlow",
    probes=("conv0.0.conv.kernel",),
    convert=convert,
)
