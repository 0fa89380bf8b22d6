# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution on CUDA through Triton, differentiable: float32, float16 and bfloat16.

An implicit matrix product: a tile of output rows gathers its input rows through the neighbor table,
offset by offset, and multiplies them with the weights of that offset; see `triton_kernels`. Sums
are float32. Products of float32 are exact unless torch allows TF32
(`torch.set_float32_matmul_precision`). No sum uses atomics: equal inputs give equal bits within a
process once the tile of their channels is chosen.

Triton comes with torch's Linux wheels and compiles at first use, about a second per kernel. With
TRITON_INTERPRET=1 in the environment the kernels run, slowly, on the CPU; tests use that.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pcseg_core.errors import InputError
from pcseg_core.sparse.backends import torch_backend
from pcseg_core.sparse.maps import KernelMap

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LIMITS = {torch.float16: 65504.0}  # a larger sum saturates instead of becoming infinite
_FLOAT32_PRODUCTS = {"highest": "ieee", "high": "tf32", "medium": "tf32"}
_MIN_CAPABILITY = (7, 5)
_MIN_SORTED = 1024  # smaller tables are not sorted
_MIN_TUNED = 2048  # smaller inputs are too short to time
_SORT_BITS = 31  # offsets that fit the sort key


class Tile(NamedTuple):
    """Launch settings: output rows and channels per program, warps, stages of the pipeline."""

    rows: int
    columns: int
    warps: int = 4
    stages: int = 3


# Candidates by bytes per value, first the default for small inputs; all sum in the same order.
_TILES = {
    2: (Tile(64, 64), Tile(64, 32), Tile(128, 64), Tile(128, 128, 8)),
    4: (Tile(64, 64), Tile(64, 32), Tile(32, 64), Tile(128, 64, 8)),
}
_Key = tuple[int, int, int, torch.dtype, str, torch.device]
_tuned: dict[_Key, Tile] = {}


@cache
def load() -> ModuleType | str:
    """The kernels, or one line that says why they cannot be used."""
    try:
        kernels = importlib.import_module("pcseg_core.sparse.backends.triton_kernels")
    except ImportError as error:
        return f"{error}; Triton comes with torch's Linux wheels, or: pip install triton"
    if interpreted():
        return kernels
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < _MIN_CAPABILITY:
        return (
            f"needs compute capability 7.5 or higher, this GPU has {capability[0]}.{capability[1]}"
        )
    return kernels


def interpreted() -> bool:
    """True where Triton interprets its kernels on the CPU instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def can_run(feats: Tensor) -> bool:
    """float32, float16 and bfloat16 on CUDA; on the CPU where Triton is interpreted."""
    on_device = feats.device.type == "cuda" or (feats.device.type == "cpu" and interpreted())
    return on_device and feats.dtype in DTYPES


def conv(feats: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap) -> Tensor:
    """Differentiable convolution; see `backends.Backend.conv`."""
    if len(weight) == 1 and kernel_map.stride == 1:
        return torch_backend.conv(feats, weight, bias, kernel_map)
    dtype = torch_backend.autocast_dtype(feats.device.type)
    if dtype is not None:
        feats, weight = feats.to(dtype), weight.to(dtype)
    out = _Conv.apply(feats, weight, bias, kernel_map)
    assert isinstance(out, Tensor)
    return out


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, feats: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap
    ) -> Tensor:
        ctx.save_for_backward(feats, weight)
        ctx.kernel_map, ctx.bias_dtype = kernel_map, None if bias is None else bias.dtype
        return convolve(feats, weight, kernel_map, bias=bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        feats, weight = ctx.saved_tensors
        kernel_map: KernelMap = ctx.kernel_map
        grad = grad.to(feats.dtype)
        grad_feats = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_feats = _grad_feats(grad, weight, kernel_map)
        if ctx.needs_input_grad[1]:
            grad_weight = grad_of_weight(feats, grad, kernel_map).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        return grad_feats, grad_weight, grad_bias, None


def _grad_feats(grad: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """The transposed convolution; a symmetric map is its own inverse with the offsets reversed."""
    transposed = weight.transpose(1, 2)
    if kernel_map.is_symmetric:
        return convolve(grad, transposed.flip(0), kernel_map)
    return convolve(grad, transposed, kernel_map.inverse)


def convolve(
    feats: Tensor,
    weight: Tensor,
    kernel_map: KernelMap,
    out: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    products: str | None = None,
) -> Tensor:
    """One convolution, not differentiable, with what follows it fused in.

    Args:
        feats: (n_in, cin or more) float32, float16 or bfloat16; any step between rows.
        weight: (K, cin, cout) of that dtype.
        kernel_map: of the convolution.
        out: (n_out, cout) to write to, in other memory than `feats`; a new tensor by default.
        bias: (cout,) added to each row.
        residual: (n_out, cout) added before the rectifier; may be `out`.
        relu: replace negative results by zero.
        products: of float32: "ieee", "tf32x3" or "tf32"; by default as torch is set.

    Returns:
        `out`.
    """
    _, cin, cout = weight.shape
    if weight.dtype != feats.dtype or feats.shape[1] < cin:
        raise InputError(
            f"triton convolution: features {feats.dtype} of {feats.shape[1]} channels, weights "
            f"{weight.dtype} for {cin}; dtype and channels must agree"
        )
    if out is None:
        out = feats.new_empty(kernel_map.n_out, cout)
    if not out.numel():
        return out
    call = _Call(
        _rows(feats),
        weight.contiguous(),
        *sorted_table(kernel_map),
        bias,
        residual,
        relu,
        products or _products(),
    )
    with _on_device(feats):
        _launch(call, _tile(call, out), out)
    return out


class _Call(NamedTuple):
    """Arguments of one convolution that do not depend on the tile."""

    feats: Tensor
    weight: Tensor
    table: Tensor
    order: Tensor
    bias: Tensor | None
    residual: Tensor | None
    relu: bool
    products: str


def _launch(call: _Call, tile: Tile, out: Tensor) -> None:
    feats, weight, bias, residual = call.feats, call.weight, call.bias, call.residual
    (offsets, cin, cout), rows = weight.shape, len(call.order)
    grid = (-(-rows // tile.rows) * -(-cout // tile.columns),)
    _kernels().convolve[grid](
        feats,
        call.table,
        call.order,
        weight,
        weight if bias is None else bias,
        out if residual is None else residual,
        out,
        rows,
        offsets,
        cin,
        cout,
        feats.stride(0),
        0 if residual is None else residual.stride(0),
        out.stride(0),
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        RELU=call.relu,
        LIMIT=_LIMITS.get(out.dtype, 0.0),
        PRECISION=call.products,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        CHANNELS=_channels(cin, feats.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def grad_of_weight(
    feats: Tensor, grad: Tensor, kernel_map: KernelMap, products: str | None = None
) -> Tensor:
    """Gradient (K, cin, cout) float32 of the weights, from that of the output (n_out, cout)."""
    table, order = sorted_table(kernel_map)
    feats, grad = _rows(feats), _rows(grad)
    offsets, cin, cout = len(table), feats.shape[1], grad.shape[1]
    if not table.numel() or not len(feats):
        return feats.new_zeros(offsets, cin, cout, dtype=torch.float32)
    rows = 128 // feats.element_size()
    inputs, outputs = _block(cin), _block(cout)
    tiles = -(-cin // inputs) * -(-cout // outputs)
    share = _share(len(order), tiles * offsets)
    splits = -(-len(order) // share)
    out = feats.new_empty(splits, offsets, cin, cout, dtype=torch.float32)
    with _on_device(feats):
        _kernels().weight_gradient[(tiles, offsets, splits)](
            feats,
            table,
            order,
            grad,
            out,
            len(order),
            share,
            cin,
            cout,
            feats.stride(0),
            grad.stride(0),
            PRECISION=products or _products(),
            ROWS=rows,
            INPUTS=inputs,
            OUTPUTS=outputs,
            num_warps=4,
            num_stages=2,
        )
    return out[0] if splits == 1 else out.sum(0)


def sorted_table(kernel_map: KernelMap) -> tuple[Tensor, Tensor]:
    """The table with its columns sorted by which neighbors are there, and the order (n_out,) int32.

    Rows with the same neighbors then share tiles, and tiles skip more offsets: on a LiDAR sweep the
    share of useful rows in tiles of 32 rises from 0.22 to 0.64.
    """
    derived = kernel_map.derived
    if "triton.order" not in derived:
        table = kernel_map.table
        order = torch.arange(kernel_map.n_out, dtype=torch.int32, device=table.device)
        if kernel_map.n_out >= _MIN_SORTED and 1 < len(table) <= _SORT_BITS:
            bits = torch.arange(len(table), dtype=torch.int32, device=table.device)
            present = (table >= 0).to(torch.int32) << bits[:, None]
            places = torch.sort(present.sum(0, dtype=torch.int32), stable=True).indices
            table, order = table.index_select(1, places), places.to(torch.int32)
        derived["triton.table"], derived["triton.order"] = table.contiguous(), order
    return derived["triton.table"], derived["triton.order"]


def _share(rows: int, programs: int) -> int:
    """Output rows per split, a multiple of 1024: enough programs to fill a GPU, few sums to add."""
    splits = max(1, min(-(-rows // 1024), 4096 // programs))
    return -(-rows // (splits * 1024)) * 1024


def _block(channels: int) -> int:
    return min(64, _power_of_two(channels))


def _power_of_two(channels: int) -> int:
    """At least 16, the least that tensor cores take."""
    return max(16, 1 << (channels - 1).bit_length())


def _channels(cin: int, dtype: torch.dtype) -> int:
    """Input channels per step; the same for all tiles, so that all sum in the same order."""
    wide = 64 if dtype.itemsize == 2 and cin % 64 == 0 else 32
    return min(wide, _power_of_two(cin))


def _tile(call: _Call, out: Tensor) -> Tile:
    """The fastest tile for these channels, measured once; the default for small inputs."""
    (offsets, cin, cout), feats = call.weight.shape, call.feats
    key = (cin, cout, offsets, feats.dtype, call.products, feats.device)
    if key in _tuned:
        return _tuned[key]
    candidates = _TILES[feats.element_size()]
    if len(call.order) < _MIN_TUNED or interpreted():
        return candidates[0]
    widest = max(candidates[0].columns, _power_of_two(cout))
    scratch = torch.empty_like(out)
    times = {t: _time(call, t, scratch) for t in candidates if t.columns <= widest}
    _tuned[key] = min(times, key=lambda tile: times[tile])
    return _tuned[key]


def _time(call: _Call, tile: Tile, scratch: Tensor) -> float:
    """Time of a few runs [ms]; infinite if the GPU has too little shared memory."""
    from triton.runtime.errors import OutOfResources

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    try:
        _launch(call, tile, scratch)  # compiles
    except OutOfResources:
        return float("inf")
    begin.record()
    for _ in range(5):
        _launch(call, tile, scratch)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def _rows(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _products() -> str:
    return _FLOAT32_PRODUCTS[torch.get_float32_matmul_precision()]


def _on_device(feats: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on torch's current device."""
    if feats.device.type == "cuda":
        return torch.cuda.device(feats.device)
    return contextlib.nullcontext()


def _kernels() -> ModuleType:
    kernels = load()
    if isinstance(kernels, str):
        raise InputError(f"sparse backend 'triton' cannot be used: {kernels}")
    return kernels
