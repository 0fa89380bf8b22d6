# SPDX-License-Identifier: Apache-2.0
"""The engine benchmark, end to end on a small made-up sweep."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import engine, engine_cases
from benchmarks.engine_report import picture, tables
from pcseg_core.models.minkunet import MinkUNet
from pcseg_core.native import library
from pcseg_core.sparse import SparseTensor


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Rings on a plane and a wall."""
    generator = np.random.default_rng(0)
    azimuth, radius = generator.uniform(0, 6.28, 3000), generator.choice([4, 6, 9], 3000)
    points = np.column_stack(
        [radius * np.cos(azimuth), radius * np.sin(azimuth), np.full(3000, -1.7), azimuth / 7]
    ).astype(np.float32)
    points[:500, 1], points[:500, 2] = 5, generator.uniform(-1.7, 1, 500)
    np.savez(tmp_path / "sweep.npz", points=points)
    return tmp_path / "sweep.npz"


def test_rows_table_and_picture(sweep: Path, tmp_path: Path, monkeypatch) -> None:
    if isinstance(library.load(), str):
        pytest.skip(str(library.load()))
    arguments = ["engine", "--sweep", str(sweep), "--voxel", "0.2", "--networks", "14:0.5"]
    arguments += ["--rounds", "1", "--no-spconv", "--no-rss", "--threads", "1"]
    arguments += ["--json", str(tmp_path / "out.json"), "--picture", str(tmp_path / "out.png")]
    monkeypatch.setattr("sys.argv", arguments)
    assert engine.main() == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {row["kind"] for row in rows} == {"network", "training step", "maps", "layer"}
    for row in rows[:4]:
        assert row["median_ms"] > 0 and not row["wrong"]
        assert row["precision"] == "int8" or 0 < row["fraction_of_peak"] < 1.5
        assert row["relative_error"] < {"bf16": 0.1, "int8": 0.3}.get(row["precision"], 1e-4)
    assert {"native bf16", "native int8"} <= {f"{r['engine']} {r['precision']}" for r in rows[:4]}
    assert "native bf16" in tables(rows) and (tmp_path / "out.png").stat().st_size > 1000


def test_a_wrong_peer_is_marked_and_is_no_measure(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for spconv is wrong with two threads; ratios are to the right run."""
    if isinstance(library.load(), str):
        pytest.skip(str(library.load()))

    def stand_in(net: MinkUNet, count: int) -> engine_cases.Forward:
        run = engine_cases.torch_engine(net)
        return lambda grid: run(grid) * (1 if count == 1 else 1.5)

    monkeypatch.setattr(engine_cases, "spconv_engine", stand_in)
    grid = engine_cases.grid_of(torch.from_numpy(np.load(sweep)["points"]), 0.3)
    engines = ["torch fp32", "spconv fp32 x1", "spconv fp32 x2"]
    rows = {row["threads"]: row for row in engine.network_rows(grid, 14, 0.5, engines, 1)[1:]}
    assert not rows[1]["wrong"] and rows[1]["ratio"] == 1
    assert rows[2]["wrong"]
    assert rows[2]["ratio"] == pytest.approx(rows[1]["median_ms"] / rows[2]["median_ms"])
    marked = [line for line in tables(list(rows.values())).splitlines() if "WRONG" in line]
    assert len(marked) == 1 and "2 thr." in marked[0]
    picture(list(rows.values()), tmp_path / "out.svg")
    assert "wrong result" in (tmp_path / "out.svg").read_text()


def test_bad_arguments_end_with_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["engine", "--sweep", str(tmp_path / "none.bin")])
    assert engine.main() == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_gflop_counts_pairs() -> None:
    """Two voxels side by side: each sees itself and the other."""
    x = SparseTensor(torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]]), torch.ones(2, 4))
    table = x.cache.kernel_map(1, 3, 1).table
    assert int((table >= 0).sum()) == 4
    net = MinkUNet(4, 19, 14, 0.5).eval()
    pairs = 2e-9 * 4 * 4 * 16  # the stem's, of the network's many
    given = engine_cases.gflop(net, engine_cases.Grid(x.coords, x.feats))
    with_two_more = MinkUNet(6, 19, 14, 0.5).eval()
    wider = engine_cases.Grid(x.coords, torch.ones(2, 6))
    assert engine_cases.gflop(with_two_more, wider) - given == pytest.approx(pairs / 2)
