# SPDX-License-Identifier: Apache-2.0
"""The script that trains the bundled segmenter."""

from __future__ import annotations

import runpy
from pathlib import Path

from pcseg_core.checkpoint import FILE_NAME, load_checkpoint
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.recipe import OptimizerConfig
from pcseg_core.learning.simulated import labeled_sweeps
from pcseg_core.models.student import StudentConfig
from pcseg_core.simulation.variety import draw_lidar

SCRIPT = Path(__file__).parents[2] / "training" / "street.py"


def test_simulated_drives_are_trained_on_in_two_stages(tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    recipe = script["StreetRecipe"](
        towns=1,
        plain=1,
        sweeps=1,
        student=StudentConfig(depth=14, width=0.0625, voxel_size_m=0.3, max_range_m=30.0),
        optimizer=OptimizerConfig(steps=1, batch_size=1, sector_deg=60.0),
        refine=OptimizerConfig(steps=2, batch_size=1, sector_deg=60.0),
    )
    assert ["sensor=varied" in source for source in recipe.sources] == [True, False]
    (sweep,) = labeled_sweeps(recipe.sources[1:], LabelSpace.load("street"), 30.0, tmp_path)
    script["fit"]([sweep, sweep], recipe, tmp_path / "run")
    meta = load_checkpoint(tmp_path / "run" / FILE_NAME)[1]
    beams = sorted([draw_lidar(20_000).beams, 64])
    assert meta.inputs is not None and meta.inputs.rings == tuple(beams)
    assert [meta.metrics[stage]["steps"] for stage in ("varied", "refined")] == [1, 2]
    assert meta.caution.startswith("trained on simulated drives; distill")
    assert type(recipe).model_validate(meta.recipe) == recipe
