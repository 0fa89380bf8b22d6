# SPDX-License-Identifier: Apache-2.0
"""OpenScene (Peng et al., CVPR 2023): MinkUNet18A of MinkowskiEngine with features of CLIP.

The networks for nuScenes read only where points are: ones, in voxels of 0.05 m counted from the
smallest index of the sweep.
"""

from __future__ import annotations

from pcseg_core.importers.family import Family, Imported
from pcseg_core.importers.minkunet import Channel, minkowski_layout, read_minkunet, take_linear
from pcseg_core.importers.published import Keys
from pcseg_core.models.student import StudentConfig

_TEXT = {768: "ViT-L-14-336-quickgelu", 512: "ViT-B-32-quickgelu"}


def convert(keys: Keys) -> Imported:
    """The network with its projection as the text head."""
    grid = StudentConfig(
        voxel_size_m=0.05, origin="minimum", reduce="first", inputs=("one",), max_range_m=120.0
    )
    inputs = [Channel("one", (0, 1, 2))]
    config, state = read_minkunet(keys, minkowski_layout(".bn"), grid, inputs)
    weight, bias = take_linear(keys, "final.kernel", None, config, transposed=True)
    if len(weight) not in _TEXT:
        keys.refuse(
            f"'final.kernel' gives {len(weight)} channels, expected one of {tuple(_TEXT)}: those "
            "of CLIP's text space"
        )
    state |= {"text_head.weight": weight, "text_head.bias": bias}
    return Imported(config.model_copy(update={"text_channels": len(weight)}), state)


FAMILY = Family(
    name="openscene",
    title="OpenScene, MinkUNet18A",
    license="Apache-2.0",
    source="https://cvg-data.inf.ethz.ch/openscene/models",
    probes=("conv0p1s1.kernel",),
    convert=convert,
    text=_TEXT,
)
