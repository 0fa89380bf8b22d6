# SPDX-License-Identifier: Apache-2.0
"""An exported WaffleIron gives what the torch network gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import SMALL_WAFFLEIRON

from pcseg_core.checkpoint import FILE_NAME, save_checkpoint
from pcseg_core.errors import InputError
from pcseg_core.export.runtime import OnnxStudent
from pcseg_core.export.waffleiron import values_of
from pcseg_core.export.writer import build, export_onnx
from pcseg_core.models.student import Points
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.sparse import SparseTensor


def sweep(segmenter: Segmenter, count: int, reach_m: float = 15.0) -> SparseTensor:
    generator = torch.Generator().manual_seed(count)
    xyz = (torch.rand(count, 3, generator=generator) - 0.5) * 2 * reach_m
    xyz[:, 2] /= 5
    none = torch.zeros(count, dtype=torch.long)
    points = Points(xyz, torch.rand(count, generator=generator), none)
    return segmenter.student.sparse_input(points, segmenter.student.voxelize(points))


@pytest.mark.parametrize(("norm", "activation"), [("batch", "relu"), ("layer", "gelu")])
def test_equals_the_network(
    norm: str, activation: str, make_segmenter: Callable[..., Segmenter]
) -> None:
    sizes = dict(SMALL_WAFFLEIRON.waffleiron) | {"norm": norm, "activation": activation}
    settings = dict(SMALL_WAFFLEIRON) | {"waffleiron": sizes, "text_channels": 16}
    segmenter = make_segmenter(**settings)
    network = segmenter.student.network
    model = OnnxStudent(build(segmenter).SerializeToString()).session
    for count in (700, 3, 1):
        x = sweep(segmenter, count)
        given = model.run(None, values_of(network, x))[0]
        with torch.no_grad():
            expected = network(x).feats.numpy()
        np.testing.assert_allclose(given, expected, atol=1e-5 * np.abs(expected).max())
    segmenter.set_prompts(["jeep", "minivan"])
    prompted = OnnxStudent(build(segmenter).SerializeToString()).session
    assert prompted.run(None, values_of(network, x))[0].shape == (1, 2)
    with pytest.raises(InputError, match="outside of box_min_m"):
        values_of(network, sweep(segmenter, 50, reach_m=40))


def test_an_export_describes_its_inputs(
    make_segmenter: Callable[..., Segmenter], tmp_path: Path
) -> None:
    segmenter = make_segmenter(**dict(SMALL_WAFFLEIRON))
    save_checkpoint(tmp_path / FILE_NAME, segmenter.student.state_dict(), segmenter.meta)
    export_onnx(tmp_path, tmp_path / "out")
    described = json.loads((tmp_path / "out" / "student.json").read_text())
    assert [(x["name"], x["shape"]) for x in described["inputs"]] == [
        ("features", ["voxels_0", 5]),
        ("neighbors", ["voxels_0", 4]),
        *((f"cells_{axis}", ["voxels_0"]) for axis in "zyx"),
    ]
    assert "32 cells along x, the slower index, and 8 along z" in described["inputs"][3]["content"]
    assert "(-16.0, -16.0, -4.0) to (16.0, 16.0, 4.0)" in described["rules"]["box"]
    model = build(segmenter)
    assert {o.domain for o in model.opset_import} == {""}
    with pytest.raises(InputError, match="exported in fp32 only"):
        export_onnx(tmp_path, tmp_path / "out16", precision="fp16")
