# SPDX-License-Identifier: Apache-2.0
"""Cases of the engine benchmark: networks, layers, kernel maps and training steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.measure import threads
from pcseg_core.models.inference import CompiledMinkUNet, compile_inference
from pcseg_core.models.minkunet import MinkUNet
from pcseg_core.models.quantized import MeasuredMinkUNet, QuantizedMinkUNet
from pcseg_core.native import tensors as native
from pcseg_core.sparse import SparseConv3d, SparseTensor, mean_features, voxelize
from pcseg_core.sparse.maps import KernelMap, KernelMapCache

CLASSES = 19
LEVELS = 5


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxels of a batch of sweeps: coords (M, 4) int32 and mean x, y, z, intensity (M, 4)."""

    coords: Tensor
    feats: Tensor

    def tensor(self, backend: str = "auto") -> SparseTensor:
        """A new tensor without kernel maps."""
        return SparseTensor(self.coords, self.feats, backend=backend)


def grid_of(points: Tensor, voxel: float, batch: Tensor | None = None) -> Grid:
    """Voxelize points (N, 4) with an edge [m]."""
    voxels = voxelize(points[:, :3], voxel, batch)
    scale = torch.tensor([30.0, 30.0, 2.0, 0.3])
    return Grid(voxels.coords, mean_features(points / scale, voxels))


def network(depth: int, width: float, grid: Grid) -> MinkUNet:
    """A network with random weights and batch norms fitted to the grid."""
    torch.manual_seed(0)
    net = MinkUNet(grid.feats.shape[1], CLASSES, depth, width).train()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net(grid.tensor())
    return net.eval()


def gflop(net: MinkUNet, grid: Grid) -> float:
    """1e9 multiplications and additions of one forward pass: 2 per pair and weight."""
    total = 0.0

    def count(module: nn.Module, inputs: tuple[SparseTensor, ...], _: object) -> None:
        assert isinstance(module, SparseConv3d)
        kernel_map, _ = module.kernel_map(inputs[0])
        nonlocal total
        pairs = int((kernel_map.table >= 0).sum())
        total += 2e-9 * pairs * module.in_channels * module.out_channels

    convs = [m for m in net.modules() if isinstance(m, SparseConv3d)]
    hooks = [m.register_forward_hook(count) for m in convs]
    with torch.no_grad():
        net(grid.tensor())
    for hook in hooks:
        hook.remove()
    return total + 2e-9 * len(grid.feats) * net.feature_channels * net.out_channels


Forward = Callable[[Grid], Tensor]


def native_engine(net: MinkUNet, precision: str, grid: Grid) -> Forward:
    """The compiled network; in integers it is calibrated on the grid."""
    if precision == "int8":
        measured = MeasuredMinkUNet(net)
        measured(grid.tensor())
        compiled: CompiledMinkUNet = QuantizedMinkUNet(net, measured.tops)
    else:
        compiled = compile_inference(net, "bf16" if precision == "bf16" else "fp32")
    return lambda grid: compiled(grid.tensor()).feats


def torch_engine(net: MinkUNet) -> Forward:
    """The module on the plain torch backend."""

    @torch.no_grad()
    def run(grid: Grid) -> Tensor:
        return net(grid.tensor("torch")).feats

    return run


def spconv_engine(net: MinkUNet, count: int) -> Forward:
    """The network in spconv with a number of threads."""
    from benchmarks.spconv_peer import SpconvUNet

    peer = SpconvUNet(net)

    def run(grid: Grid) -> Tensor:
        with threads(count):
            return peer(grid.coords, grid.feats)

    return run


def training_step(net: MinkUNet, grid: Grid, backend: str) -> Callable[[], object]:
    """Forward and backward of a cross-entropy, kernel maps included."""
    labels = torch.arange(len(grid.coords)) % net.out_channels

    def run() -> None:
        net.zero_grad()
        logits = net(grid.tensor(backend)).feats
        nn.functional.cross_entropy(logits, labels).backward()

    return run


def build_maps(grid: Grid, backend: str) -> Callable[[], object]:
    """All kernel maps of a MinkUNet: five levels, the four steps between them and back."""

    def run() -> None:
        cache = grid.tensor(backend).cache
        for level in range(LEVELS):
            assert cache.kernel_map(1 << level, 3, 1).table is not None
            if level + 1 < LEVELS:
                assert cache.kernel_map(1 << level, 2, 2).inverse is not None

    return run


def layer_engines(
    x: SparseTensor, conv: SparseConv3d, with_spconv: bool
) -> dict[str, Callable[[], object]]:
    """One convolution on known kernel maps, per engine."""
    from pcseg_core.models.layers import NativeLayer

    kernel_map = x.cache.kernel_map(x.stride, conv.kernel_size, 1)
    engines: dict[str, Callable[[], object]] = {}
    for name, dtype in (("native fp32", torch.float32), ("native bf16", torch.bfloat16)):
        layer = NativeLayer.of(conv.weight, torch.zeros(conv.out_channels), dtype)
        feats, out = x.feats.to(dtype), torch.empty(len(x), conv.out_channels, dtype=dtype)
        engines[name] = partial(layer, feats, kernel_map, out)
    engines["native int8"] = _integer_layer(x, conv, kernel_map)
    plain = KernelMapCache(x.cache.keys(1), backend="torch")
    engines["torch fp32"] = partial(_torch_layer, conv, SparseTensor.of(x.feats, x.stride, plain))
    if with_spconv:
        engines["spconv fp32"] = _spconv_layer(conv, x)
    return engines


def _integer_layer(
    x: SparseTensor, conv: SparseConv3d, kernel_map: KernelMap
) -> Callable[[], object]:
    """The time does not depend on the scales."""
    from pcseg_core.models.layers import NativeLayer

    channels = conv.out_channels
    packed = native.pack(conv.weight.detach(), torch.uint8)
    scales = native.Integers(torch.ones(channels))
    layer = NativeLayer(packed, torch.zeros(channels), conv.in_channels, channels, scales)
    feats = x.feats.abs().to(torch.uint8)
    return partial(layer, feats, kernel_map, torch.empty_like(feats))


@torch.no_grad()
def _torch_layer(conv: SparseConv3d, x: SparseTensor) -> Tensor:
    return conv(x).feats


def _spconv_layer(conv: SparseConv3d, x: SparseTensor) -> Callable[[], object]:
    from benchmarks import spconv_peer

    layer = spconv_peer.layer(conv, "layer")
    sparse = spconv_peer.tensor(x.coords, x.feats)

    @torch.no_grad()
    def run() -> object:
        with threads(1):  # more threads give wrong results
            return layer(sparse)

    return run


def repeated(points: Tensor, voxel: float, copies: int) -> Grid:
    """A batch of copies of the sweep, evenly rotated about the vertical."""
    turned = []
    for index in range(copies):
        angle = torch.tensor(2 * torch.pi * index / copies)
        cos, sin = torch.cos(angle), torch.sin(angle)
        x, y = points[:, 0], points[:, 1]
        turned.append(torch.stack([cos * x - sin * y, sin * x + cos * y, *points[:, 2:].T], 1))
    batch = torch.arange(copies).repeat_interleave(len(points))
    return grid_of(torch.cat(turned), voxel, batch)
