# SPDX-License-Identifier: Apache-2.0
"""Kernel maps on a GPU: few launches, no synchronization with the CPU.

The tables equal those of `maps`; the operations run over all offsets at once.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from pcseg_core.sparse import keys as packing
from pcseg_core.sparse.maps import MapBuilder, first_keys, kernel_offsets

_MAX_SEARCHED = 1 << 25  # keys searched at once: 256 MiB


def build_table(keys_in: Tensor, keys_out: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Neighbor table (K, n_out) int32 by binary search; see `maps.build_table`."""
    base = keys_out if stride == 1 else first_keys(keys_out)
    shifts = _shifts(kernel_size, keys_in.device)
    table = torch.full((len(shifts), len(base)), -1, dtype=torch.int32, device=keys_in.device)
    if not len(keys_in) or not len(base):
        return table
    step = max(1, _MAX_SEARCHED // len(base))
    for start in range(0, len(shifts), step):
        wanted = base + shifts[start : start + step, None]
        row = torch.searchsorted(keys_in, wanted).clamp_(max=len(keys_in) - 1)
        table[start : start + step] = torch.where(keys_in[row] == wanted, row, -1)
    return table


@cache
def _shifts(kernel_size: int, device: torch.device) -> Tensor:
    """(K,) int64, what each offset adds to a key."""
    shifts = [packing.key_offset(*offset) for offset in kernel_offsets(kernel_size)]
    return torch.tensor(shifts, device=device)


def invert_table(table: Tensor, n_in: int) -> Tensor:
    """Table (K, n_in) of the transposed convolution; see `maps.invert_table`."""
    offsets, n_out = table.shape
    starts = torch.arange(offsets, device=table.device)[:, None] * n_in
    # Absent neighbors go to one cell behind the table.
    cell = torch.where(table >= 0, starts + table, offsets * n_in)
    rows = torch.arange(n_out, dtype=torch.int32, device=table.device).expand(offsets, n_out)
    inverse = table.new_full((offsets * n_in + 1,), -1)
    inverse.scatter_(0, cell.view(-1), rows.reshape(-1))
    return inverse[:-1].view(offsets, n_in)


MAP_BUILDER = MapBuilder(build_table=build_table, invert_table=invert_table)
