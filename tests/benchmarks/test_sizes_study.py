# SPDX-License-Identifier: Apache-2.0
"""Size study: the students of its texts, rows at equal time, the table and the picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.studies import sizes
from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.errors import InputError
from pcseg_core.learning.recipe import OptimizerConfig, TrainingRecipe

SMALL, LARGE = "depth=14,width=0.125,voxel=0.5", "depth=14,width=0.25,voxel=0.4"


def test_a_size_names_depth_width_and_voxel() -> None:
    student = sizes.student_of("depth=18, width=0.5, voxel=0.1")
    assert (student.depth, student.width, student.voxel_size_m) == (18, 0.5, 0.1)


@pytest.mark.parametrize(
    "size", ["", "depth=14", "depth=14,width=0.25,voxel=much", "depth=15,width=0.25,voxel=0.1"]
)
def test_other_sizes_are_refused(size: str) -> None:
    with pytest.raises(InputError, match="size"):
        sizes.student_of(size)


@pytest.mark.slow
def test_students_train_for_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = {SMALL: 0.5, LARGE: 1.0}  # s; what is measured differs from run to run
    monkeypatch.setattr(sizes.SizeStudy, "_step_s", lambda _, size: cost[size])
    optimizer = OptimizerConfig(batch_size=1, sector_deg=60)
    base = TrainingRecipe(optimizer=optimizer)
    out = tmp_path / "sizes.json"

    def rows() -> sizes.SizeStudy:
        found = sizes.SizeStudy([SMALL, LARGE], 4 / 60, 2, base, out, tmp_path, "cpu")
        lidar = "sweeps=1,beams=16,columns=256,cameras=0"
        found.train_in = [f"simulated:seed={seed},{lidar}" for seed in (1, 2)]
        found.test_in = [f"simulated:seed=3,{lidar}"]
        return found

    content = rows().run(1, lambda _: None)
    assert [row["steps"] for row in content["rows"]] == [8, 4]
    assert content["rows"][0]["parameters"] < content["rows"][1]["parameters"]
    assert set(content["cpu_ms"]) == {SMALL, LARGE}
    assert all(ms > 0 for ms in content["cpu_ms"].values())
    table = sizes.markdown(content).splitlines()
    assert len(table) == 4
    assert table[2].startswith("| depth=14, width=0.125, voxel=0.5 | ")
    sizes.draw(content, tmp_path / "sizes.png")
    assert (tmp_path / "sizes.png").stat().st_size > 10_000
    trained = [load_checkpoint(run)[1] for run in sorted((tmp_path / "runs").iterdir())]
    assert {meta.student["width"] for meta in trained} == {0.125, 0.25}
    again = rows()
    monkeypatch.setattr(sizes.SizeStudy, "compute", lambda *_: pytest.fail("a stored row"))
    assert again.run(1, lambda _: None)["rows"] == content["rows"]


def test_a_step_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, outs = [0.0], set[Path]()

    def train(_: object, size: str, seed: int, steps: int, out: Path) -> dict[str, float]:
        now[0] += 3.0 + 0.25 * steps if outs else 300.0  # the first one renders the towns
        assert out not in outs  # a finished run would do nothing
        outs.add(out)
        return {}

    monkeypatch.setattr(sizes.SizeStudy, "_train", train)
    monkeypatch.setattr(sizes.time, "process_time", lambda: now[0])
    found = sizes.SizeStudy([SMALL], 1, 2, TrainingRecipe(), tmp_path / "rows.json", tmp_path)
    assert found._step_s(SMALL) == pytest.approx(0.25)
