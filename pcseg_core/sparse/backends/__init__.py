# SPDX-License-Identifier: Apache-2.0
"""Backends of the sparse convolutions.

A backend is chosen per input tensor (`SparseTensor(..., backend=...)`) and holds for everything
computed from that tensor. "auto" takes the fastest backend that supports the device and dtype:
torchsparse or triton, whichever is faster here, then torch on CUDA; native, then torch elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pcseg_core.errors import InputError
from pcseg_core.native import library, precision
from pcseg_core.sparse.backends import (
    device_maps,
    fastest,
    native_backend,
    torch_backend,
    torchsparse_backend,
    triton_backend,
)
from pcseg_core.sparse.maps import KernelMap, MapBuilder

NAMES = ("auto", "torch", "native", "triton", "torchsparse")
_INPUTS = {
    "native": "float32 on the CPU",
    "triton": "float32, float16 and bfloat16 on CUDA",
    "torchsparse": "float32 and float16 on CUDA",
}
_DEVICES = {"native": "cpu", "triton": "cuda", "torchsparse": "cuda"}
_BACKENDS = {"native": native_backend, "triton": triton_backend, "torchsparse": torchsparse_backend}


class Backend(Protocol):
    """One convolution, differentiable in feats, weight and bias."""

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


def resolve(name: str, device: torch.device) -> str:
    """The backend that runs float32 on a device: `name`, or the choice of "auto".

    Raises:
        InputError: the name is unknown, or the backend is unavailable here or on this device; the
            message gives the reason.
    """
    _check(name)
    if name == "auto":
        return next((n for n in _candidates(device) if _problem(n) is None), "torch")
    if name in _BACKENDS and not _runs_on(name, device):
        raise InputError(
            f"sparse backend '{name}' runs {_INPUTS[name]}, not on {device}; choose another "
            "device, or backend 'auto'"
        )
    return name


def takes_native_passes(name: str, device: torch.device) -> bool:
    """Whether voxels, input features and labels are computed by the native library.

    The results are those of torch, which computes them elsewhere.
    """
    return device.type == "cpu" and resolve(name, device) == "native"


def select(name: str, feats: Tensor) -> Backend:
    """The code that runs a convolution on these features.

    Raises:
        InputError: the backend is unknown, unavailable, or does not support the features.
    """
    _check(name)
    if name == "torch":
        return torch_backend
    for other in _candidates(feats.device) if name == "auto" else (name,):
        backend = _BACKENDS[other]
        if backend.can_run(feats) and _problem(other) is None:
            return backend
    if name != "auto":
        raise InputError(
            f"sparse backend '{name}' runs {_INPUTS[name]}, not {feats.dtype} on {feats.device}; "
            "backend 'auto' picks one that can"
        )
    return torch_backend


def _candidates(device: torch.device) -> tuple[str, ...]:
    """What "auto" tries on a device before torch, in order."""
    if device.type == "cuda":
        return fastest.order(device)
    return ("native",) if device.type == "cpu" else ()


def _runs_on(name: str, device: torch.device) -> bool:
    """Also the CPU for triton where its kernels are interpreted."""
    if name == "triton" and triton_backend.interpreted():
        return device.type in ("cpu", "cuda")
    return device.type == _DEVICES[name]


def map_builder(name: str, device: torch.device) -> MapBuilder:
    """The code that builds kernel maps of keys on this device."""
    _check(name)
    if device.type == "cuda":
        return device_maps.MAP_BUILDER
    if device.type == "cpu" and name != "torch" and _problem("native") is None:
        return native_backend.MAP_BUILDER
    return MapBuilder()


def _check(name: str) -> None:
    if name not in NAMES:
        raise InputError(f"sparse backend '{name}': expected one of {', '.join(NAMES)}")
    problem = _problem(name)
    if problem is not None:
        raise InputError(f"sparse backend '{name}' cannot be used: {problem}")


def _problem(name: str) -> str | None:
    """Why a backend is unavailable; None if it is available."""
    loaders = {
        "native": library.load,
        "triton": triton_backend.load,
        "torchsparse": torchsparse_backend.load,
    }
    loaded = loaders[name]() if name in loaders else None
    return loaded if isinstance(loaded, str) else None


def backends_report() -> list[BackendReport]:
    """Available backends and how to get faster ones; the fastest first."""
    cuda = torch.cuda.is_available()
    rows = [_cuda_report("torchsparse", "implicit-GEMM kernels of torchsparse 2.1")]
    rows.append(_cuda_report("triton", "fused kernels in float32, float16 and bfloat16"))
    rows.append(_native_report())
    where = "CPU and CUDA" if cuda else "CPU"
    rows.append(BackendReport("torch", True, f"{where}: plain PyTorch, the reference"))
    return rows


def _cuda_report(name: str, what: str) -> BackendReport:
    if not torch.cuda.is_available():
        return BackendReport(name, False, "CUDA: torch sees no CUDA device")
    problem = _problem(name)
    if problem is not None:
        return BackendReport(name, False, f"CUDA: {problem}")
    chosen = "; auto takes it" if resolve("auto", torch.device("cuda")) == name else ""
    return BackendReport(name, True, f"CUDA: {what}{chosen}")


def _native_report() -> BackendReport:
    problem = _problem("native")
    if problem is not None:
        return BackendReport("native", False, f"CPU, several times faster than torch: {problem}")
    names, best = library.isa_names(), library.best_isa()
    threads = torch.get_num_threads()
    note = f"CPU: {names[best]}, of {', '.join(names)}; {threads} threads; {precision.summary()}"
    return BackendReport("native", True, note)
