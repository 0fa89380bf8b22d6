# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false
"""Triton kernels of the sparse convolution; importing this file needs Triton.

Both kernels read a neighbor table (K, n) int32: the input row at each kernel offset of each output
row, -1 where there is none. The columns of the table are permuted by `order` (n,) int32, so that
output rows with the same neighbors share a tile: column i belongs to output row order[i]. A tile
skips the offsets at which none of its rows has a neighbor.

Weights are (K, cin, cout), contiguous. Features are rows with a given step between them. Sums are
float32. Row addresses have 64 bits. The kernels are not specialized to the number of rows, so a new
sweep does not compile anything.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n_out", "offsets"])
def convolve(
    x,  # (n_in, cin), x_step elements between rows
    table,  # (offsets, n_out) int32
    order,  # (n_out,) int32
    weight,  # (offsets, cin, cout)
    bias,  # (cout,), read if HAS_BIAS
    residual,  # (n_out, cout), residual_step between rows, read if HAS_RESIDUAL
    out,  # (n_out, cout), out_step between rows
    n_out,
    offsets,
    cin,
    cout,
    x_step,
    residual_step,
    out_step,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    LIMIT: tl.constexpr,  # largest magnitude of an output; 0 for none
    PRECISION: tl.constexpr,  # of float32 products: ieee, tf32x3 or tf32
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """out[order[i]] = sum over k of x[table[k, i]] @ weight[k], + bias + residual, rectified.

    A program computes a tile of ROWS x COLUMNS. `out` may share memory with `residual`, not
    with `x`.
    """
    tiles = tl.cdiv(cout, COLUMNS)
    at = (tl.program_id(0) // tiles) * ROWS + tl.arange(0, ROWS)
    columns = (tl.program_id(0) % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for _ in range(offsets):
        source = tl.load(table + at, mask=at < n_out, other=-1)
        if tl.max(source, axis=0) >= 0:
            rows_in = x + source.to(tl.int64) * x_step
            for first in range(0, cin, CHANNELS):
                channels = first + tl.arange(0, CHANNELS)
                a = tl.load(
                    rows_in[:, None] + channels[None, :],
                    mask=(source >= 0)[:, None] & (channels < cin)[None, :],
                    other=0.0,
                )
                b = tl.load(
                    weight + channels[:, None] * cout + columns[None, :],
                    mask=(channels < cin)[:, None] & (columns < cout)[None, :],
                    other=0.0,
                )
                sums = tl.dot(a, b, sums, input_precision=PRECISION)
        table += n_out
        weight += cin * cout
    target = tl.load(order + at, mask=at < n_out, other=0).to(tl.int64)
    inside = (at < n_out)[:, None] & (columns < cout)[None, :]
    if HAS_BIAS:
        sums += tl.load(bias + columns, mask=columns < cout, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        kept = residual + target[:, None] * residual_step + columns[None, :]
        sums += tl.load(kept, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        sums = tl.maximum(sums, 0.0)
    if LIMIT > 0:
        sums = tl.minimum(tl.maximum(sums, -LIMIT), LIMIT)
    place = out + target[:, None] * out_step + columns[None, :]
    tl.store(place, sums.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n_out", "share"])
def weight_gradient(
    x,  # (n_in, cin), x_step elements between rows
    table,  # (offsets, n_out) int32
    order,  # (n_out,) int32
    grad,  # (n_out, cout), grad_step between rows
    out,  # (splits, offsets, cin, cout) float32
    n_out,
    share,
    cin,
    cout,
    x_step,
    grad_step,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """out[s, k] = sum over the pairs (i, o) of offset k in share s of x[i].T @ grad[o].

    Grid: (tiles of a matrix, offsets, splits). A split sums `share` output rows, a multiple of
    ROWS; the caller adds the splits. No atomics: the result is the same in every run.
    """
    tiles = tl.cdiv(cout, OUTPUTS)
    inputs = (tl.program_id(0) // tiles) * INPUTS + tl.arange(0, INPUTS)
    outputs = (tl.program_id(0) % tiles) * OUTPUTS + tl.arange(0, OUTPUTS)
    offset = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    sums = tl.zeros((INPUTS, OUTPUTS), dtype=tl.float32)
    for first in range(split * share, tl.minimum((split + 1) * share, n_out), ROWS):
        at = first + tl.arange(0, ROWS)
        source = tl.load(table + offset * n_out + at, mask=at < n_out, other=-1)
        if tl.max(source, axis=0) >= 0:
            target = tl.load(order + at, mask=at < n_out, other=0).to(tl.int64)
            a = tl.load(
                x + (source.to(tl.int64) * x_step)[:, None] + inputs[None, :],
                mask=(source >= 0)[:, None] & (inputs < cin)[None, :],
                other=0.0,
            )
            b = tl.load(
                grad + (target * grad_step)[:, None] + outputs[None, :],
                mask=(source >= 0)[:, None] & (outputs < cout)[None, :],
                other=0.0,
            )
            sums = tl.dot(tl.trans(a), b, sums, input_precision=PRECISION)
    matrix = out + (split.to(tl.int64) * tl.num_programs(1) + offset) * cin * cout
    inside = (inputs < cin)[:, None] & (outputs < cout)[None, :]
    tl.store(matrix + inputs[:, None] * cout + outputs[None, :], sums, mask=inside)
