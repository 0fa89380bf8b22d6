# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: tensors in safetensors, everything else as JSON in the same file's header.

Loading a checkpoint never executes code, so checkpoints from untrusted sources are safe to load.
A checkpoint holds at most `MAX_CLASSES` classes, and finite numbers of at most `MAX_MAGNITUDE`: a
training that diverged is refused when it is written and when it is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pcseg_core import __version__
from pcseg_core.bundled import FILE_NAME as FILE_NAME
from pcseg_core.bundled import checkpoint_file
from pcseg_core.confidence import ConfidenceScaling
from pcseg_core.config import Section
from pcseg_core.errors import InputError
from pcseg_core.files import atomic_path
from pcseg_core.input_check import InputStatistics
from pcseg_core.labels import MAX_CLASSES
from pcseg_core.text_table import TextTable

MAX_MAGNITUDE = 1e6
MAX_MIOU_LOSS = 0.005
MIN_AGREEMENT = 0.99
UNKNOWN_LICENSE = "unknown"
_HEADER_KEY = "pcseg"
_VECTORS, _CENTER = "text_table.vectors", "text_table.center"
_TEXT = (_VECTORS, _CENTER)


class IntegerScales(Section):
    """Calibration of the network for 8-bit integers, and what it costs; see `pcseg quantize`."""

    tops: list[Annotated[float, Field(ge=0, le=MAX_MAGNITUDE)]] = Field(
        description="Largest result of each layer"
    )
    source: str = Field("", description="Name of the recording")
    sweeps: int = Field(0, ge=0, description="Number of sweeps that set the scales")
    compared: int = Field(0, ge=0, description="Number of other sweeps, compared with float32")
    agreement: float = Field(
        0.0, ge=0, le=1, description="Share of the points whose label is that of float32"
    )
    miou_fp32: float | None = Field(None, description="mIoU in float32; none without labels")
    miou_int8: float | None = Field(None, description="mIoU in integers")

    @property
    def exact_enough(self) -> bool:
        """Whether "auto" may use them: the mIoU falls by at most 0.5 points.

        Without labels, at least 99 % of the labels must be those of float32.
        """
        if self.miou_fp32 is None or self.miou_int8 is None:
            return self.agreement >= MIN_AGREEMENT
        return self.miou_fp32 - self.miou_int8 <= MAX_MIOU_LOSS


class Measurement(Section):
    """Figures of a checkpoint on labeled real sweeps."""

    data: str = Field(min_length=1, max_length=100, description="Name of the data set")
    sweeps: int = Field(ge=1, description="Number of sweeps")
    miou: float = Field(ge=0, le=1, description="Mean IoU in the label space street")
    accuracy: float = Field(ge=0, le=1, description="Share of the points with the right label")

    def __str__(self) -> str:
        figures = f"{100 * self.miou:.0f} % mIoU and {100 * self.accuracy:.0f} % accuracy"
        return f"{figures} on {self.sweeps} real sweeps of {self.data}"


class CheckpointMeta(Section):
    """Metadata of a checkpoint."""

    format_version: Literal[1] = Field(1, description="Version of this layout")
    student: dict[str, Any] = Field(description="Configuration of the student network")
    label_space: dict[str, Any] = Field(description="Classes of the outputs, in order")
    recipe: dict[str, Any] = Field(default_factory=dict, description="Recipe of the training")
    metrics: dict[str, Any] = Field(default_factory=dict, description="Figures of the training")
    text: dict[str, Any] | None = Field(
        None, description="Words of the text table, and temperature and class words of the run"
    )
    inputs: InputStatistics | None = Field(
        None, description="Scale and distribution of the sweeps of the training"
    )
    int8: IntegerScales | None = Field(None, description="Calibration for 8-bit integers")
    confidence: ConfidenceScaling | None = Field(
        None, description="Temperatures of the logits of the checkpoint's own classes"
    )
    measured: Measurement | None = Field(
        None, description="Figures on real sweeps, of a checkpoint trained on simulated ones"
    )
    license: str | None = Field(
        None, description="License of imported weights that the network is or started from"
    )
    pcseg_version: str = Field(__version__, description="Version that wrote the file")

    @property
    def caution(self) -> str:
        """What to know before the labels are used on a robot; "" if nothing."""
        return "; ".join(told for told in (self._simulated, self._restricted) if told)

    @property
    def _simulated(self) -> str:
        sources = self.metrics.get("poses")
        if not isinstance(sources, dict) or not sources:
            return ""
        if not all(str(source).startswith("simulated:") for source in sources):
            return ""
        figures = f"; it reaches {self.measured}" if self.measured else ""
        return f"trained on simulated drives{figures}; distill one from your own recordings"

    @property
    def _restricted(self) -> str:
        if self.license is None:
            return ""
        if re.search(r"\bNC\b", self.license.upper()):
            return f"its weights are under {self.license}: no commercial use"
        unknown = self.license == UNKNOWN_LICENSE
        return "the license of its weights is unknown: ask their authors" if unknown else ""


@dataclass(frozen=True, eq=False)
class CheckpointText:
    """Words of a checkpoint with their vectors; inference then needs no text encoder.

    Attributes:
        table: words with their vectors.
        classes: classes that the text head was trained on: name -> words. The vector of a class
            is the normalized mean of the vectors of its words.
        temperature: of the cosine classifier.
        from_classes: True if the text head regresses the vectors of these classes, False if it
            regresses dense features of an image encoder.
    """

    table: TextTable
    classes: dict[str, tuple[str, ...]]
    temperature: float = 0.07
    from_classes: bool = True


def save_checkpoint(
    path: Path,
    state: Mapping[str, Tensor],
    meta: CheckpointMeta,
    text: CheckpointText | None = None,
) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file.
        state: tensors of the student.
        meta: metadata; `meta.text` is taken from `text`.
        text: words with their vectors.

    Raises:
        InputError: weights that are not finite or absurdly large.
    """
    check_weights(state, path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if text is not None:
        assert text.table.center is not None
        tensors[_VECTORS] = torch.from_numpy(text.table.vectors.astype(np.float16))
        tensors[_CENTER] = torch.from_numpy(text.table.center.astype(np.float32))
        words = {k: list(v) for k, v in text.classes.items()}
        header = {**text.table.header(), "classes": words, "temperature": text.temperature}
        header["from_classes"] = text.from_classes
        meta = meta.model_copy(update={"text": header})
    with atomic_path(path) as temporary:
        save_file(tensors, str(temporary), metadata={_HEADER_KEY: meta.model_dump_json()})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], CheckpointMeta]:
    """Read a checkpoint file, the one inside a run directory, or the bundled one ("bundled").

    Returns:
        The student's tensors and the metadata.

    Raises:
        InputError: no checkpoint, a damaged file, a file that pcseg did not write, weights that
            are not finite or absurdly large, or too many classes.
    """
    state, meta = _read(checkpoint_file(path))
    return {name: tensor for name, tensor in state.items() if name not in _TEXT}, meta


def load_text(path: Path) -> CheckpointText | None:
    """Words of a checkpoint; None for a checkpoint without words.

    Raises:
        InputError: see `load_checkpoint`, or words and vectors differ in number.
    """
    file = checkpoint_file(path)
    state, meta = _read(file)
    if meta.text is None:
        return None
    if _VECTORS not in state:
        raise InputError(f"checkpoint {file} names words but has no tensor '{_VECTORS}'")
    vectors = state[_VECTORS].float().numpy()
    center = state[_CENTER].float().numpy() if _CENTER in state else None
    table = TextTable.from_parts(meta.text, vectors, center)
    try:
        given = dict(meta.text.get("classes", {}))
        classes = {str(name): tuple(map(str, words)) for name, words in given.items()}
        temperature = float(meta.text.get("temperature", 0.07))
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: words not understood ({error})") from None
    return CheckpointText(table, classes, temperature, bool(meta.text.get("from_classes", True)))


def _read(file: Path) -> tuple[dict[str, Tensor], CheckpointMeta]:
    try:
        with safe_open(str(file), framework="pt") as handle:
            header = (handle.metadata() or {}).get(_HEADER_KEY)
            state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"checkpoint {file} is damaged ({error}); copy or train it again"
        ) from None
    if header is None:
        raise InputError(f"{file} is a safetensors file, but not a pcseg checkpoint (no header)")
    check_weights(state, file)
    return state, _parse_header(header, file)


def check_weights(state: Mapping[str, Tensor], source: object) -> None:
    """Check that a network can give finite results.

    Raises:
        InputError: numbers that are not finite or exceed `MAX_MAGNITUDE`, or negative variances.
    """
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = (float(bound) for bound in torch.aminmax(tensor.detach()))
        lowest = 0.0 if name.endswith("running_var") else -MAX_MAGNITUDE
        if not (low >= lowest and high <= MAX_MAGNITUDE):  # also false for NaN
            raise InputError(
                f"checkpoint {source}: the tensor '{name}' spans {low:g} to {high:g}, expected "
                f"finite numbers from {lowest:g} to {MAX_MAGNITUDE:g}; the training diverged or "
                "the file is damaged: train again with a lower learning rate"
            )


def _parse_header(header: str, file: Path) -> CheckpointMeta:
    try:
        meta = CheckpointMeta.model_validate(json.loads(header))
    except (ValueError, ValidationError, RecursionError) as error:
        raise InputError(
            f"{file}: header not understood ({str(error)[:300]}); it may come from a newer pcseg"
        ) from None
    classes = meta.label_space.get("classes")
    if isinstance(classes, list) and len(classes) > MAX_CLASSES:
        raise InputError(f"{file}: {len(classes)} classes, expected at most {MAX_CLASSES}")
    return meta


def check_fits(module: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Compare the names and shapes of tensors with those of a network.

    Args:
        module: the network; its parameters may be on the meta device.
        state: the tensors.
        source: names them in the message.

    Raises:
        InputError: tensors are missing, unknown or of another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = [
        f"{name} is {given.get(name, 'missing')}, expected {expected.get(name, 'no such tensor')}"
        for name in sorted(expected.keys() | given.keys())
        if expected.get(name) != given.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        listed = "; ".join(wrong[:3])
        raise InputError(f"checkpoint {source} does not fit its own description: {listed}{more}")


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """`load_state_dict` with an error that names the tensors; raises as `check_fits`."""
    check_fits(module, state, source)
    module.load_state_dict(dict(state), strict=True)
