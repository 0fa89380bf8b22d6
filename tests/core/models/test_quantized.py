# SPDX-License-Identifier: Apache-2.0
"""The network in 8-bit integers against float32."""

from __future__ import annotations

import pytest
import torch
from test_inference import random_input, relative_error, trained
from torch import Tensor

from benchmarks.measure import threads
from pcseg_core.errors import InputError
from pcseg_core.models.inference import compile_inference
from pcseg_core.models.minkunet import MinkUNet
from pcseg_core.models.quantized import MeasuredMinkUNet, QuantizedMinkUNet
from pcseg_core.native import library


@pytest.fixture(autouse=True)
def native() -> None:
    loaded = library.load()
    if isinstance(loaded, str):
        pytest.skip(loaded)


def calibrated(net: MinkUNet) -> list[float]:
    measured = MeasuredMinkUNet(net)
    for seed in (1, 2):
        measured(random_input(3000, net.in_channels, seed=seed))
    return measured.tops


@pytest.mark.parametrize(
    ("depth", "width", "stem"),
    [(14, 0.5, {}), (18, 0.3, {}), (34, 0.5, {}), (14, 0.5, {"stem_kernel": 5, "stem_convs": 2})],
)
def test_close_to_float32(depth: int, width: float, stem: dict[str, int]) -> None:
    """Logits, features and another head; the same after a smaller input."""
    net = trained(depth, width, **stem)
    exact, integers = compile_inference(net), QuantizedMinkUNet(net, calibrated(net))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(net.feature_channels, 5, generator=generator)
    bias = torch.randn(5, generator=generator)
    heads = [network.with_head(weight, bias) for network in (exact, integers)]
    x = random_input(2800, seed=3)
    pairs: list[tuple[Tensor, Tensor]] = [
        (integers(x).feats, exact(x).feats),
        (integers.features(x), exact.features(x)),
        (heads[1](x), heads[0](x)),
    ]
    for given, expected in pairs:
        assert given.dtype == torch.float32 and given.shape == expected.shape
        assert relative_error(given, expected) < 0.12
    assert len(integers(random_input(1)).feats) == 1
    assert torch.equal(integers(x).feats, pairs[0][0])
    assert integers.precision == "int8"


def test_each_layer_keeps_its_step() -> None:
    """Layers with ranges of four magnitudes: one scale for all would leave nothing."""
    net = trained(14, 0.5)
    with torch.no_grad():
        for stage, factor in zip(net.up, (30.0, 0.03, 20.0, 0.05), strict=True):
            norm = stage.conv[1]
            norm.weight *= factor
            norm.bias *= factor
    exact, integers = compile_inference(net), QuantizedMinkUNet(net, calibrated(net))
    x = random_input(2000)
    assert relative_error(integers(x).feats, exact(x).feats) < 0.12


def test_measuring_changes_no_result() -> None:
    net = trained(14, 0.5)
    x = random_input(800)
    measured = MeasuredMinkUNet(net)
    assert measured.tops == [0.0] * len(measured.tops)
    torch.testing.assert_close(measured(x).feats, compile_inference(net)(x).feats)
    assert all(top > 0 for top in measured.tops)


def test_a_layer_of_zeros_gives_finite_results() -> None:
    net = trained(14, 0.5)
    integers = QuantizedMinkUNet(net, [0.0] * len(calibrated(net)))
    assert bool(integers(random_input(300)).feats.isfinite().all())


def test_same_bits_for_any_number_of_threads() -> None:
    net = trained(18, 0.5)
    integers, x = QuantizedMinkUNet(net, calibrated(net)), random_input(3000)
    results = []
    for count in (1, 3):
        with threads(count):
            results.append(integers(x).feats)
    assert torch.equal(*results)


def test_scales_of_another_network_are_refused() -> None:
    tops = calibrated(trained(14, 0.5))
    with pytest.raises(InputError, match=r"scales of \d+ layers for a network of \d+; run `pcseg"):
        QuantizedMinkUNet(trained(18, 0.5), tops)
