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
from pcseg_core.sparse.backends import native_backend, torch_backend, torchsparse_backend
from pcseg_core.sparse.maps import KernelMap, MapBuilder
from pcseg_core.sparse.native import library

NAMES = ("auto", "torch", "native", "torchsparse")


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
    problem = _problem(name)
    if problem is not None:
        raise InputError(f"sparse backend '{name}' cannot be used: {problem}")


def _problem(name: str) -> str | None:
    """Why a backend cannot be used here, None if it can."""
    loaders = {"native": library.load, "torchsparse": torchsparse_backend.load}
    loaded = loaders[name]() if name in loaders else None
    return loaded if isinstance(loaded, str) else None


def select(feats: Tensor) -> Backend:
    """The backend that runs a convolution on these features."""
    _check(_chosen)
    if _chosen == "torch":
        return torch_backend
    for name, backend in (("torchsparse", torchsparse_backend), ("native", native_backend)):
        if _chosen in ("auto", name) and backend.can_run(feats) and _problem(name) is None:
            return backend
    if _chosen != "auto":
        takes = "float32 on the CPU" if _chosen == "native" else "float32 and float16 on CUDA"
        raise InputError(
            f"sparse backend '{_chosen}' runs {takes}, not {feats.dtype} on {feats.device}; "
            "use_backend('auto') picks one that can"
        )
    return torch_backend


def map_builder(device: torch.device) -> MapBuilder:
    """The code that builds kernel maps of keys on this device."""
    if device.type == "cpu" and _chosen != "torch" and _problem("native") is None:
        return native_backend.MAP_BUILDER
    return MapBuilder()


def backends_report() -> list[BackendReport]:
    """What can run here, and what would make it faster; the fastest first."""
    cuda = torch.cuda.is_available()
    missing = _problem("torchsparse") if cuda else "torch sees no CUDA device"
    note = missing or "implicit-GEMM kernels of torchsparse 2.1"
    rows = [BackendReport("torchsparse", missing is None, f"CUDA: {note}")]
    rows.append(_native_report())
    where = "CPU and CUDA" if cuda else "CPU"
    rows.append(BackendReport("torch", True, f"{where}: plain PyTorch, the reference"))
    return rows


def _native_report() -> BackendReport:
    problem = _problem("native")
    if problem is not None:
        return BackendReport("native", False, f"CPU, several times faster than torch: {problem}")
    names, best = library.isa_names(), library.best_isa()
    note = f"CPU: {names[best]}, of {', '.join(names)}; {torch.get_num_threads()} threads"
    if not library.has_bfloat16():
        note += "; bf16 inference is emulated, a CPU with avx512_bf16 would double the speed"
    return BackendReport("native", True, note)
