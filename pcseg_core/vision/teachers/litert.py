# SPDX-License-Identifier: Apache-2.0
"""A teacher from a TensorFlow Lite file, run by LiteRT on the CPU in square windows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import Field

from pcseg_core.errors import InputError, require
from pcseg_core.labels import LabelSpace
from pcseg_core.vision.class_names import read_names
from pcseg_core.vision.named_classes import OWN_NAMES, NamedClasses, NamedConfig, named_classes
from pcseg_core.vision.network_input import Color, Side
from pcseg_core.vision.registry import Kind, LocatedPath
from pcseg_core.vision.windows import Window, square_windows

Float32 = npt.NDArray[np.float32]
_STEP_PX = 4  # pixels of the image per pixel of the map


class LitertConfig(NamedConfig):
    """A network in TensorFlow Lite format with a square input of fixed size."""

    name: Literal["litert"] = "litert"
    file: Annotated[Path, LocatedPath()] = Field(
        description="The TensorFlow Lite file, or a name that `pcseg weights list` shows"
    )
    tensor: str = Field(
        "",
        description="Name of the tensor with the classes, or a part of it; tensors within the "
        "network count too. Empty takes the output of the network",
    )
    output: Literal["logits", "probabilities", "ids"] = Field(
        "logits", description="Meaning of the tensor: (1, h, w, C) logits or probabilities, or ids"
    )
    names: tuple[str, ...] | None = Field(
        None, description="Class names, in the order of outputs; default: those of `label_space`"
    )
    names_file: Annotated[Path | None, LocatedPath()] = Field(
        None, description="File of the class names, in place of `names`"
    )
    windows_px: tuple[Side, ...] = Field(
        (),
        description="Sides of the square windows [px], whose predictions are averaged; default: "
        "the height of the image. Windows above the size of the image are padded with gray",
    )
    overlap: float = Field(
        0.4, ge=0, lt=0.9, description="Overlap of neighboring windows, share of a window"
    )
    flip: bool = Field(True, description="Average with the prediction of the mirrored window")
    mean: Color = Field(
        (0.5, 0.5, 0.5), description="Subtracted from the colors in 0..1, for inputs of floats"
    )
    std: Color = Field((0.5, 0.5, 0.5), description="Divides the colors, for inputs of floats")


class LitertNetwork:
    """A network in TensorFlow Lite format; a `NamedSource`.

    The input is (1, S, S, 3), of bytes or floats.

    Args:
        config: file, tensor, names and windows.

    Raises:
        MissingDependency: ai-edge-litert is not installed.
        InputError: not a TensorFlow Lite file, no such tensor, an input that is no square image,
            or another number of class names than the tensor has channels.
    """

    def __init__(self, config: LitertConfig) -> None:
        runtime = require("ai_edge_litert.interpreter", "teachers")
        self.config, self.file = config, config.file
        self._net = self._opened(runtime, keep=bool(config.tensor))
        inputs = self._net.get_input_details()
        self._input = inputs[0]
        self.side = self._checked_side(len(inputs))
        self.names = self._names()
        self._tensor = self._found_tensor()

    def _opened(self, runtime: Any, keep: bool) -> Any:
        threads = torch.get_num_threads()
        try:
            content = self.file.read_bytes()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # keeping tensors is meant for debugging
                net = runtime.Interpreter(
                    model_content=content,
                    num_threads=threads,
                    experimental_preserve_all_tensors=keep,
                )
                net.allocate_tensors()
        except (ValueError, RuntimeError, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"{self.file}: not usable as a TensorFlow Lite file ({reason})"
            ) from error
        return net

    def _checked_side(self, inputs: int) -> int:
        shape = tuple(int(side) for side in self._input["shape_signature"])
        if inputs != 1 or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or shape[1] < 8:
            raise InputError(
                f"{self.file}: {inputs} inputs, the first of shape {shape}; expected one square "
                "image of fixed size, (1, S, S, 3)"
            )
        if self._input["dtype"] not in (np.uint8, np.int8, np.float32):
            raise InputError(
                f"{self.file}: input of {np.dtype(self._input['dtype'])}; expected uint8, int8 or "
                "float32"
            )
        return shape[1]

    def _names(self) -> tuple[str, ...]:
        if self.config.names or self.config.names_file:
            return read_names(self.config.names or self.config.names_file or ())
        if self.config.label_space == OWN_NAMES:
            raise InputError(f"{self.file}: give 'names' or 'names_file' with label_space 'own'")
        return LabelSpace.load(self.config.label_space).names

    def _found_tensor(self) -> Mapping[str, Any]:
        """The tensor with the classes."""
        word, classes = self.config.tensor, len(self.names)
        tensors: list[Mapping[str, Any]] = (
            self._net.get_tensor_details() if word else self._net.get_output_details()
        )
        named = [d for d in tensors if d["name"] == word] or [
            d for d in tensors if word in d["name"]
        ]
        maps = [d for d in named if self._is_map(d)]
        fitting = maps if self.config.output == "ids" else [d for d in maps if _last(d) == classes]
        if len(fitting) == 1 or (fitting and not word):
            return fitting[0]
        form = "(1, h, w) ids" if self.config.output == "ids" else f"(1, h, w, {classes})"
        asked = f"tensor '{word}'" if word else "output of the network"
        found = _listed(fitting or maps or named)
        if fitting:
            raise InputError(f"{self.file}: several tensors '{word}': {found}; give a whole name")
        if not named:
            others = _listed([d for d in tensors if self._is_map(d)][-8:])
            raise InputError(f"{self.file}: no {asked}; it has, among others, {others}")
        raise InputError(
            f"{self.file}: {asked} is {found}; expected {form}, a map for each of the {classes} "
            f"class names: give 'names' that fit, another 'tensor', or 'output: ids'"
        )

    def _is_map(self, tensor: Mapping[str, Any]) -> bool:
        """Whether a tensor can hold the classes of every pixel."""
        shape = tuple(tensor["shape"])
        ids = self.config.output == "ids"
        return len(shape) == (3 if ids else 4) and shape[0] == 1 and min(shape[1:3]) > 1

    def probabilities(self, image: npt.NDArray[np.uint8]) -> Float32:
        """See `NamedSource`; the map has a quarter of the resolution of the image."""
        rows, columns = (max(1, side // _STEP_PX) for side in image.shape[:2])
        mean = np.zeros((len(self.names), rows, columns), np.float32)
        sides = self.config.windows_px or (image.shape[0],)
        for side in sides:
            windows = square_windows(image.shape[:2], side, self.config.overlap)
            mean += self._of_windows(image, windows, mean.shape) / len(sides)
        return mean

    def _of_windows(
        self, image: npt.NDArray[np.uint8], windows: list[Window], shape: tuple[int, ...]
    ) -> Float32:
        """(C, h, w) mean over windows; the middle of a window weighs more than its border."""
        total, weight = np.zeros(shape, np.float32), np.zeros(shape[1:], np.float32)
        for window in windows:
            crop = Image.fromarray(window.cut(image))
            crop = crop.resize((self.side, self.side), Image.Resampling.BILINEAR)
            scores = self._scores(np.asarray(crop))
            place, maps, soft = window.placed(scores, self.side, image.shape[:2], shape[1:])
            maps = _softmax(maps) if self.config.output == "logits" else maps
            rows, columns = place
            total[:, rows, columns] += maps * soft
            weight[rows, columns] += soft
        return total / weight

    def _scores(self, image: npt.NDArray[np.uint8]) -> Float32:
        """(S, S, 3) uint8 -> (C, h, w) logits or probabilities, mirrored ones averaged."""
        found = self._run(image)
        if self.config.flip:
            found += self._run(image[:, ::-1])[..., ::-1]
            found /= 2
        return found

    def _run(self, image: npt.NDArray[np.uint8]) -> Float32:
        fed = self._fed(image)[None]
        self._net.set_tensor(self._input["index"], np.ascontiguousarray(fed))
        self._net.invoke()
        return self._read(self._net.get_tensor(self._tensor["index"])[0])

    def _fed(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """The image as the input takes it: bytes as they are, floats normalized."""
        if self._input["dtype"] == np.uint8:
            return image
        if self._input["dtype"] == np.int8:
            return (image.astype(np.int16) - 128).astype(np.int8)
        mean, std = (np.array(color, np.float32) for color in (self.config.mean, self.config.std))
        return np.asarray((image / 255 - mean) / std, np.float32)

    def _read(self, values: npt.NDArray[Any]) -> Float32:
        """(h, w, C) of the tensor, or (h, w) ids, -> (C, h, w)."""
        if self.config.output == "ids":
            chosen = values[None] == np.arange(len(self.names))[:, None, None]
            return np.asarray(chosen, np.float32)
        scale, zero = self._tensor["quantization"]
        found: Float32 = np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)
        if scale:
            found -= zero
            found *= scale
        return found


def _last(tensor: Mapping[str, Any]) -> int:
    return int(tensor["shape"][-1])


def _listed(tensors: list[Mapping[str, Any]]) -> str:
    shown = (f"{d['name'][:60]} {tuple(int(n) for n in d['shape'])}" for d in tensors[:8])
    return ", ".join(shown) or "no maps"


def _softmax(logits: Float32) -> Float32:
    exponents = np.exp(logits - logits.max(0))
    found: Float32 = exponents / exponents.sum(0)
    return found


def _load(config: LitertConfig, device: str) -> NamedClasses:
    network = LitertNetwork(config)
    return named_classes(network, config, network.file.name)


KIND = Kind(LitertConfig, _load, "any network in TensorFlow Lite format (LiteRT)")
