# SPDX-License-Identifier: Apache-2.0
"""Image towers of open_clip, encoded densely: every patch by its own value.

CLIP pools an image into one vector. Here each patch is pooled alone, so that it gets its own vector
in the space of the text encoder (MaskCLIP; Zhou, Loy, Dai, ECCV 2022, arXiv 2112.01071).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pcseg_core.errors import InputError, require

Encode = Callable[[Any, Tensor], tuple[Tensor, Tensor]]
"""Tower, (B, 3, H, W) -> (B, D, h, w) features in the text space and (B, K, h, w) keys."""


@dataclass(frozen=True)
class Tower:
    """How an image tower is encoded.

    Attributes:
        encode: the dense encoding.
        patch: pixels per feature.
        side: side of its square input [px]; 0 if it takes any multiple of a patch.
        mean: of each color in 0..1.
        std: standard deviation of each color.
    """

    encode: Encode
    patch: int
    side: int
    mean: Sequence[float]
    std: Sequence[float]


def pretrained_colors(model: str) -> tuple[Any, Any] | None:
    """Mean and standard deviation that the published weights of a model were trained with.

    None for a model without published weights.
    """
    open_clip = require("open_clip", "vision")
    constants = require("open_clip.constants", "vision")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not tags:
        return None
    known = open_clip.get_pretrained_cfg(model, tags[0])
    mean = known.get("mean") or constants.OPENAI_DATASET_MEAN
    return mean, known.get("std") or constants.OPENAI_DATASET_STD


def find_tower(visual: Any, colors: tuple[Any, Any] | None = None) -> Tower:
    """The dense encoding of an image tower of open_clip.

    Args:
        visual: the tower.
        colors: mean and standard deviation; None takes those of the architecture.

    Raises:
        MissingDependency: open_clip is not installed.
        InputError: no image tower of open_clip, or one whose features are no square grid.
    """
    transformer = require("open_clip.transformer", "vision")
    resnet = require("open_clip.modified_resnet", "vision")
    timm_model = require("open_clip.timm_model", "vision")
    constants = require("open_clip.constants", "vision")
    given = colors
    colors = given or (constants.OPENAI_DATASET_MEAN, constants.OPENAI_DATASET_STD)
    if isinstance(visual, resnet.ModifiedResNet):
        return Tower(encode_resnet, 32, 0, *colors)
    if isinstance(visual, transformer.VisionTransformer):
        if _is_plain(visual, transformer.ResidualAttentionBlock):
            return Tower(encode_vit, int(visual.patch_size[0]), 0, *colors)
        return _of_fixed_size(visual, encode_pooled, int(visual.image_size[0]), colors)
    if isinstance(visual, timm_model.TimmModel):
        config = visual.trunk.pretrained_cfg
        colors = given or (config["mean"], config["std"])
        return _of_fixed_size(visual, encode_timm, int(visual.image_size[0]), colors)
    raise InputError(
        f"maskclip: image tower {type(visual).__name__} is not supported; choose a model with an "
        "image tower of open_clip or timm"
    )


def _is_plain(visual: Any, block: type) -> bool:
    """Whether a ViT has a class token that its last attention pools into."""
    return bool(
        visual.attn_pool is None
        and visual.pool_type == "tok"
        and visual.proj is not None
        and isinstance(visual.transformer.resblocks[-1], block)
        and visual.patch_size[0] == visual.patch_size[1]
    )


@torch.inference_mode()
def _of_fixed_size(visual: Any, encode: Encode, side: int, colors: tuple[Any, Any]) -> Tower:
    weight = next(visual.parameters())
    features, _ = encode(visual, torch.zeros(1, 3, side, side, device=weight.device))
    rows, columns = features.shape[-2:]
    if rows != columns or side % rows:
        raise InputError(
            f"maskclip: the tower {type(visual).__name__} maps {side} x {side} pixels to "
            f"{columns} x {rows} features; expected a whole number of pixels per feature"
        )
    return Tower(encode, side // rows, side, *colors)


def encode_vit(visual: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """Value path of a ViT.

    The last block becomes x + out(v(ln x)) followed by its MLP: every patch attends to itself only.

    Args:
        visual: open_clip's VisionTransformer.
        image: (B, 3, H, W) normalized, sides multiples of the patch.

    Returns:
        (B, D, h, w) features in the text space and (B, K, h, w) keys of the last attention.
    """
    x = visual.conv1(image)
    rows, columns = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2)
    token = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
    x = torch.cat([token, x], 1) + _positions(visual, rows, columns).to(x.dtype)
    x = visual.ln_pre(x)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    normed = last.ln_1(x)
    weight, bias = last.attn.in_proj_weight, last.attn.in_proj_bias
    width = x.shape[-1]
    keys = F.linear(normed, weight[width : 2 * width], bias[width : 2 * width])
    values = F.linear(normed, weight[2 * width :], bias[2 * width :])
    x = x + last.ls_1(last.attn.out_proj(values))
    x = x + last.ls_2(last.mlp(last.ln_2(x)))
    x = visual.ln_post(x) @ visual.proj
    return _grid(x[:, 1:], rows, columns), _grid(keys[:, 1:], rows, columns)


def _positions(visual: Any, rows: int, columns: int) -> Tensor:
    """(1 + rows * columns, W) position embeddings, resampled to the grid of patches."""
    own = visual.positional_embedding
    if tuple(visual.grid_size) == (rows, columns):
        result: Tensor = own
        return result
    grid = own[1:].reshape(1, *visual.grid_size, -1).permute(0, 3, 1, 2).float()
    fitted = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([own[:1].float(), fitted[0].flatten(1).t()])


def _grid(tokens: Tensor, rows: int, columns: int) -> Tensor:
    return tokens.transpose(1, 2).reshape(len(tokens), -1, rows, columns)


def encode_resnet(visual: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """Value path of CLIP's ResNet: attention pooling without queries, keys and positions.

    Args and returns: see encode_vit.
    """
    x = visual.stem(image)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    pool = visual.attnpool
    pixels = x.permute(0, 2, 3, 1)
    features = pool.c_proj(pool.v_proj(pixels))
    return features.permute(0, 3, 1, 2), pool.k_proj(pixels).permute(0, 3, 1, 2)


def encode_pooled(visual: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """A ViT with another pooling: each patch token is pooled alone.

    Args and returns: see `Encode`. The keys are the tokens.
    """
    tokens = visual.transformer(visual._embeds(image))[:, 1:]
    alone = tokens.flatten(0, 1)[:, None].expand(-1, 2, -1)  # as class token and as only patch
    pooled, _ = visual._pool(alone)
    pooled = pooled[:, 0] if pooled.ndim == 3 else pooled
    pooled = pooled if visual.proj is None else pooled @ visual.proj
    rows, columns = (s // p for s, p in zip(image.shape[-2:], visual.patch_size))
    features = pooled.reshape(len(tokens), tokens.shape[1], -1)
    return _grid(features, rows, columns), _grid(tokens, rows, columns)


def encode_timm(visual: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """A tower of timm (SigLIP, PE, EVA, MobileCLIP, ConvNeXt): each feature is pooled alone.

    Attention over one token gives its value, and the mean of one pixel is the pixel.

    Args and returns: see `Encode`. The keys are the features of the trunk.
    """
    trunk = visual.trunk
    found = trunk.forward_features(image)
    if found.ndim == 4 and getattr(trunk, "output_fmt", "NCHW") == "NHWC":
        keys = found.permute(0, 3, 1, 2)
        alone = found.reshape(-1, 1, 1, found.shape[-1])
    elif found.ndim == 4:
        keys = found
        alone = found.permute(0, 2, 3, 1).reshape(-1, found.shape[1], 1, 1)
    else:
        prefix = int(getattr(trunk, "num_prefix_tokens", 0))
        tokens = found[:, prefix:]
        side = round(tokens.shape[1] ** 0.5)
        keys = _grid(tokens, side, tokens.shape[1] // side)
        # In place of the prefix too, whether the pooling takes it or leaves it out.
        alone = tokens.flatten(0, 1)[:, None].expand(-1, 1 + prefix, -1)
    pooled = visual.head(trunk.forward_head(alone))
    rows, columns = keys.shape[-2:]
    return _grid(pooled.reshape(len(image), rows * columns, -1), rows, columns), keys
