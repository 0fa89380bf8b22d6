# SPDX-License-Identifier: Apache-2.0
"""Images as the input of networks, and the output of networks as probabilities."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pcseg_core.errors import InputError
from pcseg_core.vision.named_classes import NetworkConfig

Color = tuple[float, float, float]
Side = Annotated[int, Field(ge=8, le=8192)]


class ImageNetworkConfig(NetworkConfig):
    """A network of which only input and output are known."""

    names: tuple[str, ...] | None = Field(None, description="Class names, in the order of outputs")
    size: tuple[Side, Side] | None = Field(
        None,
        description="Width and height of the input [px]; default: that of the network, or of the "
        "image rounded to `multiple`",
    )
    multiple: int = Field(32, ge=1, description="Sides of the input are multiples of this [px]")
    mean: Color = Field(
        (0.485, 0.456, 0.406), description="Subtracted from the colors in 0..1; ImageNet's mean"
    )
    std: Color = Field(
        (0.229, 0.224, 0.225), description="Divides the colors; ImageNet's standard deviation"
    )
    output: Literal["logits", "probabilities", "ids"] = Field(
        "logits", description="Meaning of the output: (1, C, h, w) logits or probabilities, or ids"
    )


def network_input(
    image: npt.NDArray[np.uint8], config: ImageNetworkConfig, size: tuple[int, int] | None = None
) -> Tensor:
    """(H, W, 3) uint8 RGB -> (1, 3, h, w) float32, normalized and resized.

    Args:
        image: the image.
        config: colors and size.
        size: width and height of a network with an input of fixed size.
    """
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in (config.mean, config.std))
    step = config.multiple
    target = size or config.size
    sides = (
        [max(step, round(side / step) * step) for side in x.shape[-2:]]
        if target is None
        else [target[1], target[0]]
    )
    if list(x.shape[-2:]) != sides:
        x = F.interpolate(x, sides, mode="bilinear", align_corners=False, antialias=True)
    return (x - mean) / std


def network_output(output: Tensor, config: ImageNetworkConfig, classes: int, name: str) -> Tensor:
    """The output of a network as probabilities (C, h, w).

    Raises:
        InputError: it has another shape.
    """
    if config.output == "ids":
        ids = output.reshape(output.shape[-2:]) if output.ndim >= 2 else output
        if ids.ndim != 2 or output.numel() != ids.numel():
            raise InputError(f"{name}: ids of shape {tuple(output.shape)}; expected (1, h, w)")
        return (ids[None].long() == torch.arange(classes, device=ids.device).view(-1, 1, 1)).float()
    if output.ndim != 4 or output.shape[0] != 1 or output.shape[1] != classes:
        raise InputError(
            f"{name}: output of shape {tuple(output.shape)}; expected (1, {classes}, h, w), a map "
            f"for each of the {classes} names"
        )
    values = output[0].float()
    return values.softmax(0) if config.output == "logits" else values
