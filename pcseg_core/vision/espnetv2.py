# SPDX-License-Identifier: Apache-2.0
"""ESPNetv2 for semantic segmentation (Mehta et al., CVPR 2019, arXiv 1811.11431).

An encoder of depth-wise dilated pyramids with 0.8 M parameters, and a light decoder. Module names
are those of the published weights.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Channels of the encoder's levels 1 to 4 for each published width factor.
ENCODER_CHANNELS = {
    0.5: (16, 32, 64, 128),
    1.0: (32, 64, 128, 256),
    1.25: (32, 80, 160, 320),
    1.5: (32, 96, 192, 384),
    2.0: (32, 128, 256, 512),
}
BRANCHES = 4


def _conv(
    cin: int,
    cout: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Conv2d:
    padding = (kernel - 1) // 2 * dilation
    return nn.Conv2d(cin, cout, kernel, stride, padding, dilation, groups, bias)


def _conv_bn(
    cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = _conv(cin, cout, kernel, stride, groups=groups)
    layers["bn"] = nn.BatchNorm2d(cout)
    if act:
        layers["act"] = nn.PReLU(cout)
    return nn.Sequential(layers)


class _Named(nn.Module):
    """A Sequential under one attribute name, as in the weights of the decoder ("cbr", "br")."""

    def __init__(self, name: str, *layers: nn.Module) -> None:
        super().__init__()
        self._name = name
        self.add_module(name, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = getattr(self, self._name)(x)
        return result


def _cbr(cin: int, cout: int, kernel: int, groups: int = 1) -> _Named:
    conv = _conv(cin, cout, kernel, groups=groups)
    return _Named("cbr", conv, nn.BatchNorm2d(cout), nn.PReLU(cout))


def _br(channels: int) -> _Named:
    return _Named("br", nn.BatchNorm2d(channels), nn.PReLU(channels))


def branch_dilations(receptive_limit: int) -> list[int]:
    """Dilation of each 3x3 branch: receptive fields 3, 5, 7, 9; 3 for those over the limit."""
    fields = (3 + 2 * i for i in range(BRANCHES))
    return sorted((f - 1) // 2 if f <= receptive_limit else 1 for f in fields)


class EESP(nn.Module):
    """Reduce, split into dilated depth-wise branches, fuse hierarchically, merge."""

    def __init__(self, cin: int, cout: int, receptive_limit: int, stride: int = 1) -> None:
        super().__init__()
        width = cout // BRANCHES
        self.stride = stride
        self.proj_1x1 = _conv_bn(cin, width, 1, groups=BRANCHES)
        self.spp_dw = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=_conv(width, width, 3, stride, d, width)))
            for d in branch_dilations(receptive_limit)
        )
        self.conv_1x1_exp = _conv_bn(cout, cout, 1, groups=BRANCHES, act=False)
        self.br_after_cat = nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(cout), act=nn.PReLU(cout)))
        self.module_act = nn.PReLU(cout)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.proj_1x1(x)
        branches = [self.spp_dw[0](reduced)]
        for branch in self.spp_dw[1:]:
            branches.append(branch(reduced) + branches[-1])  # hierarchical fusion
        out = self.conv_1x1_exp(self.br_after_cat(torch.cat(branches, 1)))
        if self.stride == 2:
            result: Tensor = out  # the down-sampler activates after its own concatenation
            return result
        values: Tensor = self.module_act(out + x if out.shape == x.shape else out)
        return values


class DownSampler(nn.Module):
    """Halve the resolution: average pooling and a strided EESP, plus the resized image."""

    def __init__(self, cin: int, cout: int, receptive_limit: int) -> None:
        super().__init__()
        self.eesp = EESP(cin, cout - cin, receptive_limit, stride=2)
        self.inp_reinf = nn.Sequential(_conv_bn(3, 3, 3), _conv_bn(3, cout, 1, act=False))
        self.act = nn.PReLU(cout)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        out = torch.cat([_half(x), self.eesp(x)], 1)
        while image.shape[-2] > out.shape[-2]:
            image = _half(image)
        result: Tensor = self.act(out + self.inp_reinf(image))
        return result


def _half(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, kernel_size=3, stride=2, padding=1)


class Encoder(nn.Module):
    """Features at strides 2, 4, 8 and 16."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        c1, c2, c3, c4 = channels
        self.level1 = _conv_bn(3, c1, 3, stride=2)
        self.level2_0 = DownSampler(c1, c2, receptive_limit=13)
        self.level3_0 = DownSampler(c2, c3, receptive_limit=11)
        self.level3 = nn.ModuleList(EESP(c3, c3, 9) for _ in range(3))
        self.level4_0 = DownSampler(c3, c4, receptive_limit=9)
        self.level4 = nn.ModuleList(EESP(c4, c4, 7) for _ in range(7))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        l1 = self.level1(image)
        l2 = self.level2_0(l1, image)
        l3 = self.level3_0(l2, image)
        for block in self.level3:
            l3 = block(l3)
        l4 = self.level4_0(l3, image)
        for block in self.level4:
            l4 = block(l4)
        return l1, l2, l3, l4


class PyramidPool(nn.Module):
    """Efficient pyramid pooling: depth-wise convolutions of the map at five scales."""

    SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)

    def __init__(self, cin: int, width: int, cout: int, last: bool = False) -> None:
        super().__init__()
        n = len(self.SCALES)
        self.projection_layer = _cbr(cin, width, 1)
        self.stages = nn.ModuleList(_conv(width, width, 3, groups=width) for _ in self.SCALES)
        self.merge_layer = nn.Sequential(
            _br(width * n),
            nn.ChannelShuffle(n),
            _cbr(width * n, width, 3, groups=width),
            _conv(width, cout, 1, bias=last),
        )
        self.br = nn.Identity() if last else _br(cout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.projection_layer(x)
        pyramid = [self._stage(x, s, stage) for s, stage in zip(self.SCALES, self.stages)]
        result: Tensor = self.br(self.merge_layer(torch.cat(pyramid, 1)))
        return result

    @staticmethod
    def _stage(x: Tensor, scale: float, stage: nn.Module) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        target = (max(5, math.ceil(size[0] * scale)), max(5, math.ceil(size[1] * scale)))
        if scale < 1:
            return _resize(stage(F.adaptive_avg_pool2d(x, target)), size)
        if scale > 1:
            return F.adaptive_avg_pool2d(stage(_resize(x, target)), size)
        result: Tensor = stage(x)
        return result


class SkipConnection(nn.Module):
    """Features of the encoder for the decoder, gated by their global mean."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.wt_layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), _conv(cin, cout, 1), nn.Sigmoid())
        self.expansion_layer = _cbr(cin, cout, 3, groups=math.gcd(cin, cout))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.expansion_layer(x) * self.wt_layer(x)
        return result


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


class ESPNetv2(nn.Module):
    """Per-pixel logits at stride 2.

    Args:
        classes: number of output classes.
        scale: width factor, one of ENCODER_CHANNELS.
        decoder_planes: base width of the decoder (16 for the Cityscapes weights).
    """

    def __init__(self, classes: int, scale: float, decoder_planes: int = 16) -> None:
        super().__init__()
        channels = ENCODER_CHANNELS[scale]
        planes = (4 * decoder_planes, 3 * decoder_planes, 2 * decoder_planes)
        width = min(classes // 2, decoder_planes)
        self.classes = classes
        self.base_net = Encoder(channels)
        self.bu_dec_l1 = PyramidPool(channels[3], width, planes[0])
        self.bu_dec_l2 = PyramidPool(planes[0], width, planes[1])
        self.bu_dec_l3 = PyramidPool(planes[1], width, planes[2])
        self.bu_dec_l4 = PyramidPool(planes[2], width, classes, last=True)
        self.merge_enc_dec_l2 = SkipConnection(channels[2], planes[0])
        self.merge_enc_dec_l3 = SkipConnection(channels[1], planes[1])
        self.merge_enc_dec_l4 = SkipConnection(channels[0], planes[2])
        self.bu_br_l2 = nn.Sequential(nn.BatchNorm2d(planes[0]), nn.PReLU(planes[0]))
        self.bu_br_l3 = nn.Sequential(nn.BatchNorm2d(planes[1]), nn.PReLU(planes[1]))
        self.bu_br_l4 = nn.Sequential(nn.BatchNorm2d(planes[2]), nn.PReLU(planes[2]))

    def features(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) normalized RGB -> (B, 32, H/2, W/2) decoder features."""
        l1, l2, l3, l4 = self.base_net(image)
        x = self.bu_dec_l1(l4)
        x = self.bu_dec_l2(self.bu_br_l2(self.merge_enc_dec_l2(l3) + _double(x)))
        x = self.bu_dec_l3(self.bu_br_l3(self.merge_enc_dec_l3(l2) + _double(x)))
        result: Tensor = self.bu_br_l4(self.merge_enc_dec_l4(l1) + _double(x))
        return result

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), H and W multiples of 16 -> (B, classes, H/2, W/2) logits."""
        result: Tensor = self.bu_dec_l4(self.features(image))
        return result


def _double(x: Tensor) -> Tensor:
    return _resize(x, (2 * x.shape[-2], 2 * x.shape[-1]))
