# SPDX-License-Identifier: Apache-2.0
"""Sonata, Concerto and others of their layout: encoders of Point Transformer V3.

The file is {"config": arguments of the encoder, "state_dict": tensors}. The published networks take
position, color and normal. A LiDAR measures no color, and normals are not computed: both are 0, and
their weights are left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pcseg_core.config import Section, parse_section
from pcseg_core.errors import InputError
from pcseg_core.importers.family import Family, Imported
from pcseg_core.importers.ptv3 import Sizes, take_layers
from pcseg_core.importers.published import Keys
from pcseg_core.models.curves import Curve
from pcseg_core.models.ptv3 import Ptv3Config
from pcseg_core.models.student import StudentConfig, input_features

_CHANNELS = 9  # x, y, z, red, green, blue, normal
_AXES: tuple[Literal["x", "y", "z"], ...] = ("x", "y", "z")
_BLOCK = "enc.enc0.block0"
# Arguments that change nothing in a trained encoder.
_WITHOUT_EFFECT = (
    "attn_drop",
    "proj_drop",
    "drop_path",
    "shuffle_orders",
    "enable_flash",
    "upcast_attention",
    "upcast_softmax",
    "traceable",
    "mask_token",
    "freeze_encoder",
    "dec_depths",
    "dec_channels",
    "dec_num_head",
    "dec_patch_size",
)


class Arguments(Section):
    """Arguments of the published encoder by their names; other values are not supported."""

    in_channels: Literal[9]
    order: tuple[Curve, ...]
    stride: tuple[Literal[2], ...] = (2, 2, 2, 2)
    enc_depths: Sizes
    enc_channels: Sizes
    enc_num_head: Sizes
    enc_patch_size: Sizes
    mlp_ratio: float = 4.0
    qkv_bias: Literal[True] = True
    qk_scale: None = None
    layer_scale: None = None
    pre_norm: Literal[True] = True
    enable_rpe: Literal[False] = False
    enc_mode: Literal[True]


def _outdoor(keys: Keys) -> Imported:
    """Sweeps of streets: positions from the sensor, times 0.2, as Concerto was trained on them."""
    return _encoder(keys, voxel_size_m=0.05, scale=0.2, centered=False)


def _indoor(keys: Keys) -> Imported:
    """Sweeps of rooms: positions from the middle of the sweep and its lowest point."""
    return _encoder(keys, voxel_size_m=0.02, scale=1.0, centered=True)


def _encoder(keys: Keys, voxel_size_m: float, scale: float, centered: bool) -> Imported:
    """The student; `scale` is a factor on its positions."""
    network = _architecture(keys, centered)
    config = StudentConfig(network="ptv3", ptv3=network, voxel_size_m=voxel_size_m, inputs=_AXES)
    state = take_layers(keys, network, _CHANNELS)
    first = "network.stem.linear.weight"
    divisors = dict(input_features(config))
    factors = state[first].new_tensor([scale * divisors[axis] for axis in _AXES])
    state[first] = state[first][:, : len(_AXES)] * factors
    keys.drop("embedding.mask_token", "stands for hidden points in pretraining")
    return Imported(config, state)


def _architecture(keys: Keys, centered: bool) -> Ptv3Config:
    """The architecture that the file describes.

    Raises:
        InputError: no description, or one of another network.
    """
    start, source = "config.", f"{keys.path}: config"
    given: dict[str, Any] = {
        name.removeprefix(start): value
        for name, value in keys.values.items()
        if name.startswith(start) and name.removeprefix(start) not in _WITHOUT_EFFECT
    }
    if not given:
        raise InputError(
            f"{keys.path}: no 'config' beside 'state_dict', which tells the number of heads and "
            "the order of the points; get the file as published"
        )
    if "rope_base" in given or keys.has(f"{_BLOCK}.attn.rope"):
        raise InputError(
            f"{keys.path}: its attention encodes positions by rotation (RoPE), as in Utonia, which "
            "is not supported; take weights of Sonata or Concerto"
        )
    found = parse_section(given, Arguments, source)
    if len({len(found.enc_depths), len(found.enc_patch_size), len(found.stride) + 1}) > 1:
        raise InputError(f"{source}: enc_depths, enc_patch_size and stride differ in length")
    if len(set(found.enc_patch_size)) > 1:
        raise InputError(
            f"{source}: enc_patch_size {list(found.enc_patch_size)}: expected one size for all"
        )
    values = {
        "depths": found.enc_depths,
        "channels": found.enc_channels,
        "heads": found.enc_num_head,
        "patch": found.enc_patch_size[0],
        "curves": found.order,
        "mlp_ratio": found.mlp_ratio,
        "centered": centered,
    }
    return parse_section(values, Ptv3Config, source)


FAMILY = Family(
    name="sonata",
    title="Sonata or Concerto (Point Transformer V3 encoder), for sweeps of streets",
    license="CC-BY-NC-4.0",
    source="https://huggingface.co/facebook/sonata, https://huggingface.co/Pointcept/Concerto",
    probes=("embedding.stem.linear.weight",),
    convert=_outdoor,
)
INDOOR = replace(
    FAMILY,
    name="sonata-indoor",
    title="Sonata or Concerto (Point Transformer V3 encoder), for sweeps of rooms",
    convert=_indoor,
)
