# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: tensors in safetensors, everything else as JSON in the same file's header.

Loading a checkpoint never executes code, so checkpoints from untrusted sources are safe to load.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pcseg_core import __version__
from pcseg_core.bundled import BUNDLED, bundled_file
from pcseg_core.config import Section
from pcseg_core.errors import InputError
from pcseg_core.files import atomic_path
from pcseg_core.text_table import TextTable

FILE_NAME = "checkpoint.safetensors"
_HEADER_KEY = "pcseg"
_VECTORS, _CENTER = "text_table.vectors", "text_table.center"
_TEXT = (_VECTORS, _CENTER)


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
    pcseg_version: str = Field(__version__, description="Version that wrote the file")


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
    """
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
        InputError: no checkpoint, a damaged file, or a file that pcseg did not write.
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
    classes = {str(k): tuple(v) for k, v in dict(meta.text.get("classes", {})).items()}
    temperature = float(meta.text.get("temperature", 0.07))
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
    return state, _parse_header(header, file)


def checkpoint_file(path: Path) -> Path:
    """Resolve a checkpoint file, a run directory, or "bundled" to a file."""
    if bundled := bundled_file(path):
        return bundled
    path = Path(path).expanduser()
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        unfinished = path.is_dir() and (path / "recipe.yaml").is_file()
        hint = (
            "the run has not finished; run `pcseg distill` with the same --out to resume it"
            if unfinished
            else f"expected a run directory of `pcseg distill`, a {FILE_NAME} or '{BUNDLED}'"
        )
        raise InputError(f"no checkpoint at {path}: {hint}")
    return file


def _parse_header(header: str, file: Path) -> CheckpointMeta:
    try:
        return CheckpointMeta.model_validate(json.loads(header))
    except (ValueError, ValidationError) as error:
        raise InputError(
            f"{file}: header not understood ({error}); it may come from a newer pcseg"
        ) from None


def load_strictly(module: Any, state: Mapping[str, Tensor], source: object) -> None:
    """`load_state_dict` with an error that names the tensors.

    Raises:
        InputError: tensors are missing, unknown or of another shape.
    """
    try:
        module.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise InputError(f"checkpoint {source} does not fit its own description: {error}") from None
