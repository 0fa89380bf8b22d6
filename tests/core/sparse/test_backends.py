# SPDX-License-Identifier: Apache-2.0
"""Choice of the backend, and the torchsparse adapter against a stand-in for its kernels."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from grids import random_grid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcseg_core.errors import InputError
from pcseg_core.native import build, library
from pcseg_core.sparse import SparseConv3d, backends, backends_report
from pcseg_core.sparse.backends import torch_backend, torchsparse_backend


def forward(
    feats: Tensor, weight: Tensor, table: Tensor, rows: int, channels: int, *switches: bool
) -> Tensor:
    """What conv_forward_implicit_gemm_cuda computes, on its padded (rows, K) table."""
    assert table.dtype == torch.int32 and table.is_contiguous() and len(table) % 128 == 0
    assert table.shape[1] == len(weight) and weight.is_contiguous() and switches == (True, True)
    padded = torch.cat([feats, feats.new_zeros(1, feats.shape[1])])
    out = sum(padded[table[:, k].long()] @ weight[k] for k in range(len(weight)))
    assert isinstance(out, Tensor) and out.shape[1] == channels
    assert bool((table[rows:] == -1).all())
    return out[:rows]


def weight_gradient(grad: Tensor, feats: Tensor, table: Tensor, *_: object) -> Tensor:
    """What conv_backward_wgrad_implicit_gemm_cuda computes: (K * out, in)."""
    padded = torch.cat([grad, grad.new_zeros(1, grad.shape[1])])
    parts = [padded[table[: len(feats), k].long()].T @ feats for k in range(table.shape[1])]
    return torch.cat(parts)


@pytest.fixture
def torchsparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torchsparse whose kernels run on the CPU."""
    for name in ("torchsparse", "torchsparse.backend", "torchsparse.backends"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    kernels, switches = sys.modules["torchsparse.backend"], sys.modules["torchsparse.backends"]
    monkeypatch.setattr(kernels, "conv_forward_implicit_gemm_cuda", forward, raising=False)
    name = "conv_backward_wgrad_implicit_gemm_cuda"
    monkeypatch.setattr(kernels, name, weight_gradient, raising=False)
    monkeypatch.setattr(switches, "allow_tf32", True, raising=False)
    monkeypatch.setattr(switches, "allow_fp16", True, raising=False)
    torchsparse_backend.load.cache_clear()
    monkeypatch.setattr(torchsparse_backend, "can_run", lambda feats: True)
    yield
    torchsparse_backend.load.cache_clear()


@pytest.mark.usefixtures("torchsparse")
@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 1), (2, 2), (3, 2), (5, 1)])
def test_torchsparse_adapter_equals_torch(kernel_size: int, stride: int) -> None:
    torch.manual_seed(0)
    down = SparseConv3d(3, 4, kernel_size, stride, bias=True).double()
    up = SparseConv3d(4, 3, kernel_size, stride, transposed=True).double()
    parameters = [*down.parameters(), *up.parameters()]
    results = []
    for backend in ("torch", "torchsparse"):
        x = random_grid(3, backend=backend)
        feats = x.feats.requires_grad_()
        out = up(down(x)).feats
        grads = torch.autograd.grad(out.square().sum(), [feats, *parameters])
        results.append([out, *grads])
    for plain, adapted in zip(*results, strict=True):
        torch.testing.assert_close(adapted, plain)


def test_unknown_and_absent_backends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="'cudnn': expected one of auto, torch"):
        random_grid(3, backend="cudnn")
    monkeypatch.setitem(sys.modules, "torchsparse", None)
    torchsparse_backend.load.cache_clear()
    with pytest.raises(InputError, match="'torchsparse' cannot be used"):
        random_grid(3, backend="torchsparse")
    torchsparse_backend.load.cache_clear()


def test_without_the_native_library_torch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load", lambda: "not built")
    assert backends.select("auto", torch.zeros(1, 1)) is torch_backend
    assert backends.resolve("auto", torch.device("cpu")) == "torch"
    assert SparseConv3d(3, 4)(random_grid(3, dtype=torch.float32)).feats.shape[1] == 4
    with pytest.raises(InputError, match="not built"):
        backends.resolve("native", torch.device("cpu"))
    report = {row.name: row for row in backends_report()}
    assert not report["native"].available and "not built" in report["native"].note


def test_a_missing_or_stale_library_says_what_to_do(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.so").write_bytes(b"not a library")
    for name, message in (("absent.so", "was not built"), ("broken.so", "cannot be used")):
        monkeypatch.setenv("PCSEG_NATIVE_LIBRARY", str(tmp_path / name))
        library.load.cache_clear()
        reason = library.load()
        assert isinstance(reason, str) and message in reason and "native.build" in reason
    library.load.cache_clear()


def test_report_names_every_backend() -> None:
    names = [row.name for row in backends_report()]
    assert names == ["torchsparse", "triton", "native", "torch"]
    assert backends_report()[-1].available and all(row.note for row in backends_report())


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.3, 0.9, 0.9999])
def test_a_library_that_was_cut_is_not_loaded(tmp_path: Path, share: float) -> None:
    """The loader would map it, and the process would end with SIGBUS."""
    whole = (build.SOURCES / build.LIBRARY).read_bytes()
    assert library.check_file(build.SOURCES / build.LIBRARY) == ""
    cut = tmp_path / "cut.so"
    cut.write_bytes(whole[: int(share * len(whole))])
    assert library.check_file(cut)


@pytest.mark.usefixtures("native")
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 255)), min_size=1, max_size=8))
def test_any_header_is_a_reason_or_passes(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    raw = bytearray((build.SOURCES / build.LIBRARY).read_bytes())
    for at, value in changes:
        raw[at] = value
    (tmp_path / "changed.so").write_bytes(raw)
    assert isinstance(library.check_file(tmp_path / "changed.so"), str)


def test_a_library_that_was_asked_for_and_does_not_load_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.so").write_text("hello")
    monkeypatch.setenv(library.VARIABLE, str(tmp_path / "text.so"))
    library.load.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=r"plain torch is used.*text\.so.*no 64-bit"):
            assert backends.resolve("auto", torch.device("cpu")) == "torch"
        monkeypatch.setenv(library.VARIABLE, "libm.so.6")  # a name, not a path: not searched for
        library.load.cache_clear()
        with pytest.warns(RuntimeWarning, match="was not built"):
            library.load()
    finally:
        library.load.cache_clear()
