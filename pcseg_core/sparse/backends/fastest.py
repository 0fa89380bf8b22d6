# SPDX-License-Identifier: Apache-2.0
"""Order of the CUDA backends by their speed on this GPU."""

from __future__ import annotations

import logging
from functools import cache

import torch

from pcseg_core.sparse import keys as packing
from pcseg_core.sparse.backends import device_maps, torchsparse_backend, triton_backend
from pcseg_core.sparse.maps import KernelMapCache

_BACKENDS = {"torchsparse": torchsparse_backend, "triton": triton_backend}
_TENSOR_CORES = (8, 0)  # compute capability from which Triton uses them
_EDGE = 128  # of the square of voxels in the test layer
_CHANNELS = 64

log = logging.getLogger(__name__)


@cache
def order(device: torch.device) -> tuple[str, ...]:
    """Backends that "auto" may take on a CUDA device, the fastest first.

    Several available backends are timed on one layer, once per process; one that fails is left out.
    """
    names = [name for name, backend in _BACKENDS.items() if not isinstance(backend.load(), str)]
    if torch.cuda.get_device_capability(device) < _TENSOR_CORES:
        names = [name for name in names if name != "triton"]
    if len(names) < 2:
        return tuple(names)
    times = {name: layer_ms(name, device) for name in names}
    log.info("sparse backends on %s, ms per test layer: %s", device, times)
    return tuple(sorted((n for n in names if times[n] < float("inf")), key=lambda n: times[n]))


def layer_ms(name: str, device: torch.device) -> float:
    """Least time of a small layer [ms]; infinite if the backend fails."""
    side = torch.arange(_EDGE, device=device)
    plane = torch.cartesian_prod(side[:1], side, side, side[:1])
    cache_of_maps = KernelMapCache(packing.pack(plane), device_maps.MAP_BUILDER)
    kernel_map = cache_of_maps.kernel_map(1, 3, 1)
    feats = torch.ones(len(plane), _CHANNELS, device=device)
    weight = torch.ones(27, _CHANNELS, _CHANNELS, device=device)
    times = []
    try:
        for _ in range(8):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            _BACKENDS[name].conv(feats, weight, None, kernel_map)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    except Exception as error:  # peers raise errors of any type
        log.warning("sparse backend %s is left out: %s", name, error)
        return float("inf")
    return float(min(times))
