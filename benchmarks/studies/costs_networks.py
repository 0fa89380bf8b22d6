# SPDX-License-Identifier: Apache-2.0
"""Image networks of the cost study: the real architectures, most of them with random weights.

Random weights cost the same, but for what follows the network: the masks of Segment Anything and
the denoising of CLIP depend on the image. They are written into a file and read from it, so that
the code is that of a user with published weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pcseg_core.errors import require
from pcseg_core.labels import LabelSpace
from pcseg_core.vision.encoder_kinds import ENCODERS
from pcseg_core.vision.espnetv2 import ESPNetv2
from pcseg_core.vision.maskclip import DenseClipConfig, load_maskclip_classes
from pcseg_core.vision.pixel_classes import TEACHERS
from pcseg_core.vision.superpixel_kinds import SUPERPIXELS

Image = npt.NDArray[np.uint8]
Run = Callable[[Image], object]
Make = Callable[[Path, str], Run]
"""Folder for files of random weights, device -> function of an image (H, W, 3)."""

BUNDLED: dict[str, Any] = {
    "name": "espnetv2",
    "weights": "bundled:simulation_teacher",
    "label_space": "simulation",
    "scales": [1.0],
    "flip": False,
}
_CLIP = "ViT-B-16-quickgelu"
_DINO = "vit_small_patch14_dinov2"
_LITE0 = "tf_efficientnet_lite0"
_CLASSES = 19  # of Cityscapes


def slic(folder: Path, device: str) -> Run:
    """SLIC."""
    return SUPERPIXELS.load(SUPERPIXELS.parse({"name": "slic"}, "slic"), device).segment


def semantic(folder: Path, device: str) -> Run:
    """Regions of the bundled teacher's classes, split by SLIC."""
    options = {"name": "semantic", "teacher": BUNDLED}
    return SUPERPIXELS.load(SUPERPIXELS.parse(options, "semantic"), device).segment


def sam(folder: Path, device: str) -> Run:
    """Segment Anything, ViT-B, 32 x 32 prompts."""
    registry = require("segment_anything", "vision").sam_model_registry
    weights = _stored(registry["vit_b"]().state_dict(), folder / "sam.pth")
    options = {"name": "sam", "weights": weights}
    return SUPERPIXELS.load(SUPERPIXELS.parse(options, "sam"), device).segment


def bundled(folder: Path, device: str) -> Run:
    """The bundled teacher, one scale."""
    return TEACHERS.load(TEACHERS.parse(BUNDLED, "bundled"), device).probabilities


def espnetv2(folder: Path, device: str) -> Run:
    """ESPNetv2 of Cityscapes with the scales of the recipe kitti."""
    weights = _stored(ESPNetv2(_CLASSES + 1, 2.0).state_dict(), folder / "espnetv2.pth")
    options = {"name": "espnetv2", "weights": weights, "scales": [0.75, 1.0], "flip": True}
    return TEACHERS.load(TEACHERS.parse(options, "espnetv2"), device).probabilities


def maskclip(folder: Path, device: str) -> Run:
    """Dense CLIP with the windows of the recipe clip; its words are embedded before."""
    create = require("open_clip", "vision").create_model
    weights = _stored(create(_CLIP, pretrained=None).state_dict(), folder / "clip.pth")
    config, space = DenseClipConfig(model=_CLIP), LabelSpace.load("street")
    return load_maskclip_classes(config, weights, space, device, templates=("a {}",)).probabilities


def segformer_b0(folder: Path, device: str) -> Run:
    """SegFormer-B0."""
    return _segformer(folder, device)


def segformer_b5(folder: Path, device: str) -> Run:
    """SegFormer-B5."""
    shape = {"depths": [3, 6, 40, 3], "hidden_sizes": [64, 128, 320, 512]}
    return _segformer(folder, device, **shape, decoder_hidden_size=768)


def _segformer(folder: Path, device: str, **shape: Any) -> Run:
    library = require("transformers", "teachers")
    config = library.SegformerConfig(**shape, **_city())
    return _transformers(library.SegformerForSemanticSegmentation(config), folder, device)


def mask2former(folder: Path, device: str) -> Run:
    """Mask2Former with a Swin-T backbone."""
    library = require("transformers", "teachers")
    stages = [f"stage{k}" for k in (1, 2, 3, 4)]
    backbone = library.SwinConfig(depths=[2, 2, 6, 2], out_features=stages)
    config = library.Mask2FormerConfig(backbone_config=backbone, **_city())
    return _transformers(library.Mask2FormerForUniversalSegmentation(config), folder, device)


def _city() -> dict[str, Any]:
    names = LabelSpace.load("cityscapes").names
    return {"id2label": dict(enumerate(names)), "label2id": {n: k for k, n in enumerate(names)}}


def _transformers(network: Any, folder: Path, device: str) -> Run:
    network.save_pretrained(folder / "model")
    options = {"name": "transformers", "model": str(folder / "model")}
    return TEACHERS.load(TEACHERS.parse(options, "transformers"), device).probabilities


def lite0(folder: Path, device: str) -> Run:
    """EfficientNet-Lite0, stride 8."""
    network = require("timm", "vision").create_model(_LITE0)
    weights = _stored(network.state_dict(), folder / "lite0.pth")
    return _encoder(device, name="efficientnet_lite0", weights=weights)


def resnet50(folder: Path, device: str) -> Run:
    """ResNet-50 of MoCo or DINO, stride 8."""
    from torchvision.models import resnet50 as create

    weights = _stored(create(weights=None).state_dict(), folder / "resnet50.pth")
    return _encoder(device, name="resnet50", weights=weights)


def dinov2(folder: Path, device: str) -> Run:
    """DINOv2, ViT-S/14."""
    network = require("timm", "vision").create_model(_DINO, num_classes=0)
    weights = _stored(network.state_dict(), folder / "dinov2.pth")
    return _encoder(device, name="vit", model=_DINO, weights=weights)


def _encoder(device: str, **options: Any) -> Run:
    return ENCODERS.load(ENCODERS.parse(options, str(options["name"])), device).features


def _stored(state: dict[str, torch.Tensor], file: Path) -> Path:
    torch.save(state, file)
    return file
