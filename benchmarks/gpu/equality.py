# SPDX-License-Identifier: Apache-2.0
"""Every backend against float64 on the CPU: values, gradients, fused layers, kernel maps.

Errors are |given - expected| / |expected| in the Frobenius norm. Memory that a result may be put
into is filled with NaN before, so that a value that was not written shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.engine_cases import Grid
from benchmarks.gpu.machine import Machine, Row
from benchmarks.measure import matmul_precision
from pcseg_core.models.layers import TritonLayer
from pcseg_core.sparse import SparseTensor, backends, voxelize
from pcseg_core.sparse.backends import triton_backend
from pcseg_core.sparse.maps import KernelMap, KernelMapCache, MapBuilder

# Largest error; float32 sums of up to 27 x 256 products, then rounding of 2^-11 and 2^-9.
TOLERANCE = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 2e-3, "bf16": 1.5e-2}
_DTYPES = {"fp32": torch.float32, "tf32": torch.float32}
_DTYPES |= {"fp16": torch.float16, "bf16": torch.bfloat16}
_CHANNELS = ((4, 16), (33, 17), (48, 96), (96, 96), (128, 256))
_KERNELS = ((3, 1, False), (2, 2, False), (2, 2, True), (3, 2, False), (5, 1, False))
_SIZES = (1, 2, 37, 1000, 20000)
_FUSED = (16, 24, 96)  # channels in, out and row step of the fused layer


@dataclass(frozen=True)
class Case:
    """One convolution."""

    voxels: int
    cin: int
    cout: int
    kernel_size: int
    stride: int
    transposed: bool

    @property
    def name(self) -> str:
        way = "transposed" if self.transposed else f"stride {self.stride}"
        return f"{self.cin}->{self.cout} kernel {self.kernel_size} {way}, {self.voxels} voxels"


def cases(machine: Machine) -> Iterator[Case]:
    """All sizes of one layer, all kernels of another, all channels of a third."""
    sizes = _SIZES[:3] if machine.quick else _SIZES
    large = sizes[-1]
    for voxels in sizes:
        yield Case(voxels, 16, 32, 3, 1, False)
    for kernel_size, stride, transposed in _KERNELS[: 3 if machine.quick else None]:
        yield Case(large, 16, 32, kernel_size, stride, transposed)
    for cin, cout in _CHANNELS[: 2 if machine.quick else None]:
        yield Case(large, cin, cout, 3, 1, False)


def engines(machine: Machine) -> list[tuple[str, str]]:
    """Backend and precision of what is compared."""
    names = [("torch", "fp32")]
    if machine.usable("triton"):
        names += [("triton", "fp32"), ("triton", "fp16")]
        names += [] if triton_backend.interpreted() else [("triton", "tf32"), ("triton", "bf16")]
    if machine.usable("torchsparse"):
        names += [("torchsparse", "fp32"), ("torchsparse", "fp16")]
    return names


def convolutions(machine: Machine, made: Grid) -> Iterator[Row]:
    """One row per case and engine."""
    for case in cases(machine):
        coords = made.coords[: case.voxels].cpu()
        expected = _run(case, coords, torch.device("cpu"), "torch", torch.float64)
        for backend, precision in engines(machine):
            row: Row = {"kind": "equality", "case": case.name}
            row |= {"engine": backend, "precision": precision}
            try:
                _poison(machine)
                with matmul_precision("high" if precision == "tf32" else "highest"):
                    given = _run(case, coords, machine.device, backend, _DTYPES[precision])
                names = ("out", "feats", "weight", "bias")
                row["errors"] = {
                    name: error_of(a, b) for name, a, b in zip(names, given, expected, strict=True)
                }
                row["worst"] = max(row["errors"].values())
                row["ok"] = row["worst"] <= TOLERANCE[precision]
            except Exception as error:  # the other engines go on
                row |= {"ok": False, "failed": f"{type(error).__name__}: {error}"}
            yield row


def error_of(given: Tensor, expected: Tensor) -> float:
    """Relative error; infinite where a value is not finite."""
    given, expected = given.double().cpu(), expected.double().cpu()
    if given.shape != expected.shape or not bool(torch.isfinite(given).all()):
        return float("inf")
    return float((given - expected).norm() / expected.norm().clamp(min=1e-30))


def _run(
    case: Case, coords: Tensor, device: torch.device, backend: str, dtype: torch.dtype
) -> list[Tensor]:
    """Output and gradients of features, weight and bias."""
    draw = torch.Generator().manual_seed(0)
    kernel_map = _map(case, coords.to(device), backend)
    shapes = ((kernel_map.n_in, case.cin), (case.kernel_size**3, case.cin, case.cout), (case.cout,))
    leaves = [
        torch.randn(shape, generator=draw, dtype=torch.float64).to(device, dtype).requires_grad_()
        for shape in shapes
    ]
    run = backends.select(backend, leaves[0])
    out = run.conv(*leaves, kernel_map)
    cotangent = torch.randn(out.shape, generator=draw, dtype=torch.float64).to(device, dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]


def _map(case: Case, coords: Tensor, backend: str) -> KernelMap:
    x = SparseTensor(coords, torch.ones(len(coords), 1, device=coords.device), backend=backend)
    kernel_map = x.cache.kernel_map(1, case.kernel_size, case.stride)
    return kernel_map.inverse if case.transposed else kernel_map


def _poison(machine: Machine) -> None:
    """Leave NaN in the memory that the allocator hands out next, large and small pieces."""
    if machine.device.type != "cuda":
        return
    large = [torch.full((1 << 25,), float("nan"), device=machine.device) for _ in range(2)]
    small = [torch.full((1 << 17,), float("nan"), device=machine.device) for _ in range(32)]
    del large, small


def fused_layers(machine: Machine, made: Grid) -> Iterator[Row]:
    """Bias, residual and rectifier in one launch, between matrices that are slices of others."""
    precisions = [precision for name, precision in engines(machine) if name == "triton"]
    for precision in [p for p in precisions if p != "tf32"]:
        row: Row = {"kind": "equality", "case": "fused layer", "engine": "triton"}
        row["precision"] = precision
        try:
            _poison(machine)
            row["worst"] = _fused_error(machine, made, _DTYPES[precision])
            row["ok"] = row["worst"] <= TOLERANCE[precision]
        except Exception as error:  # the other parts go on
            row |= {"ok": False, "failed": f"{type(error).__name__}: {error}"}
        yield row


def _fused_error(machine: Machine, made: Grid, dtype: torch.dtype) -> float:
    coords = made.coords[: 100 if machine.quick else 5000]
    cin, cout, step = _FUSED
    kernel_map = _map(Case(len(coords), cin, cout, 3, 1, False), coords, "auto")
    draw = torch.Generator().manual_seed(1)
    wide = torch.randn(len(coords), step, generator=draw).to(coords.device, dtype)
    weight = torch.randn(27, cin, cout, generator=draw).to(coords.device)
    bias = torch.randn(cout, generator=draw).to(coords.device)
    layer = TritonLayer.of(weight, bias, dtype)
    x, out = wide[:, :cin], wide[:, cin : cin + cout]
    parts = [t.double().cpu() for t in (x, layer.weight, layer.bias)]
    table = KernelMap(kernel_map.table.cpu(), len(coords), 3, 1, kernel_map.invert)
    plain = backends.torch_backend.conv(*parts, table) + out.double().cpu()
    layer(x, kernel_map, out, residual=out)  # the result lies on the residual
    return error_of(out, plain.clamp(min=0))


def kernel_maps(machine: Machine, points: Tensor, voxel_m: float) -> Iterator[Row]:
    """Voxels, coarser keys and tables of the GPU, bit for bit those of the CPU."""
    ours = voxelize(points.to(machine.device)[:, :3], voxel_m)
    reference = voxelize(points[:, :3], voxel_m)
    same = torch.equal(ours.keys.cpu(), reference.keys)
    same = same and torch.equal(ours.inverse.cpu(), reference.inverse)
    yield {"kind": "equality", "case": f"voxels at {voxel_m} m", "engine": "maps", "ok": same}
    builder = backends.map_builder("auto", machine.device)
    here, there = KernelMapCache(ours.keys, builder), KernelMapCache(reference.keys, MapBuilder())
    levels = range(2 if machine.quick else 5)
    for name in [(1 << i, 3, 1) for i in levels] + [(1 << i, 2, 2) for i in levels] + [(1, 3, 2)]:
        a, b = here.kernel_map(*name), there.kernel_map(*name)
        same = torch.equal(a.table.cpu(), b.table)
        same = same and torch.equal(a.inverse.table.cpu(), b.inverse.table)
        case = f"maps of stride {name[0]}, kernel {name[1]}, step {name[2]}"
        yield {"kind": "equality", "case": case, "engine": "maps", "ok": same}
