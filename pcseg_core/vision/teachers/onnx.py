# SPDX-License-Identifier: Apache-2.0
"""A teacher from an ONNX file, run by ONNX Runtime on the CPU or a GPU."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from pcseg_core.errors import InputError, require
from pcseg_core.vision.class_names import read_names
from pcseg_core.vision.named_classes import NamedClasses, named_classes
from pcseg_core.vision.network_input import ImageNetworkConfig, network_input, network_output
from pcseg_core.vision.registry import Kind, LocatedPath

_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}


class OnnxConfig(ImageNetworkConfig):
    """A network in ONNX format."""

    name: Literal["onnx"] = "onnx"
    file: Annotated[Path, LocatedPath()] = Field(description="The ONNX file")
    names_file: Annotated[Path | None, LocatedPath()] = Field(
        None, description="File of the class names, if `names` and the metadata have none"
    )
    output_name: str = Field("", description="Name of the output; empty takes the first")


class OnnxNetwork:
    """A network in ONNX format; a `NamedSource`.

    The input is (1, 3, H, W) or (1, H, W, 3), of fixed or free size.

    Args:
        config: file, names, input and output.
        device: "cpu" or "cuda"; a GPU is used if ONNX Runtime has its provider.

    Raises:
        MissingDependency: onnxruntime is not installed.
        InputError: not an ONNX file, no such output, an input that is no image, or no class names.
    """

    def __init__(self, config: OnnxConfig, device: str = "cpu") -> None:
        runtime = require("onnxruntime", "teachers")
        self.config, self.file = config, config.file
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        gpu = device.startswith("cuda") and "CUDAExecutionProvider" in (
            runtime.get_available_providers()
        )
        providers = ["CUDAExecutionProvider"] * gpu + ["CPUExecutionProvider"]
        try:
            self.session = runtime.InferenceSession(str(self.file), options, providers=providers)
        except Exception as error:  # the runtime raises its own classes
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"{self.file}: not usable as an ONNX file ({reason})") from error
        self._input = self.session.get_inputs()[0]
        self._check_input()
        outputs = [output.name for output in self.session.get_outputs()]
        self._output = config.output_name or outputs[0]
        if self._output not in outputs:
            raise InputError(
                f"{self.file}: no output '{self._output}'; it has {', '.join(outputs)}"
            )
        self.names = self._names()

    def _check_input(self) -> None:
        shape = self._input.shape
        inputs = len(self.session.get_inputs())
        if inputs != 1 or len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise InputError(
                f"{self.file}: {inputs} inputs, the first of shape {shape}; expected one image, "
                "(1, 3, H, W) or (1, H, W, 3)"
            )
        if self._input.type not in _TYPES:
            raise InputError(
                f"{self.file}: input of {self._input.type}; expected one of {', '.join(_TYPES)}"
            )
        self._channels_last = shape[1] != 3
        height, width = (shape[1], shape[2]) if self._channels_last else (shape[2], shape[3])
        fixed = isinstance(height, int) and isinstance(width, int)
        self._size = (width, height) if fixed else None

    def _names(self) -> tuple[str, ...]:
        if self.config.names:
            return read_names(self.config.names)
        if self.config.names_file:
            return read_names(self.config.names_file)
        stored = self.session.get_modelmeta().custom_metadata_map.get("names", "")
        try:
            found: Any = ast.literal_eval(stored)
            ordered = [found[k] for k in sorted(found)] if isinstance(found, dict) else list(found)
            return read_names([str(name) for name in ordered])
        except (ValueError, SyntaxError, TypeError):
            raise InputError(
                f"{self.file}: no class names in its metadata; give 'names' or 'names_file'"
            ) from None

    def probabilities(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `NamedSource`."""
        x = network_input(image, self.config, self._size)
        x = x.permute(0, 2, 3, 1) if self._channels_last else x
        fed = np.ascontiguousarray(x.numpy().astype(_TYPES[self._input.type]))
        found = torch.from_numpy(self.session.run([self._output], {self._input.name: fed})[0])
        if found.ndim == 4 and self._channels_last and found.shape[-1] == len(self.names):
            found = found.permute(0, 3, 1, 2)
        maps = network_output(found, self.config, len(self.names), str(self.file))
        result: npt.NDArray[np.float32] = maps.numpy()
        return result


def _load(config: OnnxConfig, device: str) -> NamedClasses:
    network = OnnxNetwork(config, device)
    return named_classes(network, config, network.file.name)


KIND = Kind(OnnxConfig, _load, "any network in ONNX format (ONNX Runtime)")
