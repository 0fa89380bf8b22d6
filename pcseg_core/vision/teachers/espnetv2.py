# SPDX-License-Identifier: Apache-2.0
"""ESPNetv2 as a teacher of pixel classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.vision.espnetv2 import ENCODER_CHANNELS, ESPNetv2
from pcseg_core.vision.pixel_classes import TeacherConfig
from pcseg_core.vision.registry import Kind, LocatedPath
from pcseg_core.vision.weights import read_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ESPNETV2_SOURCE = (
    "https://github.com/sacmehta/EdgeNets (Cityscapes weights; `pcseg weights get "
    "espnetv2-cityscapes` downloads them)"
)


class ESPNetv2Config(TeacherConfig):
    """ESPNetv2 with its published or bundled weights."""

    name: Literal["espnetv2"] = "espnetv2"
    weights: Annotated[Path, LocatedPath()] = Field(
        description="Name that `pcseg weights list` shows, or path of the weights (safetensors or "
        "torch); bundled:simulation_teacher is part of the package and trained on simulated images"
    )
    scales: tuple[float, ...] = Field(
        (1.0, 1.5), min_length=1, description="Image scales whose predictions are averaged"
    )
    flip: bool = Field(True, description="Average with the prediction of the mirrored image")


class ESPNetv2Classes:
    """ESPNetv2 with multi-scale and mirror averaging.

    Args:
        weights: safetensors or torch file; its shapes give width, classes and decoder planes.
        label_space: names of the first outputs; other outputs (background) are dropped.
        scales: image scales to average over.
        flip: also average over the mirrored image.
    """

    def __init__(
        self,
        weights: Path,
        label_space: LabelSpace,
        scales: tuple[float, ...] = (1.0,),
        flip: bool = False,
        device: str = "cpu",
    ) -> None:
        self.label_space = label_space
        self.scales = scales
        self.flip = flip
        self.device = torch.device(device)
        self.network = load_espnetv2(weights).to(self.device).eval()
        outputs = self.network.classes
        if outputs < len(label_space):
            raise InputError(
                f"{weights}: {outputs} outputs, but label space '{label_space.name}' has "
                f"{len(label_space)} classes; choose the label space the weights were trained on"
            )

    @torch.inference_mode()
    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """See `PixelClasses`; the map has half the resolution of the image."""
        normalized = normalize(image).to(self.device)
        height, width = image.shape[:2]
        size = ((height + 1) // 2, (width + 1) // 2)
        total = torch.zeros(1, device=self.device)
        views = [(s, mirrored) for s in self.scales for mirrored in (False, True)[: 1 + self.flip]]
        for scale, mirrored in views:
            total = total + self._predict(normalized, scale, mirrored, size)
        mean = total / len(views)
        return mean[0, : len(self.label_space)].float().cpu().numpy()

    @torch.inference_mode()
    def features(self, image: np.ndarray) -> np.ndarray:
        """See PixelClasses; decoder features at the first scale."""
        resized = _rescale(normalize(image).to(self.device), self.scales[0])
        return self.network.features(resized)[0].float().cpu().numpy()

    def _predict(
        self, image: Tensor, scale: float, mirrored: bool, size: tuple[int, int]
    ) -> Tensor:
        resized = _rescale(image.flip(-1) if mirrored else image, scale)
        probabilities = self.network(resized).softmax(1)
        if mirrored:
            probabilities = probabilities.flip(-1)
        return F.interpolate(probabilities, size, mode="bilinear", align_corners=False)


def _rescale(image: Tensor, scale: float) -> Tensor:
    """Resize (1, 3, H, W) by about `scale`, to sides that are multiples of 32."""
    size = [max(32, round(s * scale / 32) * 32) for s in image.shape[-2:]]
    return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=scale < 1)


def normalize(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 RGB -> (1, 3, H, W) float32 with ImageNet mean and deviation."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(
            f"image of shape {image.shape} and type {image.dtype}: expected (H, W, 3) uint8 RGB"
        )
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    return (x - mean) / std


def load_espnetv2(weights: Path) -> ESPNetv2:
    """Build the network of a file and load its weights.

    Raises:
        InputError: the file is missing, unreadable or not an ESPNetv2 segmentation network.
    """
    state = read_weights(weights, ESPNETV2_SOURCE)
    return build_espnetv2(state, weights)


def build_espnetv2(state: Mapping[str, Tensor], weights: Path) -> ESPNetv2:
    """The network of tensors; `weights` names them in messages, see `load_espnetv2`."""
    try:
        classes = state["bu_dec_l4.merge_layer.3.weight"].shape[0]
        planes = state["bu_br_l4.0.weight"].shape[0] // 2
        top = state["base_net.level4_0.act.weight"].shape[0]
    except KeyError as error:
        raise InputError(
            f"{weights}: not ESPNetv2 segmentation weights, no tensor {error}"
        ) from None
    scales = [s for s, channels in ENCODER_CHANNELS.items() if channels[3] == top]
    if not scales:
        raise InputError(f"{weights}: {top} channels at level 4 fit no published ESPNetv2 width")
    network = ESPNetv2(classes, scales[0], planes)
    try:
        network.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise InputError(f"{weights}: does not fit ESPNetv2 s{scales[0]}: {error}") from None
    return network


def _load(config: ESPNetv2Config, device: str) -> ESPNetv2Classes:
    space = LabelSpace.load(config.label_space)
    return ESPNetv2Classes(config.weights, space, config.scales, config.flip, device)


KIND = Kind(ESPNetv2Config, _load, "ESPNetv2, a small street segmenter (Cityscapes)")
