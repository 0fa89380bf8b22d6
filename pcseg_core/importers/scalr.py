# SPDX-License-Identifier: Apache-2.0
"""WaffleIrons: ScaLR and ScaLR+ (Puy et al., CVPR 2024), and those trained without pretraining.

Inputs are intensity, x, y, z and radius of the first point of each voxel of 0.1 m. ScaLR subtracts
the mean of the dataset's intensities and divides by their deviation; the others read them as they
are. ScaLR+ differs by GELU in place of ReLU, which its keys do not show.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from pcseg_core.config import parse_section
from pcseg_core.errors import InputError
from pcseg_core.importers.family import Family, Head, Imported
from pcseg_core.importers.published import Keys
from pcseg_core.models.student import StudentConfig, input_features
from pcseg_core.models.waffleiron import Activation

_INPUTS = ("intensity", "x", "y", "z", "range")
_NUSCENES, _KITTI, _PANDASET = 16, 19, 17  # classes
_CLASSES = {_NUSCENES: "nuscenes16", _KITTI: "semantic_kitti"}
# Published intensity of 1 in 0..1; mean and deviation that ScaLR normalizes by. Networks without
# classes saw all datasets, each normalized by its own figures: those of nuScenes are taken.
_INTENSITY = {
    _NUSCENES: (255.0, 18.742355, 22.04632),
    _KITTI: (1.0, 0.28613698, 0.14090556),
    _PANDASET: (255.0, 18.23640649, 25.86983417),  # Pandar64
}
_SCALR_BOX = {"box_min_m": (-64, -64, -8), "box_max_m": (64, 64, 8), "cells": (256, 256, 32)}
_BOXES = {
    _NUSCENES: {"box_min_m": (-50, -50, -5), "box_max_m": (50, 50, 5), "cells": (166, 166, 16)},
    _KITTI: {"box_min_m": (-50, -50, -3), "box_max_m": (50, 50, 2), "cells": (250, 250, 12)},
}
_EPS = 1e-5  # of a batch norm


def _scalr(keys: Keys, activation: Activation) -> Imported:
    """A network of ScaLR, pretrained or with the classes of `finetune.py`."""
    pretrained = not keys.has("classif.0.running_mean")
    perceptron = pretrained and keys.has("classif.0")
    if pretrained and perceptron != (activation == "gelu"):
        right = "scalr-plus" if perceptron else "scalr"
        raise InputError(
            f"{keys.path}: its head is that of the family '{right}'; give it with --as"
        )
    classes = 0 if pretrained else keys.shape("classif.1.weight")[0]
    config = _config(keys, {"norm": "layer", "activation": activation, **_SCALR_BOX})
    reader = _Reader(keys, config)
    reader.network(*_INTENSITY.get(classes, _INTENSITY[_NUSCENES]))
    if pretrained:
        keys.drop("classif.", "projection to image features, of the pretraining")
        return Imported(config, reader.state)
    return Imported(config, reader.state, reader.normalized_head(classes), _CLASSES.get(classes))


def _waffleiron(keys: Keys) -> Imported:
    """A network of WaffleIron itself, for nuScenes or SemanticKITTI."""
    classes = keys.shape("classif.weight")[0]
    if classes not in _BOXES:
        raise InputError(
            f"{keys.path}: {classes} classes; known are WaffleIrons for nuScenes ({_NUSCENES}) and "
            f"SemanticKITTI ({_KITTI}), whose planes differ"
        )
    config = _config(keys, {"norm": "batch", **_BOXES[classes]})
    reader = _Reader(keys, config)
    factor, _, _ = _INTENSITY[classes]
    reader.network(factor, 0.0, 1.0)
    weight = keys.take("classif.weight", classes, config.waffleiron.channels, 1)[..., 0]
    head = Head(weight, keys.take("classif.bias", classes))
    return Imported(config, reader.state, head, _CLASSES[classes])


def _config(keys: Keys, network: dict[str, object]) -> StudentConfig:
    """Configuration of the student.

    Raises:
        InputError: sizes that no WaffleIron has.
    """
    size = {
        "layers": keys.count("waffleiron.channel_mix."),
        "channels": keys.shape("embed.conv1.weight")[0],
        "neighbors": 16,
    }
    values = {
        "network": "waffleiron",
        "waffleiron": {**size, **network},
        "voxel_size_m": 0.1,
        "reduce": "first",
        "inputs": _INPUTS,
        "max_range_m": 120.0,
    }
    return parse_section(values, StudentConfig, str(keys.path))


class _Reader:
    """Takes the layers of a WaffleIron one by one.

    Attributes:
        state: tensors of the student.
    """

    def __init__(self, keys: Keys, config: StudentConfig) -> None:
        self._keys, self._config = keys, config
        self._width = config.waffleiron.channels
        self.state: dict[str, Tensor] = {}

    def network(self, factor: float, mean: float, deviation: float) -> None:
        """Take all layers up to the classifier.

        Args:
            factor: published intensity of an intensity of 1.
            mean, deviation: the network reads (published intensity - mean) / deviation.
        """
        width, inputs = self._width, len(_INPUTS)
        self._batch_norm("embed.norm", "embed.norm", inputs)
        self._fold_inputs(factor / deviation, -mean / deviation)
        self._linear("embed.point", "embed.conv1", (width, inputs, 1))
        self._batch_norm("embed.around.0", "embed.conv2.0", inputs)
        self._linear("embed.around.1", "embed.conv2.1", (width, inputs, 1, 1), bias=False)
        self._batch_norm("embed.around.2", "embed.conv2.2", width)
        self._linear("embed.around.4", "embed.conv2.4", (width, width, 1, 1), bias=False)
        self._linear("embed.merge", "embed.final", (width, 2 * width, 1))
        for i in range(self._config.waffleiron.layers):
            for ours, theirs in (("spatial", "spatial_mix"), ("channel", "channel_mix")):
                self._mix(f"{ours}.{i}", f"waffleiron.{theirs}.{i}")

    def normalized_head(self, classes: int) -> Head:
        """Classes behind a batch norm, as one layer."""
        width, keys = self._width, self._keys
        gain, shift, mean, variance = (
            keys.take(f"classif.0.{name}", width)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        weight = keys.take("classif.1.weight", classes, width, 1)[..., 0]
        gain = gain / torch.sqrt(variance + _EPS)
        bias = keys.take("classif.1.bias", classes) + weight @ (shift - mean * gain)
        return Head(weight * gain, bias)

    def _fold_inputs(self, scale: float, offset: float) -> None:
        """The first norm for the student's inputs, which are divided by their spread.

        It reads u = p / d in place of p for positions p, and p = a u + b for the intensity: its
        mean m becomes (m - b) / a and its variance (v + eps) / a^2 - eps.
        """
        divisors = [divisor for _, divisor in input_features(self._config)]
        factors, offsets = torch.tensor(divisors), torch.zeros(len(divisors))
        factors[0] *= scale
        offsets[0] = offset
        mean, variance = (f"network.embed.norm.running_{kind}" for kind in ("mean", "var"))
        self.state[mean] = (self.state[mean] - offsets) / factors
        self.state[variance] = ((self.state[variance] + _EPS) / factors**2 - _EPS).clamp(min=0)

    def _mix(self, ours: str, theirs: str) -> None:
        """A spatial or a channel mix."""
        width = self._width
        if self._config.waffleiron.norm == "batch":
            self._batch_norm(f"{ours}.norm", f"{theirs}.norm", width)
        else:
            self._take(f"{ours}.norm", f"{theirs}.norm", ("weight", "bias"), width)
        spatial = ours.startswith("spatial")
        part = "ffn" if spatial else "mlp"
        shape = (width, 1, 3, 3) if spatial else (width, width, 1)
        for number in (0, 2):
            self._linear(f"{ours}.{part}.{number}", f"{theirs}.{part}.{number}", shape)
        scale = self._keys.take(f"{theirs}.scale.weight", width, 1, 1)
        self.state[f"network.{ours}.scale"] = scale.flatten()

    def _linear(self, ours: str, theirs: str, shape: tuple[int, ...], bias: bool = True) -> None:
        """A convolution; one of size 1 becomes a matrix."""
        weight = self._keys.take(f"{theirs}.weight", *shape)
        self.state[f"network.{ours}.weight"] = weight if shape[-1] > 1 else weight.flatten(1)
        if bias:
            self._take(ours, theirs, ("bias",), shape[0])

    def _batch_norm(self, ours: str, theirs: str, width: int) -> None:
        self._take(ours, theirs, ("weight", "bias", "running_mean", "running_var"), width)
        self.state[f"network.{ours}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)

    def _take(self, ours: str, theirs: str, names: tuple[str, ...], width: int) -> None:
        for name in names:
            self.state[f"network.{ours}.{name}"] = self._keys.take(f"{theirs}.{name}", width)


_PROBES = ("embed.conv1.weight",)

SCALR = Family(
    name="scalr",
    title="ScaLR, WaffleIron-48-768",
    license="Apache-2.0",
    source="https://github.com/valeoai/ScaLR/releases/tag/v0.1.0",
    probes=_PROBES,
    convert=partial(_scalr, activation="relu"),
)
SCALR_PLUS = Family(
    name="scalr-plus",
    title="ScaLR+, WaffleIron-48-768",
    license="Apache-2.0",
    source="https://github.com/valeoai/ScaLR/releases/tag/v0.2.0",
    probes=_PROBES,
    convert=partial(_scalr, activation="gelu"),
)
WAFFLEIRON = Family(
    name="waffleiron",
    title="WaffleIron without pretraining",
    license="Apache-2.0",
    source="https://github.com/valeoai/WaffleIron/releases/tag/v0.2.0",
    probes=_PROBES,
    convert=_waffleiron,
)
