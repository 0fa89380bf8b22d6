# SPDX-License-Identifier: Apache-2.0
"""The same MinkUNet, with the same weights, in spconv (`pip install spconv`, the CPU wheel)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from pcseg_core.models.minkunet import BasicBlock, ConvBlock, MinkUNet, Up
from pcseg_core.sparse import SparseConv3d


def _spconv() -> Any:
    import spconv.pytorch

    return spconv.pytorch


def layer(conv: SparseConv3d, key: str) -> nn.Module:
    """The spconv layer of a convolution. Layers with the same `key` share a kernel map."""
    sp = _spconv()
    size, cin, cout = conv.kernel_size, conv.in_channels, conv.out_channels
    if conv.transposed:
        made = sp.SparseInverseConv3d(cin, cout, size, indice_key=key, bias=False)
    elif conv.stride == 2:
        made = sp.SparseConv3d(cin, cout, size, stride=2, indice_key=key, bias=False)
    else:
        made = sp.SubMConv3d(cin, cout, size, padding=size // 2, indice_key=key, bias=False)
    weight = conv.weight.detach().permute(2, 0, 1).reshape(made.weight.shape)
    made.weight.data.copy_(weight)
    return made


class _Pair(nn.Module):
    """Convolution, batch norm and, by default, a rectifier."""

    def __init__(self, conv: SparseConv3d, norm: nn.Module, key: str, relu: bool = True) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = layer(conv, key), _plain(norm), relu

    def forward(self, x: Any) -> Any:
        x = self.conv(x)
        feats = self.norm(x.features)
        return x.replace_feature(feats.relu_() if self.relu else feats)


def _plain(norm: nn.Module) -> nn.BatchNorm1d:
    ours = cast(nn.BatchNorm1d, norm)
    plain = nn.BatchNorm1d(ours.num_features, eps=ours.eps)
    plain.load_state_dict(ours.state_dict())
    return plain


class _Block(nn.Module):
    def __init__(self, block: BasicBlock, level: int) -> None:
        super().__init__()
        self.first = _Pair(block.conv1, block.norm1, f"subm{level}")
        self.second = _Pair(block.conv2, block.norm2, f"subm{level}", relu=False)
        self.shortcut: nn.Module | None = None
        if block.shortcut is not None:
            conv = cast(SparseConv3d, block.shortcut[0])
            self.shortcut = nn.Linear(conv.in_channels, conv.out_channels, bias=False)
            self.shortcut.weight.data.copy_(conv.weight[0].t())
            self.shortcut_norm = _plain(block.shortcut[1])

    def forward(self, x: Any) -> Any:
        kept = x.features
        if self.shortcut is not None:
            kept = self.shortcut_norm(self.shortcut(kept))
        out = self.second(self.first(x))
        return out.replace_feature((out.features + kept).relu_())


class SpconvUNet(nn.Module):
    """A copy of a MinkUNet in spconv, in evaluation mode."""

    def __init__(self, model: MinkUNet) -> None:
        super().__init__()
        self.stem = _pair(model.stem, "subm0")
        self.down = nn.ModuleList()
        for level, stage in enumerate(model.down, start=1):
            pair, *blocks = cast(nn.Sequential, stage)
            layers = [_Block(cast(BasicBlock, block), level) for block in blocks]
            self.down.append(nn.Sequential(_pair(cast(ConvBlock, pair), f"down{level}"), *layers))
        self.up, self.refine = nn.ModuleList(), nn.ModuleList()
        for level, stage in zip((3, 2, 1, 0), cast("list[Up]", model.up), strict=True):
            self.up.append(_pair(stage.conv, f"down{level + 1}"))
            layers = [_Block(cast(BasicBlock, block), level) for block in stage.blocks.children()]
            self.refine.append(nn.Sequential(*layers))
        self.classifier = nn.Linear(model.feature_channels, model.out_channels)
        self.classifier.load_state_dict(model.classifier.state_dict())
        self.eval()

    @torch.no_grad()
    def forward(self, coords: Tensor, feats: Tensor) -> Tensor:
        """Logits (M, out) of voxels (M, 4) [batch, x, y, z]; builds new index tables."""
        x = tensor(coords, feats)
        x, skips = self.stem(x), []
        for stage in self.down:
            skips.append(x)
            x = stage(x)
        for up, refine, skip in zip(self.up, self.refine, reversed(skips), strict=True):
            x = up(x)
            x = refine(x.replace_feature(torch.cat([x.features, skip.features], 1)))
        return self.classifier(x.features)


def tensor(coords: Tensor, feats: Tensor) -> Any:
    """spconv needs coordinates from zero; a shift by coarsest voxels keeps the cells."""
    low = coords[:, 1:].amin(0).div(16, rounding_mode="floor") * 16
    moved = torch.cat([coords[:, :1], coords[:, 1:] - low], 1).int()
    shape = (moved[:, 1:].amax(0) + 16).div(16, rounding_mode="floor") * 16
    batch = int(coords[:, 0].max()) + 1
    return _spconv().SparseConvTensor(feats, moved.contiguous(), shape.tolist(), batch)


def _pair(pair: ConvBlock, key: str) -> nn.Module:
    return _Pair(cast(SparseConv3d, pair[0]), pair[1], key)
