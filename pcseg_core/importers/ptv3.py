# SPDX-License-Identifier: Apache-2.0
"""Point Transformer V3 as trained on labeled sweeps with Pointcept, and the names of its layers.

Inputs are position [m] and intensity (0..1) in voxels of 0.05 m. The file does not describe the
network: its sizes follow from its tensors, and heads have 16 channels in all published ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pcseg_core.checkpoint import UNKNOWN_LICENSE
from pcseg_core.importers.family import Family, Head, Imported
from pcseg_core.importers.published import Keys
from pcseg_core.models.ptv3 import Ptv3Config
from pcseg_core.models.student import StudentConfig, input_features

_HEAD_CHANNELS = 16
_CLASSES = {16: "nuscenes16", 19: "semantic_kitti"}  # by outputs
_STATISTICS = ("running_mean", "running_var")

Sizes = tuple[int, ...]
Layer = tuple[str, str, Sizes]
"""Our name, published name and published shape of the weight."""


def _convert(keys: Keys) -> Imported:
    """The network, and its classes if the file has a head beside it."""
    network = _architecture(keys)
    config = StudentConfig(
        network="ptv3", ptv3=network, voxel_size_m=0.05, inputs=("x", "y", "z", "intensity")
    )
    state = take_layers(keys, network, len(config.inputs))
    divisors = torch.tensor([divisor for _, divisor in input_features(config)])
    state["network.stem.conv.weight"] *= divisors[:, None]
    found = keys.beside("seg_head")
    if found is None:
        return Imported(config, state)
    classes, width = found.shape("weight")[0], network.decoder_channels[0]
    head = Head(found.take("weight", classes, width), found.take("bias", classes))
    found.check()
    return Imported(config, state, head, _CLASSES.get(classes))


def _architecture(keys: Keys) -> Ptv3Config:
    """The architecture that the shapes tell.

    Raises:
        InputError: no decoder, or stages that are missing.
    """
    sizes: list[tuple[list[int], list[int]]] = []
    for start in ("enc.enc", "dec.dec"):
        grids = range(keys.count(start))
        widths = [keys.shape(f"{start}{g}.block0.norm1.0.weight")[0] for g in grids]
        sizes.append((widths, [keys.count(f"{start}{g}.block") for g in grids]))
    (channels, depths), (back, back_depths) = sizes
    if len(back) != len(channels) - 1 or not back:
        keys.refuse(f"{len(channels)} stages and a decoder on {len(back)} grids")
    return Ptv3Config(
        version=1,
        depths=tuple(depths),
        channels=tuple(channels),
        heads=tuple(max(1, c // _HEAD_CHANNELS) for c in channels),
        decoder_depths=tuple(back_depths),
        decoder_channels=tuple(back),
        decoder_heads=tuple(max(1, c // _HEAD_CHANNELS) for c in back),
    )


def take_layers(keys: Keys, config: Ptv3Config, inputs: int) -> dict[str, Tensor]:
    """The tensors of a network by our names, as a student has them."""
    state: dict[str, Tensor] = {}
    for ours, theirs, shape in _layers(config, inputs):
        start, outputs = f"network.{ours}", shape[:1]
        weight = keys.take(f"{theirs}.weight", *shape)
        if len(shape) == 5:  # (out, x, y, z, in)
            weight = weight.permute(1, 2, 3, 4, 0).reshape(-1, shape[4], shape[0])
        state[f"{start}.weight"] = weight
        if ours != "stem.conv":
            state[f"{start}.bias"] = keys.take(f"{theirs}.bias", *outputs)
        if config.version == 1 and ours.startswith(("stem", "down", "up")) and "norm" in ours:
            for name in _STATISTICS:
                state[f"{start}.{name}"] = keys.take(f"{theirs}.{name}", *outputs)
            state[f"{start}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    return state


def _layers(config: Ptv3Config, inputs: int) -> Iterator[Layer]:
    widths, back = config.channels, config.decoder_channels
    stem = "embedding.stem"
    if config.version == 1:
        yield "stem.conv", f"{stem}.conv", (widths[0], 5, 5, 5, inputs)
    else:
        yield "stem.linear", f"{stem}.linear", (widths[0], inputs)
    yield "stem.norm", f"{stem}.norm", (widths[0],)
    for stage, (width, depth) in enumerate(zip(widths, config.depths, strict=True)):
        theirs = f"enc.enc{stage}"
        if stage:
            yield f"down.{stage - 1}.linear", f"{theirs}.down.proj", (width, widths[stage - 1])
            yield f"down.{stage - 1}.norm", f"{theirs}.down.norm.0", (width,)
        yield from _blocks(f"encoder.{stage}", theirs, depth, width, config)
    for grid, (width, depth) in enumerate(zip(back, config.decoder_depths, strict=True)):
        theirs, below = f"dec.dec{grid}", (*back, widths[-1])[grid + 1]
        for ours, name, channels in (
            ("coarse", "proj", below),
            ("skip", "proj_skip", widths[grid]),
        ):
            yield f"up.{grid}.{ours}.linear", f"{theirs}.up.{name}.0", (width, channels)
            yield f"up.{grid}.{ours}.norm", f"{theirs}.up.{name}.1", (width,)
        yield from _blocks(f"decoder.{grid}", theirs, depth, width, config)


def _blocks(ours: str, theirs: str, depth: int, c: int, config: Ptv3Config) -> Iterator[Layer]:
    """The layers of blocks of c channels."""
    hidden = int(c * config.mlp_ratio)
    layers: tuple[Layer, ...] = (
        ("position.conv", "cpe.0", (c, 3, 3, 3, c)),
        ("position.linear", "cpe.1", (c, c)),
        ("position.norm", "cpe.2", (c,)),
        ("norm1", "norm1.0", (c,)),
        ("attention.qkv", "attn.qkv", (3 * c, c)),
        ("attention.out", "attn.proj", (c, c)),
        ("norm2", "norm2.0", (c,)),
        ("mlp.0", "mlp.0.fc1", (hidden, c)),
        ("mlp.2", "mlp.0.fc2", (c, hidden)),
    )
    for block in range(depth):
        for own, published, shape in layers:
            yield f"{ours}.{block}.{own}", f"{theirs}.block{block}.{published}", shape


FAMILY = Family(
    name="ptv3",
    title="Point Transformer V3 of Pointcept, trained on labeled sweeps",
    license=UNKNOWN_LICENSE,
    source="https://huggingface.co/Pointcept/PointTransformerV3",
    probes=("embedding.stem.conv.weight",),
    convert=_convert,
)
