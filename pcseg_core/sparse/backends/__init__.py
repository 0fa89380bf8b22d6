# SPDX-License-Identifier: Apache-2.0
"""Choice of the code that runs sparse convolutions.

`set_backend` or the environment variable PCSEG_BACKEND picks one; "auto" takes, for each tensor,
the fastest one that can run it: torchsparse then torch on CUDA, native then torch elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pcseg_core.errors import InputError
from pcseg_core.sparse.backends import native_backend, torch_backend
from pcseg_core.sparse.maps import KernelMap, MapBuilder
from pcseg_core.sparse.native import library

NAMES = ("auto", "torch", "native")


class Backend(Protocol):
    """Code for one convolution; differentiable in feats, weight and bias."""

    def conv(
        self, feats: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap
    ) -> Tensor:
        """feats (n_in, Cin), weight (K, Cin, Cout), bias (Cout,) or None; gives (n_out, Cout)."""
        ...


class BackendReport(NamedTuple):
    """One line of `backends_report`."""

    name: str
    available: bool
    note: str


_chosen = os.environ.get("PCSEG_BACKEND", "auto")


def set_backend(name: str) -> None:
    """Use this backend from now on: "auto" or a name that `backends_report` says is available.

    Raises:
        InputError: the name is unknown or the backend cannot run here (the message says why).
    """
    global _chosen
    _check(name)
    _chosen = name


def get_backend() -> str:
    """The name that was set, "auto" unless changed."""
    return _chosen


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use a backend within a block."""
    before = _chosen
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def _check(name: str) -> None:
    if name not in NAMES:
        raise InputError(f"sparse backend '{name}': expected one of {', '.join(NAMES)}")
    if name == "native":
        library.library()


def select(feats: Tensor) -> Backend:
    """The backend that runs a convolution on these features."""
    _check(_chosen)
    if _chosen != "torch" and _native_is_there() and native_backend.can_run(feats):
        return native_backend
    if _chosen == "native":
        raise InputError(
            f"sparse backend 'native' runs float32 on the CPU, not {feats.dtype} on "
            f"{feats.device}; use_backend('auto') picks one that can"
        )
    return torch_backend


def map_builder(device: torch.device) -> MapBuilder:
    """The code that builds kernel maps of keys on this device."""
    if device.type == "cpu" and _chosen != "torch" and _native_is_there():
        return native_backend.MAP_BUILDER
    return MapBuilder()


def _native_is_there() -> bool:
    return not isinstance(library.load(), str)


def backends_report() -> list[BackendReport]:
    """What can run here, and what would make it faster."""
    return [BackendReport("torch", True, "plain PyTorch, the reference; CPU and CUDA")]
