# SPDX-License-Identifier: Apache-2.0
"""Dense CLIP: features of pixels in the text space, and pixel classes by words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pcseg_core.config import Section
from pcseg_core.errors import InputError, require
from pcseg_core.files import file_checksum
from pcseg_core.labels import LabelSpace
from pcseg_core.vision.dense_towers import find_tower, pretrained_colors
from pcseg_core.vision.named_classes import average_views
from pcseg_core.vision.pixel_classes import TeacherConfig
from pcseg_core.vision.registry import Kind, LocatedPath
from pcseg_core.vision.superpixels import check_image
from pcseg_core.vision.text_space import OpenClipText, TextSpace, load_open_clip
from pcseg_core.vision.windows import starts

LOGIT_SCALE = 100.0  # of CLIP's cosines before the softmax


class DenseClipConfig(Section):
    """Windows of the image encoder of CLIP, and denoising of its classes."""

    model: str = Field("ViT-B-16-quickgelu", description="Model of open_clip")
    short_side_px: int = Field(
        448, ge=32, le=4096, description="Shorter side of the resized images [px]"
    )
    window_px: int = Field(
        448,
        ge=32,
        le=4096,
        description="Side of the square windows [px]; towers of timm and those without class token "
        "take their own",
    )
    overlap: float = Field(
        0.33, ge=0, lt=0.9, description="Overlap of neighboring windows, share of a window"
    )
    prompt_denoising: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Drop classes whose highest probability in the image is below this; "
        "0 keeps all",
    )
    key_smoothing: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Pixels whose highest probability is below this take the mean of pixels with "
        "similar keys; 0 disables it",
    )


@dataclass
class Window:
    """A part of the feature map.

    Attributes:
        top, left: position in the map, in features.
        features: (D, h, w) unit vectors in the text space.
        keys: (K, h, w) keys of the last attention.
    """

    top: int
    left: int
    features: Tensor
    keys: Tensor


class MaskClip:
    """Pixel features in the text space of a CLIP model.

    Args:
        visual: image tower of an open_clip model.
        config: windows.
        parameters: identify the network in caches.
        device: of the network.
        colors: mean and standard deviation of the colors; None takes those of the architecture.

    Raises:
        InputError: an unsupported image tower.
    """

    name = "maskclip"

    def __init__(
        self,
        visual: Any,
        config: DenseClipConfig,
        parameters: dict[str, Any] | None = None,
        device: str = "cpu",
        colors: tuple[Any, Any] | None = None,
    ) -> None:
        require("open_clip", "vision")
        self.visual = visual.to(device).eval().requires_grad_(False)
        tower = find_tower(self.visual, colors)
        self.encode, self.patch, self.side = tower.encode, tower.patch, tower.side
        edge = tower.side or tower.patch
        probe = torch.zeros(1, 3, edge, edge, device=device)
        with torch.inference_mode():
            self.channels = int(self.encode(self.visual, probe)[0].shape[1])
        self.config = config
        self.device = torch.device(device)
        described = config.model_dump(exclude={"prompt_denoising", "key_smoothing"})
        self.parameters = {**described, **(parameters or {})}
        self._mean = torch.tensor(tower.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(tower.std, device=self.device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def features(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `PixelFeatures`: unit vectors; the normalized sum where windows overlap."""
        size, windows = self.windows(image)
        total = torch.zeros(self.channels, *size, device=self.device)
        for window in windows:
            _part(total, window).add_(window.features)
        found: npt.NDArray[np.float32] = F.normalize(total, dim=0).cpu().numpy()
        return found

    @torch.inference_mode()
    def windows(
        self, image: npt.NDArray[np.uint8], scale: float = 1.0
    ) -> tuple[tuple[int, int], Iterator[Window]]:
        """Size of the whole feature map, and an iterator over its parts.

        Args:
            image: (H, W, 3).
            scale: factor on the shorter side of the resized image.
        """
        check_image(image)
        pixels = torch.tensor(image, device=self.device).permute(2, 0, 1)[None].float() / 255
        resized = self._resize((pixels - self._mean) / self._std, scale)
        rows, columns = (side // self.patch for side in resized.shape[-2:])
        return (rows, columns), self._encode(resized, rows, columns)

    def _encode(self, image: Tensor, rows: int, columns: int) -> Iterator[Window]:
        side = max(1, (self.side or self.config.window_px) // self.patch)
        places = itertools.product(*(starts(n, side, self.config.overlap) for n in (rows, columns)))
        for top, left in places:
            with torch.inference_mode():
                y, x = top * self.patch, left * self.patch
                height, width = min(side, rows) * self.patch, min(side, columns) * self.patch
                features, keys = self.encode(self.visual, image[..., y : y + height, x : x + width])
                yield Window(top, left, F.normalize(features[0].float(), dim=0), keys[0].float())

    def _resize(self, image: Tensor, factor: float) -> Tensor:
        """Resize to the configured shorter side, both sides multiples of a patch."""
        height, width = image.shape[-2:]
        scale = max(self.config.short_side_px * factor, self.side) / min(height, width)
        size = [max(1, round(s * scale / self.patch)) * self.patch for s in (height, width)]
        return F.interpolate(image, size, mode="bicubic", antialias=True, align_corners=False)


def _part(whole: Tensor, window: Window) -> Tensor:
    """The view of (C, H, W) inside a window."""
    height, width = window.features.shape[1:]
    return whole[:, window.top : window.top + height, window.left : window.left + width]


class MaskClipClasses:
    """Pixel classes by name: cosines of dense CLIP features and words, denoised.

    Args:
        pixels: features.
        text: vectors of words, of the same model.
        label_space: classes; the best of the name and synonyms of a class counts.
        scales: factors on the size of the images, whose predictions are averaged.
        flip: also average over the mirrored image.

    Raises:
        InputError: a class has no word with a vector.
    """

    def __init__(
        self,
        pixels: MaskClip,
        text: TextSpace,
        label_space: LabelSpace,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> None:
        self.pixels = pixels
        self.label_space = label_space
        self.scales, self.flip = tuple(scales), flip
        groups = [[w for w in (c.name, *c.synonyms) if text.known(w)] for c in label_space.classes]
        for c, group in zip(label_space.classes, groups):
            if not group:
                raise InputError(f"class '{c.name}': text space '{text.name}' has no word for it")
        self._vectors = torch.from_numpy(text.embed([w for group in groups for w in group]))
        self._sizes = [len(group) for group in groups]

    def features(self, image: np.ndarray) -> np.ndarray:
        """See PixelClasses: dense CLIP."""
        return self.pixels.features(image)

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """See PixelClasses."""
        return average_views(self._predict, image, self.scales, self.flip)

    @torch.inference_mode()
    def _predict(self, image: np.ndarray, scale: float) -> npt.NDArray[np.float32]:
        """(C, h, w) probabilities of one view."""
        size, windows = self.pixels.windows(image, scale)
        parts = [(window, self._logits(window.features)) for window in windows]
        total = torch.zeros(len(self.label_space), *size, device=self.pixels.device)
        count = torch.zeros(1, *size, device=self.pixels.device)
        for window, logits in parts:
            _part(total, window).add_(logits)
            _part(count, window).add_(1.0)
        dropped = absent_classes(total / count, self.pixels.config.prompt_denoising)
        total.zero_()
        for window, logits in parts:
            likely = logits.masked_fill(dropped[:, None, None], -torch.inf).softmax(0)
            threshold = self.pixels.config.key_smoothing
            _part(total, window).add_(smooth_by_keys(likely, window.keys, threshold))
        found: npt.NDArray[np.float32] = (total / count).cpu().numpy()
        return found

    def _logits(self, features: Tensor) -> Tensor:
        """(C, h, w) of unit features (D, h, w)."""
        vectors = self._vectors.to(features.device)
        cosines = torch.einsum("rd,dhw->rhw", vectors, features)
        best = [group.amax(0) for group in cosines.split(self._sizes)]
        return LOGIT_SCALE * torch.stack(best)


def absent_classes(logits: Tensor, threshold: float) -> Tensor:
    """Prompt denoising: (C,) bool, classes that do not reach a probability in (C, h, w).

    If no class reaches it, none is dropped.
    """
    absent = logits.softmax(0).flatten(1).amax(1) < threshold
    return absent & ~absent.all()


def smooth_by_keys(likely: Tensor, keys: Tensor, threshold: float) -> Tensor:
    """Key smoothing: uncertain pixels take the mean of all, weighted by similarity of keys.

    Args:
        likely: (C, h, w) probabilities.
        keys: (K, h, w).
        threshold: pixels whose highest probability reaches it do not change.

    Returns:
        (C, h, w) probabilities. Weights are cosines of keys, negative ones 0.
    """
    flat = likely.flatten(1)
    unsure = (flat.amax(0) < threshold).nonzero().squeeze(1)
    unit = F.normalize(keys.flatten(1), dim=0)
    weight = (unit[:, unsure].t() @ unit).clamp_min(0)
    weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-6)
    smoothed = flat.clone()
    smoothed[:, unsure] = flat @ weight.t()
    return smoothed.view_as(likely)


def load_maskclip(config: DenseClipConfig, weights: Path | None, device: str = "cpu") -> MaskClip:
    """Dense CLIP from weights.

    Raises:
        MissingDependency: open_clip is not installed.
        InputError: no such model, missing weights or weights of another model, or an unsupported
            image tower.
    """
    network = load_open_clip(config.model, weights, device)
    assert weights is not None  # load_open_clip has refused it
    known = {"weights": file_checksum(weights)}
    return MaskClip(network.visual, config, known, device, pretrained_colors(config.model))


def load_maskclip_classes(
    config: DenseClipConfig,
    weights: Path | None,
    label_space: LabelSpace,
    device: str = "cpu",
    templates: Sequence[str] | str = "imagenet+scene",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> MaskClipClasses:
    """A CLIP teacher of the classes of a label space, by their names and synonyms."""
    pixels = load_maskclip(config, weights, device)
    given = templates if isinstance(templates, str) else tuple(templates)
    text = OpenClipText(config.model, weights, given, device)
    return MaskClipClasses(pixels, text, label_space, scales, flip)


class MaskClipConfig(TeacherConfig):
    """CLIP as a teacher: the classes by their names and synonyms, without training."""

    name: Literal["maskclip"] = "maskclip"
    weights: Annotated[Path, LocatedPath()] = Field(
        description="Name that `pcseg weights list` shows, or path of the weights of the "
        "open_clip model (safetensors or torch)"
    )
    clip: DenseClipConfig | None = Field(None, description="Model, windows and denoising")
    scales: tuple[Annotated[float, Field(gt=0, le=4)], ...] = Field(
        (1.0,), min_length=1, description="Factors on short_side_px whose predictions are averaged"
    )
    flip: bool = Field(False, description="Average with the prediction of the mirrored image")


def _load(config: MaskClipConfig, device: str) -> MaskClipClasses:
    space = LabelSpace.load(config.label_space)
    clip = config.clip or DenseClipConfig()
    return load_maskclip_classes(
        clip, config.weights, space, device, scales=config.scales, flip=config.flip
    )


KIND = Kind(MaskClipConfig, _load, "dense CLIP: classes by their words (open_clip)")
