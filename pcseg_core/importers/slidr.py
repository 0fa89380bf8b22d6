# SPDX-License-Identifier: Apache-2.0
"""SLidR and its relatives (Sautier et al., CVPR 2022): Res16UNet34C of MinkowskiEngine.

PPKT, ST-SLidR, OLIVINE, CSC and AFOV store networks of the same layout. Inputs are the intensity of
the first point of each cylindrical voxel of 0.1 m, 1 degree and 0.1 m; nuScenes gives 0..255. The
networks for SemanticKITTI read its intensity plus one.
"""

from __future__ import annotations

from pcseg_core.importers.family import Family, Head, Imported
from pcseg_core.importers.minkunet import Channel, minkowski_layout, read_minkunet, take_linear
from pcseg_core.importers.published import Keys
from pcseg_core.models.student import StudentConfig

_NUSCENES, _KITTI = 17, 20  # outputs: row 0 is "ignored"
_CLASSES = {_NUSCENES: "nuscenes16", _KITTI: "semantic_kitti"}
_NUSCENES_INTENSITY = 255.0


def convert(keys: Keys) -> Imported:
    """The network, and its classes if the number of outputs is that of a segmenter."""
    outputs = keys.shape("final.kernel")[-1]
    inputs = [Channel("intensity", (0,), _NUSCENES_INTENSITY)]
    if outputs == _KITTI:  # w (i + 1) = w i + w
        inputs = [Channel("intensity", (0,)), Channel("one", (0,))]
    cylinder = bool(keys.values.get("config.cylindrical_coordinates", True))
    grid = StudentConfig.model_validate(
        {
            "voxels": "cylindrical" if cylinder else "cartesian",
            "voxel_size_m": keys.values.get("config.voxel_size", 0.1),
            "azimuth_deg": 1.0,
            "reduce": "first",
            "inputs": [channel.name for channel in inputs],
            "max_range_m": 120.0,
        }
    )
    config, state = read_minkunet(keys, minkowski_layout(".bn"), grid, inputs)
    if outputs not in _CLASSES:
        keys.drop("final.", f"projection to {outputs} channels, of the pretraining")
        return Imported(config, state)
    weight, bias = take_linear(keys, "final.kernel", "final.bias", config, transposed=True)
    return Imported(config, state, Head(weight, bias, ignored=0), _CLASSES[outputs])


FAMILY = Family(
    name="slidr",
    title="SLidR and relatives, Res16UNet34C",
    license="Apache-2.0",
    source="https://github.com/valeoai/SLidR/releases",
    probes=("conv0p1s1.kernel",),
    convert=convert,
)
