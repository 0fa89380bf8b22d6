# SPDX-License-Identifier: Apache-2.0
"""Call the native library on CPU tensors.

Arguments are checked here and again in C++.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import byref, c_int64, c_void_p
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pcseg_core.native import library as native
from pcseg_core.native.checks import (
    require,
    require_int,
    require_keys,
    require_matrix,
    require_table,
    require_vector,
)
from pcseg_core.native.library import ConvArgs, GradArgs, best_isa, check

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}


class Integers(NamedTuple):
    """Scales of a convolution that reads or writes uint8.

    Attributes:
        weight: (cout,) float32 that the integer sums are multiplied by; None where x is no uint8.
        residual: factor and shift: a residual q means q * factor + shift.
        out: factor and shift: a result v is stored as v * factor + shift, rounded, in 0..255.
    """

    weight: Tensor | None = None
    residual: tuple[float, float] = (1.0, 0.0)
    out: tuple[float, float] = (1.0, 0.0)


@functools.cache
def threaded_library() -> ctypes.CDLL:
    """The library, its threads taken from torch's OpenMP pool."""
    library = native.library()
    library.pcseg_use_openmp(_torch_openmp())
    return library


def _torch_openmp() -> int | None:
    """Address of GOMP_parallel in the OpenMP library that torch runs on; None if not found.

    With two pools, the threads of one would compete with those of the other.
    """
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
        folder = str(Path(torch.__file__).parent.parent)
        mapped = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "omp" in line}
        for path in sorted(mapped, key=lambda name: not name.startswith(folder)):
            if Path(path).name.startswith(("libgomp", "libiomp", "libomp")):
                function = ctypes.CDLL(path).GOMP_parallel
                return ctypes.cast(function, c_void_p).value
    except (OSError, AttributeError):
        pass
    return None


def _row_step(tensor: Tensor) -> int:
    """Elements between rows; the stride that torch reports for a single row is arbitrary."""
    return max(tensor.stride(0), tensor.shape[1]) if len(tensor) > 1 else tensor.shape[1]


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def coarsen(keys: Tensor) -> Tensor:
    """Sorted keys of the occupied cells of the next coarser grid; see `maps.coarsen`."""
    require_keys(keys)
    keys = keys.contiguous()
    out = torch.empty_like(keys)
    count = c_int64()
    threads = torch.get_num_threads()
    check(
        threaded_library().pcseg_coarsen(
            _pointer(keys), len(keys), _pointer(out), byref(count), threads
        )
    )
    return out[: count.value].clone()


def build_table(keys_in: Tensor, keys_out: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Neighbor table (K, n_out) int32; see `maps.build_table`."""
    require_keys(keys_in)
    require_keys(keys_out)
    require_int(kernel_size, "the kernel size", 1, 5)
    require_int(stride, "the stride", 1, 2)
    keys_in, keys_out = keys_in.contiguous(), keys_out.contiguous()
    if keys_in.data_ptr() == keys_out.data_ptr() and len(keys_in) != len(keys_out):
        keys_out = keys_out.clone()  # the library takes equal addresses for equal keys
    table = torch.empty((kernel_size**3, len(keys_out)), dtype=torch.int32)
    status = threaded_library().pcseg_build_table(
        _pointer(keys_in),
        len(keys_in),
        _pointer(keys_out),
        len(keys_out),
        kernel_size,
        stride,
        _pointer(table),
        torch.get_num_threads(),
    )
    check(status)
    return table


def invert_table(table: Tensor, n_in: int) -> Tensor:
    """The table (K, n_in) of the transposed convolution; see `maps.KernelMap.inverse`."""
    require_table(table)
    require_int(n_in, "the number of input rows", 0, 2**31 - 1)
    inverse = torch.empty((len(table), n_in), dtype=torch.int32)
    status = threaded_library().pcseg_invert_table(
        _pointer(table), *table.shape, n_in, _pointer(inverse), torch.get_num_threads()
    )
    check(status)
    return inverse


def pack(
    weight: Tensor,
    dtype: torch.dtype = torch.float32,
    transpose: bool = False,
    flip: bool = False,
    scale: Tensor | None = None,
    isa: int | None = None,
) -> Tensor:
    """Reorder weights into what `conv` reads.

    Args:
        weight: (K, Cin, Cout) float32.
        dtype: of the features, float32, bfloat16, or uint8: the weights are then rounded to
            integers in -127..127.
        transpose: the weights are (K, Cout, Cin).
        flip: take the offsets in reverse order.
        scale: (Cout,) float32 factor on the output channels.
    """
    isa = best_isa() if isa is None else isa
    require(
        weight.ndim == 3 and weight.dtype == torch.float32 and weight.device.type == "cpu",
        f"weights must be (K, Cin, Cout) float32 on the CPU, got {weight.dtype} "
        f"{tuple(weight.shape)}",
    )
    require(dtype in DTYPES, f"no layout for {dtype}")
    weight = weight.contiguous()
    offsets, cin, cout = weight.shape
    if transpose:
        cin, cout = cout, cin
    require_vector(scale, "the scale", cout)
    code = DTYPES[dtype]
    size = threaded_library().pcseg_packed_bytes(isa, offsets, cin, cout, code)
    packed = torch.empty(max(size, 1), dtype=torch.uint8)
    threads = torch.get_num_threads()
    status = threaded_library().pcseg_pack(
        isa,
        _pointer(weight),
        _pointer(scale),
        offsets,
        cin,
        cout,
        code,
        transpose,
        flip,
        _pointer(packed),
        threads,
    )
    check(status)
    return packed


def list_pairs(
    table: Tensor, n_in: int, dtype: torch.dtype = torch.float32, isa: int | None = None
) -> Tensor:
    """The pairs of a table in the order in which convolutions of one dtype add them.

    Args:
        table: (K, n_out) int32 input rows. Rows outside [0, n_in) count as absent.
        n_in: number of input rows.
        dtype: of the features; float32 for `grad_weight`.

    Returns:
        int32 words for `conv` and `grad_weight`, in the layout of the library.
    """
    isa = best_isa() if isa is None else isa
    require_table(table)
    require_int(n_in, "the number of input rows", 0, 2**31 - 1)
    require(dtype in DTYPES, f"no layout for {dtype}")
    shape = (DTYPES[dtype], len(table), n_in, table.shape[1])
    words = torch.empty(threaded_library().pcseg_pair_words(isa, *shape), dtype=torch.int32)
    code, *sizes = shape
    threads = torch.get_num_threads()
    status = threaded_library().pcseg_list_pairs(
        isa, code, _pointer(table), *sizes, _pointer(words), threads
    )
    check(status)
    return words


def conv(
    x: Tensor,
    table: Tensor | None,
    packed: Tensor,
    out: Tensor,
    cin: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    isa: int | None = None,
    pairs: Tensor | None = None,
    integers: Integers | None = None,
) -> Tensor:
    """out = relu(sum over offsets of x[table[k]] @ weight[k] + bias + residual).

    Args:
        x: (n_in, >= cin) float32, bfloat16 or uint8; the last dimension is contiguous. bfloat16
            rows are an even number of elements apart and zero beyond cin, uint8 rows a multiple of
            four elements apart.
        table: (K, n_out) int32; None for K = 1 with output row i from input row i. Rows
            outside [0, n_in) count as absent.
        packed: weights from `pack`, of the dtype of x.
        out: (n_out, cout), overwritten; last dimension contiguous.
        cin: input channels.
        bias: (cout,) float32.
        residual: (n_out, cout) of the dtype of x; may be `out` itself.
        pairs: those of the table, from `list_pairs`; None to list them here.
        integers: scales, where x or the output is uint8.
    """
    isa = best_isa() if isa is None else isa
    offsets = 1 if table is None else len(table)
    _require_conv(x, table, packed, out, cin, bias, residual, isa)
    if len(out) == 0:
        return out
    pairs = _pairs(table, pairs, len(x), x.dtype, isa)
    scales = Integers() if integers is None else integers
    require_vector(scales.weight, "the scale of the sums", out.shape[1])
    args = ConvArgs(
        _pointer(x),
        _pointer(pairs),
        _pointer(packed),
        _pointer(bias),
        _pointer(residual),
        _pointer(out),
        len(x),
        len(out),
        _row_step(x),
        0 if residual is None else _row_step(residual),
        _row_step(out),
        offsets,
        cin,
        out.shape[1],
        DTYPES[x.dtype],
        DTYPES[out.dtype],
        relu,
        *scales.residual,
        *scales.out,
        _pointer(scales.weight),
    )
    check(threaded_library().pcseg_conv(isa, byref(args), torch.get_num_threads()))
    return out


def _pairs(
    table: Tensor | None, pairs: Tensor | None, n_in: int, dtype: torch.dtype, isa: int
) -> Tensor | None:
    """The pairs of a table, listed here unless they are given; the library checks their shape."""
    if table is None:
        return None
    if pairs is None:
        return list_pairs(table, n_in, dtype, isa)
    words = threaded_library().pcseg_pair_words(
        isa, DTYPES[dtype], len(table), n_in, table.shape[1]
    )
    require(
        pairs.dtype == torch.int32 and pairs.is_contiguous() and pairs.numel() == words,
        f"pairs of {pairs.numel()} words do not belong to a table of {tuple(table.shape)}",
    )
    return pairs


def _require_conv(
    x: Tensor,
    table: Tensor | None,
    packed: Tensor,
    out: Tensor,
    cin: int,
    bias: Tensor | None,
    residual: Tensor | None,
    isa: int,
) -> None:
    require_matrix(x, "x", tuple(DTYPES))
    require_matrix(out, "the output", tuple(DTYPES))
    require(
        isinstance(cin, int) and 0 < cin <= x.shape[1],
        f"{cin} channels of rows that hold {x.shape[1]}",
    )
    offsets = 1
    if table is not None:
        require_table(table)
        offsets = len(table)
        require(table.shape[1] == len(out), f"{len(out)} output rows, table of {table.shape[1]}")
    if residual is not None:
        require_matrix(residual, "the residual", (x.dtype,))
        require(residual.shape == out.shape, "residual and output differ in shape")
    require_vector(bias, "the bias", out.shape[1])
    size = threaded_library().pcseg_packed_bytes(isa, offsets, cin, out.shape[1], DTYPES[x.dtype])
    fits = (
        packed.device.type == "cpu"
        and packed.dtype == torch.uint8
        and packed.is_contiguous()
        and packed.numel() == size
    )
    require(
        size > 0 and fits,
        f"{packed.numel()} bytes of packed weights do not belong to {offsets} offsets, {cin} "
        f"input and {out.shape[1]} output channels of {x.dtype}",
    )


def grad_weight(
    x: Tensor,
    dy: Tensor,
    table: Tensor | None,
    offsets: int,
    isa: int | None = None,
    pairs: Tensor | None = None,
) -> Tensor:
    """Gradient (K, Cin, Cout) of the weights, from x (n_in, Cin) and dy (n_out, Cout) float32.

    `table` and `pairs` are those of `conv`.
    """
    isa = best_isa() if isa is None else isa
    for tensor, name in ((x, "x"), (dy, "the gradient")):
        require_matrix(tensor, name, (torch.float32,))
        require(tensor.is_contiguous(), f"{name} must be contiguous")
    if table is not None:
        require_table(table)
        require(table.shape == (offsets, len(dy)), "table and gradient differ in rows")
    require_int(offsets, "the number of offsets", 1, 125)
    if len(dy) == 0:
        return torch.zeros((offsets, x.shape[1], dy.shape[1]))
    pairs = _pairs(table, pairs, len(x), x.dtype, isa)
    grad = torch.empty((offsets, x.shape[1], dy.shape[1]))
    args = GradArgs(
        _pointer(x),
        _pointer(dy),
        _pointer(pairs),
        _pointer(grad),
        len(x),
        len(dy),
        offsets,
        x.shape[1],
        dy.shape[1],
    )
    check(threaded_library().pcseg_grad_weight(isa, byref(args), torch.get_num_threads()))
    return grad
