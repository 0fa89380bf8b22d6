# SPDX-License-Identifier: Apache-2.0
"""Weights of public networks: safe reading and strict loading."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pcseg_core.errors import InputError

# Keys of the state dict in checkpoints of training frameworks.
_CONTAINERS = ("state_dict", "model", "teacher", "student", "network")
# A best score among the weights is often a numpy number. None of these runs code of the file.
_NUMPY_NUMBERS: list[Any] = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    np.float64(0).__reduce__()[0],
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")),
]


def read_weights(path: Path | None, source: str) -> dict[str, Tensor]:
    """Tensors of a safetensors or torch file, by name.

    Args:
        path: file; torch files are read with `weights_only=True`, which executes no code.
        source: of such weights, for the error message.

    Raises:
        InputError: no path, no such file, a damaged file, or one with other content than tensors
            and plain values.
    """
    if path is None or not Path(path).is_file():
        given = "no weights given" if path is None else f"weights {path}: no such file"
        raise InputError(f"{given}; get them from {source} and give their path")
    return _tensors(read_content(Path(path), source), str(path))


def read_content(path: Path, source: str) -> Any:
    """Content of a safetensors or torch file: tensors, numbers, texts, lists and mappings of them.

    Args:
        path: an existing file; torch files are read with `weights_only=True`, which executes no
            code.
        source: of such weights, for the error message.

    Raises:
        InputError: a damaged file, or one with other content.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(str(path)))
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            return torch.load(str(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weights {path}: not a torch file of tensors and plain values alone "
            f"({_refused(str(error))}); such files can run code when read, so this one is not. If "
            "you trust it, save its tensors alone: python -c \"import torch; f = torch.load('IN', "
            "map_location='cpu', weights_only=False); torch.save(f.get('state_dict', f), 'OUT')\""
        ) from None
    except Exception as error:  # torch raises various errors for damaged files
        raise InputError(
            f"weights {path}: not readable ({str(error)[:300]}); download them again from {source}"
        ) from None


def _refused(message: str) -> str:
    """The object that torch refuses, from its message, which goes on with advice to run code."""
    _, found, rest = message.partition("GLOBAL ")
    if found and rest:
        return f"an object of {rest.split()[0]}"
    return message.strip().partition("\n")[0].partition(". ")[0][:200]


def _tensors(content: Any, path: str) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return dict(content)
        nested = [content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping)]
        if not nested:
            break
        content = nested[0]
    raise InputError(
        f"weights {path}: no state dict in it; expected tensors by name, alone or under one of "
        f"{', '.join(_CONTAINERS)}"
    )


def select_prefix(
    state: Mapping[str, Tensor], prefixes: Sequence[str], probe: str
) -> dict[str, Tensor] | None:
    """The tensors under the first prefix with `probe`, without the prefix; None without one."""
    for prefix in prefixes:
        if prefix + probe in state:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return None


def load_strictly(
    network: nn.Module, state: Mapping[str, Tensor], path: Path | None, source: str
) -> None:
    """Load exactly the tensors of a network.

    Raises:
        InputError: missing, unknown or misshapen tensors; the message has the first of each.
    """
    own = network.state_dict()
    missing = [k for k in own if k not in state]
    extra = [k for k in state if k not in own]
    shapes = [
        f"{k} is {tuple(state[k].shape)}, not {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    problems = [
        f"{len(found)} {what} (first: {found[0]})"
        for what, found in (("missing", missing), ("unknown", extra), ("of other shape", shapes))
        if found
    ]
    if problems:
        kind = type(network).__name__
        raise InputError(
            f"weights {path} do not fit {kind}: tensors {', '.join(problems)}; get weights of this "
            f"network from {source}"
        )
    network.load_state_dict(dict(state), strict=True)
