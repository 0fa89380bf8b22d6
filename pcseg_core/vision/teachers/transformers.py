# SPDX-License-Identifier: Apache-2.0
"""Teachers of Hugging Face transformers: semantic and universal segmentation, and SAM 3."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pcseg_core.errors import InputError, require
from pcseg_core.labels import LabelSpace
from pcseg_core.vision.named_classes import NamedClasses, NetworkConfig, named_classes
from pcseg_core.vision.registry import Kind, checksum
from pcseg_core.vision.teachers.espnetv2 import IMAGENET_MEAN, IMAGENET_STD
from pcseg_core.vision.windows import mean_of_windows

_FIXED = ("beit", "data2vec-vision", "eomt", "eomt_dinov3", "dpt")  # take images of one size
_STEP = 32  # the sides of other inputs are multiples of this [px]
_SHORT_SIDE = 512


class TransformersConfig(NetworkConfig):
    """A segmentation model of transformers; only safetensors are read."""

    name: Literal["transformers"] = "transformers"
    model: str = Field(description="Folder of the model, or its id on huggingface.co")
    revision: str | None = Field(None, description="Commit of the model on huggingface.co")
    short_side_px: int | None = Field(
        None, ge=32, le=4096, description="Shorter side of the input [px]; default: the model's"
    )
    words: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="SAM 3: words of the classes of the label space; other classes take their name",
    )

    @property
    def identity(self) -> dict[str, Any]:
        """See `KindConfig`; a model from the network is known by its id and revision."""
        folder = Path(self.model).expanduser()
        content = checksum(folder) if folder.is_dir() else None
        return {**super().identity, "content": content}

    def relative_to(self, folder: Path) -> TransformersConfig:
        """See `KindConfig`; a model that is no folder is an id."""
        place = folder / Path(self.model).expanduser()
        return self.model_copy(update={"model": str(place.resolve())}) if place.is_dir() else self


class SegmentationModel:
    """A semantic or universal segmentation model; a `NamedSource`.

    Args:
        network: model with a segmentation head.
        colors: mean and standard deviation of each color in 0..1.
        short_side_px: shorter side of the input; the side of the windows for a model of fixed size.
        device: of the network.
        inputs: further inputs, such as the task of OneFormer.
    """

    def __init__(
        self,
        network: Any,
        colors: tuple[Any, Any] = (IMAGENET_MEAN, IMAGENET_STD),
        short_side_px: int = _SHORT_SIDE,
        device: str = "cpu",
        inputs: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.short_side_px, self.device = short_side_px, device
        self.inputs = {key: value.to(device) for key, value in (inputs or {}).items()}
        self.fixed = network.config.model_type in _FIXED
        self._mean, self._std = (torch.tensor(c).view(1, 3, 1, 1).to(device) for c in colors)
        labels = network.config.id2label
        self.names = tuple(str(labels[k]) for k in sorted(labels))
        if all(re.fullmatch(r"LABEL_\d+", name) for name in self.names):
            raise InputError(
                f"{network.config.name_or_path}: its config.json has no class names (id2label); "
                "write them there"
            )

    def probabilities(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `NamedSource`."""
        return self.probabilities_at(image, 1.0)

    @torch.inference_mode()
    def probabilities_at(
        self, image: npt.NDArray[np.uint8], scale: float
    ) -> npt.NDArray[np.float32]:
        """See `NamedSource`; models of fixed size have no scales below 1."""
        x = torch.tensor(image, device=self.device).permute(2, 0, 1)[None].float() / 255
        x = (x - self._mean) / self._std
        short = self.short_side_px * (max(scale, 1.0) if self.fixed else scale)
        scale, step = short / min(x.shape[-2:]), 1 if self.fixed else _STEP
        sides = [max(step, round(side * scale / step) * step) for side in x.shape[-2:]]
        x = F.interpolate(x, sides, mode="bilinear", align_corners=False, antialias=True)
        if self.fixed:
            found = mean_of_windows(self._predict, x, self.short_side_px)
        else:
            found = self._predict(x)
        result: npt.NDArray[np.float32] = found.float().cpu().numpy()
        return result

    def _predict(self, x: Tensor) -> Tensor:
        """(1, 3, H, W) -> (C, h, w)."""
        output = self.network(pixel_values=x, **self.inputs)
        masks = getattr(output, "masks_queries_logits", getattr(output, "pred_masks", None))
        if masks is None:
            semantic: Tensor = output.logits[0].softmax(0)
            return semantic
        classes = getattr(output, "class_queries_logits", None)
        classes = output.logits if classes is None else classes
        # Each query has a mask, and a class or none: the last one.
        weight, mask = classes[0].softmax(-1)[:, : len(self.names)], masks[0].sigmoid()
        votes = torch.einsum("qc,qhw->chw", weight, mask.reshape(len(weight), *masks.shape[-2:]))
        return votes / votes.sum(0).clamp_min(1.0)


class PromptedSam:
    """SAM 3 with the words of classes as prompts; a `NamedSource`.

    A pixel's probability of a word is that of the most confident mask on it.

    Args:
        network: Sam3Model.
        processor: Sam3Processor.
        words: class -> words; the most probable word counts.
        device: of the network.
    """

    def __init__(
        self,
        network: Any,
        processor: Any,
        words: Mapping[str, tuple[str, ...]],
        device: str = "cpu",
    ) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.processor, self.device = processor, device
        self.names, self.words = tuple(words), dict(words)

    @torch.inference_mode()
    def probabilities(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `NamedSource`."""
        pixels = self.processor(images=image, return_tensors="pt").to(self.device)
        vision = self.network.get_vision_features(pixel_values=pixels["pixel_values"])
        found = torch.stack([self._class(vision, words) for words in self.words.values()])
        found = found / found.sum(0).clamp_min(1.0)
        result: npt.NDArray[np.float32] = found.float().cpu().numpy()
        return result

    def _class(self, vision: Any, words: tuple[str, ...]) -> Tensor:
        """(h, w) highest probability of the words."""
        best = []
        for word in words:
            text = self.processor(text=word, return_tensors="pt").to(self.device)
            output = self.network(
                vision_embeds=vision,
                input_ids=text["input_ids"],
                attention_mask=text["attention_mask"],
            )
            score = output.pred_logits[0].sigmoid() * output.presence_logits[0].sigmoid()
            best.append((score[:, None, None] * output.pred_masks[0].sigmoid()).amax(0))
        return torch.stack(best).amax(0)


def load_model(config: TransformersConfig) -> Any:
    """The network of a configuration, with exactly its tensors.

    Raises:
        MissingDependency: transformers is not installed, or too old for the model.
        InputError: no such model, one without segmentation head, no safetensors, or tensors that
            are missing or left over.
    """
    library = require("transformers", "teachers")
    try:
        found = _pretrained(config, library.AutoConfig)
        kind = _class_of(library, found, config.model)
        network, info = _pretrained(config, kind, use_safetensors=True, output_loading_info=True)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"transformers model '{config.model}': {reason}; expected a folder with config.json "
            "and model.safetensors, or an id on huggingface.co (without a network, download it "
            "elsewhere and give the folder)"
        ) from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, info.get(what) or ())):
            raise InputError(
                f"transformers model '{config.model}': {len(keys)} {what.replace('_', ' ')} "
                f"(first: {keys[0]}); its weights are not those of {kind.__name__}"
            )
    return network


def _pretrained(config: TransformersConfig, kind: Any, **options: Any) -> Any:
    """What a class of transformers reads from the model, at its revision."""
    given = {"revision": config.revision} if config.revision else {}
    return kind.from_pretrained(config.model, **given, **options)


def _class_of(library: Any, found: Any, model: str) -> Any:
    """The class of a model with a segmentation head."""
    if found.model_type == "sam3":
        return require("transformers.models.sam3", "teachers").Sam3Model
    auto = require("transformers.models.auto.modeling_auto", "teachers")
    for mapping in (
        auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
        auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
    ):
        if type(found) in mapping:
            return mapping[type(found)]
    names = auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
    universal = auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES
    raise InputError(
        f"transformers model '{model}' of type '{found.model_type}' has no segmentation head; "
        f"expected one of {', '.join(dict.fromkeys((*names, *universal)))}, or sam3"
    )


def _colors_and_side(config: TransformersConfig, network: Any) -> tuple[tuple[Any, Any], int]:
    """Mean and deviation of the colors, and the shorter side of the input [px]."""
    library = require("transformers", "teachers")
    try:
        processor = _pretrained(config, library.AutoImageProcessor)
    except (OSError, ValueError):  # no preprocessor_config.json
        processor = None
    size = getattr(processor, "size", None) or {}
    sides = [size[key] for key in ("height", "width", "shortest_edge") if size.get(key)]
    own = network.config.to_dict().get("image_size")
    fixed = own if network.config.model_type in _FIXED and isinstance(own, int) else None
    side = fixed or config.short_side_px or (min(sides) if sides else _SHORT_SIDE)
    mean, std = (getattr(processor, f"image_{part}", None) for part in ("mean", "std"))
    return (mean or IMAGENET_MEAN, std or IMAGENET_STD), int(side)


def _load(config: TransformersConfig, device: str) -> NamedClasses:
    network, library = load_model(config), require("transformers", "teachers")
    if network.config.model_type == "sam3":
        space = LabelSpace.load(config.label_space)
        words = {name: config.words.get(name) or (name,) for name in space.names}
        processor = _pretrained(config, library.AutoProcessor)
        return named_classes(PromptedSam(network, processor, words, device), config, config.model)
    inputs = None
    if network.config.model_type == "oneformer":
        processor = _pretrained(config, library.AutoProcessor)
        blank = np.zeros((32, 32, 3), np.uint8)
        inputs = {"task_inputs": processor(blank, ["semantic"], return_tensors="pt")["task_inputs"]}
    colors, side = _colors_and_side(config, network)
    source = SegmentationModel(network, colors, side, device, inputs)
    return named_classes(source, config, config.model)


KIND = Kind(TransformersConfig, _load, "segmentation models of Hugging Face, and SAM 3 by words")
