# SPDX-License-Identifier: Apache-2.0
"""Pixel-class teachers: a probability per class and pixel of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor

from pcseg_core.bundled import bundled_file
from pcseg_core.config import Section
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.vision.espnetv2 import ENCODER_CHANNELS, ESPNetv2
from pcseg_core.vision.maskclip import DenseClipConfig, load_maskclip_classes
from pcseg_core.vision.weights import file_checksum

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PixelClasses(Protocol):
    """A teacher of pixel classes."""

    label_space: LabelSpace

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (C, h, w) float32 class probabilities in 0..1.

        The map may be smaller than the image; pixel centers scale with it. Probabilities may sum
        to less than one if the teacher has classes that the label space lacks.
        """

    def features(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (D, h, w) float32 features of the classifier."""


class TeacherConfig(Section):
    """Pixel-class teacher of the images."""

    name: Literal["espnetv2", "maskclip"] = Field(
        "espnetv2",
        description="Teacher network; maskclip is CLIP, by the names and synonyms of the classes",
    )
    weights: Path = Field(
        description="Path of the teacher's weights (safetensors); bundled:simulation_teacher is "
        "part of the package and trained on simulated images"
    )
    label_space: str = Field("cityscapes", description="Label space of the teacher's outputs")
    scales: tuple[float, ...] = Field(
        (1.0, 1.5), min_length=1, description="Image scales whose predictions are averaged"
    )
    flip: bool = Field(True, description="Average with the prediction of the mirrored image")
    clip: DenseClipConfig | None = Field(
        None, description="Model and windows (name: maskclip, which has no scales and flip)"
    )

    @property
    def weights_file(self) -> Path:
        """The file of the weights."""
        return bundled_file(self.weights) or self.weights

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the teacher's results depend on, as JSON can write it."""
        settings = self.model_dump(mode="json", exclude={"weights"}, exclude_none=True)
        return {**settings, "weights": file_checksum(self.weights_file)}


class ESPNetv2Classes:
    """ESPNetv2 with multi-scale and mirror averaging.

    Args:
        weights: safetensors file; its shapes give width, classes and decoder planes.
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
    state = _read_safetensors(weights)
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
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise InputError(f"{weights}: does not fit ESPNetv2 s{scales[0]}: {error}") from None
    return network


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise InputError(
            f"teacher weights {path}: no such file; set teacher.weights in the recipe to the "
            "ESPNetv2 Cityscapes weights converted to safetensors (see training/README.md)"
        )
    try:
        return load_file(str(path))
    except Exception as error:
        raise InputError(f"{path}: not a readable safetensors file: {error}") from None


def load_teacher(config: TeacherConfig, device: str = "cpu") -> PixelClasses:
    """The teacher of a recipe."""
    space = LabelSpace.load(config.label_space)
    if config.name == "maskclip":
        clip = config.clip or DenseClipConfig()
        return load_maskclip_classes(clip, config.weights_file, space, device)
    return ESPNetv2Classes(config.weights_file, space, config.scales, config.flip, device)
