# SPDX-License-Identifier: Apache-2.0
"""Superpixels by Segment Anything (Kirillov et al., ICCV 2023), prompted on a grid of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from pcseg_core.errors import InputError, require
from pcseg_core.files import file_checksum
from pcseg_core.labels import IGNORE
from pcseg_core.vision.superpixels import SegmentMap, check_image, tidy
from pcseg_core.vision.weights import load_strictly, read_weights

SAM_SOURCE = (
    "https://github.com/facebookresearch/segment-anything#model-checkpoints (sam_vit_b_01ec64.pth, "
    "sam_vit_l_0b3195.pth or sam_vit_h_4b8939.pth)"
)


class SamSuperpixels:
    """Segments of the automatic mask generator; smaller ones cover larger ones.

    Pixels without a mask are IGNORE.

    Args:
        checkpoint: weights of a SAM of any size.
        min_area: masks with fewer visible pixels are dropped [px].
        device: of the network.
        points_per_side: prompts along each side of the image.
        points_per_batch: prompts decoded at once.
        pred_iou_thresh: masks with a lower predicted quality are dropped.
        stability_score_thresh: masks that change more with the threshold are dropped.
        box_nms_thresh: overlap of boxes above which the mask of lower quality is dropped.
        crop_n_layers: also run on 4^i crops for i up to this.

    Raises:
        MissingDependency: segment-anything is not installed.
        InputError: the checkpoint is missing or of another network.
    """

    name = "sam"

    def __init__(
        self,
        checkpoint: Path | None,
        *,
        min_area: int = 100,
        device: str = "cpu",
        points_per_side: int = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
    ) -> None:
        package = require("segment_anything", "vision")
        settings = {
            "points_per_side": points_per_side,
            "pred_iou_thresh": pred_iou_thresh,
            "stability_score_thresh": stability_score_thresh,
            "box_nms_thresh": box_nms_thresh,
            "crop_n_layers": crop_n_layers,
        }
        network = load_sam(checkpoint).to(device).eval()
        assert checkpoint is not None  # load_sam has refused it
        self.min_area = min_area
        self.parameters: dict[str, Any] = {
            "weights": file_checksum(checkpoint),
            "min_area": min_area,
            **settings,
        }
        self._generator = package.SamAutomaticMaskGenerator(
            network, points_per_batch=points_per_batch, **settings
        )

    def segment(self, image: npt.NDArray[np.uint8]) -> SegmentMap:
        """See SuperpixelGenerator."""
        check_image(image)
        found = self._generator.generate(image)
        return paint_masks([m["segmentation"] for m in found], image.shape[:2], self.min_area)


def paint_masks(
    masks: Sequence[npt.NDArray[np.bool_]], size: tuple[int, ...], min_area: int = 1
) -> SegmentMap:
    """One map of overlapping masks; small ones cover large ones.

    Args:
        masks: (H, W) bool each, in any order.
        size: (H, W).
        min_area: masks with fewer visible pixels are dropped [px].

    Returns:
        Segments from large to small; uncovered pixels are IGNORE.
    """
    large = [m for m in masks if m.sum() >= max(1, min_area)]
    ids = np.full(size, IGNORE, np.int32)
    for number, mask in enumerate(sorted(large, key=lambda m: -int(m.sum()))):
        ids[mask] = number
    return tidy(ids, min_area=min_area, small="ignore")


def load_sam(checkpoint: Path | None) -> nn.Module:
    """A SAM with these weights.

    Raises:
        InputError: the file is missing or not of a SAM.
    """
    state = read_weights(checkpoint, SAM_SOURCE)
    try:
        network = _build_sam(state)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"weights {checkpoint}: not SAM's ({error}); get them from {SAM_SOURCE}"
        ) from None
    load_strictly(network, state, checkpoint, SAM_SOURCE)
    return network


def _build_sam(state: Mapping[str, Tensor]) -> nn.Module:
    """The untrained network with tensors of these shapes."""
    modeling = require("segment_anything.modeling", "vision")
    encoder = "image_encoder."
    _, grid, _, width = state[encoder + "pos_embed"].shape
    patch = state[encoder + "patch_embed.proj.weight"].shape[-1]
    channels = state[encoder + "neck.0.weight"].shape[0]
    blocks = range(_count(state, encoder + "blocks."))
    # Relative positions have 2 n - 1 entries in windows, or a whole grid, of n x n.
    reach = [(len(state[f"{encoder}blocks.{i}.attn.rel_pos_h"]) + 1) // 2 for i in blocks]
    decoder = "mask_decoder."
    image_encoder = modeling.ImageEncoderViT(
        depth=len(reach),
        embed_dim=width,
        img_size=grid * patch,
        mlp_ratio=state[encoder + "blocks.0.mlp.lin1.weight"].shape[0] / width,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=width // state[encoder + "blocks.0.attn.rel_pos_h"].shape[1],
        patch_size=patch,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=tuple(i for i in blocks if reach[i] == grid),
        window_size=min(reach),
        out_chans=channels,
    )
    prompt_encoder = modeling.PromptEncoder(
        embed_dim=channels,
        image_embedding_size=(grid, grid),
        input_image_size=(grid * patch, grid * patch),
        mask_in_chans=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
    )
    transformer = modeling.TwoWayTransformer(
        depth=_count(state, decoder + "transformer.layers."),
        embedding_dim=channels,
        mlp_dim=state[decoder + "transformer.layers.0.mlp.lin1.weight"].shape[0],
        num_heads=8,
    )
    mask_decoder = modeling.MaskDecoder(
        num_multimask_outputs=len(state[decoder + "mask_tokens.weight"]) - 1,
        transformer=transformer,
        transformer_dim=channels,
        iou_head_depth=_count(state, decoder + "iou_prediction_head.layers."),
        iou_head_hidden_dim=state[decoder + "iou_prediction_head.layers.0.weight"].shape[0],
    )
    network: nn.Module = modeling.Sam(image_encoder, prompt_encoder, mask_decoder)
    return network


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Number of modules "PREFIX0", "PREFIX1", ..."""
    numbers = {int(k[len(prefix) :].split(".")[0]) for k in state if k.startswith(prefix)}
    return max(numbers) + 1
