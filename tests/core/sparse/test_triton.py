# SPDX-License-Identifier: Apache-2.0
"""The Triton backend without a GPU: in Triton's interpreter, and compiled ahead of time.

The interpreter is chosen when Triton is imported, so those tests run in a process of their own
(`triton_checks.py`). It has no bfloat16: that is compiled here and compared on GPUs by
`benchmarks.cuda`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from grids import random_grid
from hypothesis import given, settings
from hypothesis import strategies as st

from pcseg_core.errors import InputError
from pcseg_core.models.inference import compile_inference
from pcseg_core.models.minkunet import MinkUNet
from pcseg_core.sparse import backends, backends_report, maps
from pcseg_core.sparse.backends import device_maps, fastest, triton_backend
from pcseg_core.sparse.keys import pack
from pcseg_core.sparse.maps import KernelMap, KernelMapCache, MapBuilder

triton = pytest.importorskip("triton", reason="Triton is not installed")
CHECKS = Path(__file__).parent / "triton_checks.py"


@pytest.mark.slow
def test_kernels_in_the_interpreter() -> None:
    """Values, gradients, fused layers and a network; see `triton_checks.py`."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(CHECKS)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


def compiled(kernel: object, types: dict[str, str], settings: dict[str, object], sm: int) -> str:
    """PTX of a kernel: types of its run-time arguments, values of the others."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names  # type: ignore[attr-defined]
    signature = {name: types.get(name, "constexpr") for name in names}
    rows = ("n_out", "offsets", "share")
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if name in types and name not in rows
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=settings, attrs=aligned)
    done = triton.compile(
        source, target=GPUTarget("cuda", sm, 32), options={"num_warps": 4, "num_stages": 3}
    )
    assert len(done.asm["cubin"]) > 1000
    return done.asm["ptx"]


@pytest.mark.parametrize("sm", [75, 80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_kernels_compile_ahead_of_time(dtype: str, sm: int) -> None:
    """To machine code, from Ampere on with tensor cores; no GPU is needed."""
    kernels = pytest.importorskip("pcseg_core.sparse.backends.triton_kernels")
    matrix, products = f"*{dtype}", "tf32" if dtype == "fp32" else "ieee"
    shared = {"table": "*i32", "order": "*i32", "n_out": "i32", "cin": "i32", "cout": "i32"}
    types = dict.fromkeys(("x", "weight", "residual", "out"), matrix) | {"bias": "*fp32"}
    types |= dict.fromkeys(("offsets", "x_step", "residual_step", "out_step"), "i32")
    settings = {"HAS_BIAS": True, "HAS_RESIDUAL": True, "RELU": True, "PRECISION": products}
    settings |= {"LIMIT": 65504.0 if dtype == "fp16" else 0.0}
    settings |= {"ROWS": 64, "COLUMNS": 32, "CHANNELS": 32}
    forward = compiled(kernels.convolve, types | shared, settings, sm)
    types = {"x": matrix, "grad": matrix, "out": "*fp32", "share": "i32"}
    types |= {"x_step": "i32", "grad_step": "i32"} | shared
    settings = {"PRECISION": products, "ROWS": 32, "INPUTS": 32, "OUTPUTS": 64}
    backward = compiled(kernels.weight_gradient, types, settings, sm)
    for ptx in (forward, backward):
        assert sm < 80 or "mma" in ptx


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(-9, 9)] * 3), max_size=40),
    st.sampled_from([(1, 1), (2, 1), (3, 1), (5, 1), (1, 2), (2, 2), (3, 2)]),
    st.sampled_from([16, 1 << 25]),
)
def test_maps_of_the_gpu_are_those_of_the_cpu(
    voxels: list[tuple[int, int, int]], kernel: tuple[int, int], searched: int
) -> None:
    """Any voxels, none included, searched at once or in pieces."""
    coords = torch.tensor([[0, *v] for v in voxels], dtype=torch.int64).reshape(-1, 4)
    keys = torch.unique(pack(coords))
    tables = []
    for builder in (device_maps.MAP_BUILDER, MapBuilder()):
        made = KernelMapCache(keys, builder).kernel_map(1, *kernel)
        tables.append((made.table, made.invert(made.table, made.n_in)))
    for mine, reference in zip(*tables, strict=True):
        assert mine.dtype == torch.int32 and mine.is_contiguous()
        assert torch.equal(mine, reference)
    keys_out = keys if kernel[1] == 1 else maps.coarsen(keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_maps, "_MAX_SEARCHED", searched)
        assert torch.equal(device_maps.build_table(keys, keys_out, *kernel), tables[1][0])


@pytest.mark.parametrize(
    ("rows", "offsets"), [(0, 27), (1, 27), (3000, 27), (3000, 8), (3000, 125)]
)
def test_sorting_permutes_columns(offsets: int, rows: int) -> None:
    draw = torch.Generator().manual_seed(0)
    table = torch.randint(0, max(rows, 1), (offsets, rows), generator=draw, dtype=torch.int32)
    table[torch.rand(offsets, rows, generator=draw) < 0.7] = -1
    kernel_map = KernelMap(table, rows, 3, 1, maps.invert_table)
    moved, order = triton_backend.sorted_table(kernel_map)
    assert order.dtype == torch.int32 and sorted(order.tolist()) == list(range(rows))
    assert moved.is_contiguous() and torch.equal(moved, table[:, order.long()])
    if rows == 3000 and offsets == 8:  # rows with the same neighbors lie side by side
        masks = (moved >= 0).int().mul(2 ** torch.arange(8)[:, None]).sum(0)
        assert int((masks[1:] != masks[:-1]).sum()) < 256


@pytest.mark.parametrize("rows", [1, 1023, 1024, 100_000, 10_000_000])
@pytest.mark.parametrize("programs", [1, 108, 5000])
def test_shares_of_the_weight_gradient_cover_all_rows(rows: int, programs: int) -> None:
    share = triton_backend._share(rows, programs)
    splits = -(-rows // share)
    assert share % 1024 == 0 and share > 0 and splits * share >= rows
    assert splits * programs <= max(4096, programs) or splits == 1


def test_absent_backend_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    report = {row.name: row for row in backends_report()}
    assert not report["triton"].available and "no CUDA device" in report["triton"].note
    with pytest.raises(InputError, match="'triton' cannot be used"):
        random_grid(3, dtype=torch.float32, backend="triton")
    net = MinkUNet(3, 4, 14, 0.25).eval()
    with pytest.raises(InputError, match="'triton' cannot be used"):
        compile_inference(net, "fp16", "triton")
    with pytest.raises(InputError, match="precision 'fp16' on backend 'native'"):
        compile_inference(net, "fp16")
    monkeypatch.setitem(sys.modules, "pcseg_core.sparse.backends.triton_kernels", None)
    triton_backend.load.cache_clear()
    reason = triton_backend.load()
    triton_backend.load.cache_clear()
    assert isinstance(reason, str) and "pip install triton" in reason


def stand_in(name: str, monkeypatch: pytest.MonkeyPatch, ms: float) -> None:
    """A CUDA backend that is installed and takes this long for the test layer."""
    monkeypatch.setattr(fastest._BACKENDS[name], "load", lambda: sys)
    times[name] = ms
    monkeypatch.setattr(fastest, "layer_ms", lambda name, device: times[name])


times: dict[str, float] = {}


@pytest.mark.parametrize(
    ("capability", "torchsparse", "triton_ms", "expected"),
    [
        ((9, 0), None, 1.0, ("triton",)),
        ((9, 0), 2.0, 1.0, ("triton", "torchsparse")),
        ((9, 0), 0.5, 1.0, ("torchsparse", "triton")),
        ((9, 0), float("inf"), 1.0, ("triton",)),
        ((7, 5), 2.0, 1.0, ("torchsparse",)),
        ((7, 5), None, 1.0, ()),
    ],
)
def test_auto_takes_the_faster_backend(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    torchsparse: float | None,
    triton_ms: float,
    expected: tuple[str, ...],
) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    stand_in("triton", monkeypatch, triton_ms)
    if torchsparse is not None:
        stand_in("torchsparse", monkeypatch, torchsparse)
    fastest.order.cache_clear()
    assert fastest.order(device) == expected
    assert backends.resolve("auto", device) == (expected or ("torch",))[0]
    fastest.order.cache_clear()
