# SPDX-License-Identifier: Apache-2.0
"""The compiled network against the module it was made from."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pcseg_core.errors import InputError
from pcseg_core.learning.runs import on_gpu, torch_device
from pcseg_core.models.inference import choose_device, compile_inference
from pcseg_core.models.minkunet import MinkUNet
from pcseg_core.native import library
from pcseg_core.sparse import SparseTensor


@pytest.fixture(autouse=True)
def native() -> None:
    loaded = library.load()
    if isinstance(loaded, str):
        pytest.skip(loaded)


def trained(
    depth: int, width: float, channels: int = 3, classes: int = 7, **options: Any
) -> MinkUNet:
    """A network whose batch norms are far from the identity."""
    torch.manual_seed(depth)
    net = MinkUNet(channels, classes, depth, width, **options).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return net


def random_input(count: int, channels: int = 3, seed: int = 0) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    coords = torch.randint(-15, 15, (count, 4), generator=generator)
    coords[:, 0] = coords[:, 0] > 0
    coords = torch.unique(coords, dim=0)
    return SparseTensor(coords, torch.randn(len(coords), channels, generator=generator))


def relative_error(given: Tensor, expected: Tensor) -> float:
    return float((given - expected).norm() / expected.norm())


@pytest.mark.parametrize(("depth", "width"), [(14, 0.5), (18, 0.3), (34, 0.5)])
@pytest.mark.parametrize("channels", [2, 3])
def test_equals_the_module(depth: int, width: float, channels: int) -> None:
    """Also when the buffers were left by a larger and by a smaller input."""
    net = trained(depth, width, channels)
    fast, low = compile_inference(net), compile_inference(net, "bf16")
    for count in (500, 3000, 1, 900):
        x = random_input(count, channels, seed=count)
        with torch.no_grad():
            plain = SparseTensor(x.coords, x.feats, backend="torch")
            expected, features = net(plain).feats, net.features(plain)
        assert relative_error(fast(x).feats, expected) < 1e-5
        assert relative_error(fast.features(x), features) < 1e-5
        out = low(x).feats
        assert out.dtype == torch.float32 and relative_error(out, expected) < 0.03


@pytest.mark.parametrize(
    "options",
    [
        {"stem_kernel": 5, "planes": (16, 16, 32, 32, 16, 16, 12, 8)},
        {"stem_convs": 2, "planes": (20, 40, 24, 36, 28, 20, 12, 8)},
    ],
)
def test_equals_the_module_with_another_stem(options: dict[str, Any]) -> None:
    net = trained(18, 1.0, **options)
    x = random_input(900)
    with torch.no_grad():
        expected = net(SparseTensor(x.coords, x.feats, backend="torch")).feats
    assert relative_error(compile_inference(net)(x).feats, expected) < 1e-5
    assert relative_error(compile_inference(net, "bf16")(x).feats, expected) < 0.03


def test_result_outlives_the_next_call_and_the_model() -> None:
    net = trained(14, 0.5)
    fast = compile_inference(net)
    x, y = random_input(800), random_input(900, seed=1)
    first, features = fast(x).feats, fast.features(x)
    kept = first.clone(), features.clone()
    for parameter in net.parameters():
        parameter.data.zero_()
    del net
    fast(y)
    assert torch.equal(first, kept[0]) and torch.equal(features, kept[1])
    assert torch.equal(fast(x).feats, kept[0])


def test_calls_from_two_threads_do_not_mix() -> None:
    fast = compile_inference(trained(14, 0.5))
    inputs = [random_input(700 + 100 * i, seed=i) for i in range(4)]
    expected = [fast(x).feats for x in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(5):
            if not torch.equal(fast(inputs[index]).feats, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_bad_use_is_refused() -> None:
    net = trained(14, 0.5)
    with pytest.raises(InputError, match="precision 'int8'"):
        compile_inference(net, "int8")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected 3 channels"):
        compile_inference(net)(random_input(50, channels=4))


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(choose_device(name)) for name in ("auto", "cpu", "cuda:1")] == [
        "cuda",
        "cpu",
        "cuda:1",
    ]
    for wrong, message in (("cuda:2", "has 2 GPUs"), ("mps", "expected auto"), ("gpu", "expected")):
        with pytest.raises(InputError, match=message):
            choose_device(wrong)
    assert torch_device("cuda:1") == "cuda:1" and on_gpu("cuda:1") and not on_gpu("cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="under torchrun"):
        torch_device("cuda:1")
