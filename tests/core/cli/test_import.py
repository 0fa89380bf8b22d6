# SPDX-License-Identifier: Apache-2.0
"""`pcseg import` as a user runs it, and the commands that use its run."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from published import OPENSCENE_PLANES, PLANES, narrow, openscene, slidr, spvnas
from small_runs import semantic_kitti
from typer.testing import CliRunner, Result

from pcseg_core import PointCloud, Segmenter
from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.cli import app
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.probe import FrozenNetwork
from pcseg_core.learning.recipe import load_recipe
from pcseg_core.learning.start import check_start
from pcseg_core.models.student import StudentConfig
from pcseg_core.recipes import recipe_file
from pcseg_core.vision.text_space import GeneratedText, table_of

SMALL = narrow(PLANES)


def pcseg(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def segmenter_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "init"
    torch.save({"model": spvnas(planes=SMALL).state}, file)
    return file


def sweep(count: int = 500) -> PointCloud:
    rng = np.random.default_rng(0)
    xyz = rng.uniform((-1, -1, -1), (1, 1, 1), (count, 3)).astype(np.float32)
    return PointCloud(xyz, rng.random(count).astype(np.float32))


def test_a_segmenter(
    segmenter_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Classes by the number of outputs, the license on load, and the command is idempotent."""
    out = tmp_path / "run"
    result = pcseg("import", segmenter_file, "--as", "spvnas", "--out", out)
    assert result.exit_code == 0, result.output
    assert "weights under MIT" in result.output and "classes: car, bicycle" in result.output
    assert "left out: model.point_transforms.*" in result.output
    caplog.set_level(logging.INFO)
    segmenter = Segmenter.load(out, device="cpu")
    assert "weights under MIT" in caplog.text and not segmenter.meta.caution
    assert len(np.unique(segmenter.segment(sweep()).labels)) > 1
    again = pcseg("import", segmenter_file, "--as", "spvnas", "--out", out)
    assert again.exit_code == 0
    other = pcseg("import", segmenter_file, "--as", "spvnas", "--out", out, "--license", "X")
    assert other.exit_code == 2 and "license: MIT there, X here" in other.output


def test_a_license_without_commercial_use(segmenter_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("--as", "spvnas", "--out", out, "--license", "CC BY-NC 4.0")
    assert pcseg("import", segmenter_file, *arguments).exit_code == 0
    assert load_checkpoint(out)[1].caution == (
        "its weights are under CC BY-NC 4.0: no commercial use"
    )


def test_classes_of_a_file(segmenter_file: Path, tmp_path: Path) -> None:
    names = [{"name": f"kind{i}", "color": [i, i, i]} for i in range(19)]
    file = tmp_path / "kinds.yaml"
    file.write_text(yaml.safe_dump({"name": "kinds", "classes": names}))
    out = tmp_path / "run"
    result = pcseg("import", segmenter_file, "--as", "spvnas", "--out", out, "--classes", file)
    assert result.exit_code == 0, result.output
    assert Segmenter.load(out, device="cpu").label_space.names[18] == "kind18"


def test_a_pretrained_network_is_finetuned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save({"model_points": slidr(planes=SMALL).state}, tmp_path / "slidr.pt")
    run = tmp_path / "run"
    result = pcseg("import", tmp_path / "slidr.pt", "--as", "slidr", "--out", run)
    assert result.exit_code == 0 and "no classes; next: pcseg probe" in result.output
    section = result.output.partition("student section for distill --start: ")[2].splitlines()[0]
    stored = load_checkpoint(run)[1].student
    assert StudentConfig.model_validate(yaml.safe_load(section)).model_dump(mode="json") == stored
    recipe, street = load_recipe(recipe_file("simulated")), LabelSpace.load("street")
    student = StudentConfig.model_validate(stored)
    continued = recipe.model_copy(update={"student": student})
    assert check_start(run, continued, street) == "Apache-2.0"
    mean = continued.model_copy(update={"student": student.model_copy(update={"reduce": "mean"})})
    with pytest.raises(InputError, match=r"student\.reduce: first there, mean here"):
        check_start(run, mean, street)
    drive = semantic_kitti(tmp_path / "drive", 1)
    network, points = FrozenNetwork.load(run), sweep()
    assert points.intensity is not None
    features = network(points.xyz, points.intensity)  # as `pcseg probe` does
    assert features.shape == (500, SMALL[-1]) and np.isfinite(features).all()
    finetuned = pcseg("finetune", run, drive, "--out", tmp_path / "tuned", "--steps", 1)
    assert finetuned.exit_code == 0, finetuned.output
    assert load_checkpoint(tmp_path / "tuned")[1].license == "Apache-2.0"


def test_features_in_a_text_space_answer_words(tmp_path: Path) -> None:
    """The labels of --classes are those of prompts with the same words."""
    torch.manual_seed(0)
    state = openscene(512, narrow(OPENSCENE_PLANES)).state
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "os.pt")
    space = LabelSpace.load("street")
    groups = [(c.name, *c.synonyms) for c in space.classes]
    table_of(GeneratedText(512), [w for group in groups for w in group]).save(tmp_path / "t.npz")
    arguments = ("import", tmp_path / "os.pt", "--as", "openscene", "--out", tmp_path / "run")
    result = pcseg(*arguments, "--text", tmp_path / "t.npz")
    assert result.exit_code == 0, result.output
    segmenter = Segmenter.load(tmp_path / "run", device="cpu", precision="fp32")
    own = segmenter.segment(sweep()).labels
    assert segmenter.label_space.names == space.names and len(np.unique(own)) > 1
    head, text = segmenter.student.text_head, segmenter.text
    assert head is not None and text is not None
    with torch.no_grad():
        features = torch.randn(200, head.in_features)
        vectors = torch.nn.functional.normalize(head(features), dim=1).numpy()
        means = np.stack([text.table.embed(group).mean(0) for group in groups])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        given = segmenter.student.network.classifier(features).argmax(1).numpy()
    assert np.array_equal(given, (vectors @ means.T).argmax(1))
    segmenter.set_prompts(["car", "*"])
    assert set(np.unique(segmenter.segment(sweep()).labels)) <= {0, 1}
    wrong = pcseg(*arguments, "--fresh", "--text", tmp_path / "os.pt", "--classes", "mars")
    assert wrong.exit_code == 2 and "mars" in wrong.output


def test_text_needs_features_in_a_text_space(segmenter_file: Path, tmp_path: Path) -> None:
    table_of(GeneratedText(4), ["car"]).save(tmp_path / "t.npz")
    arguments = ("--as", "spvnas", "--out", tmp_path / "run", "--text", tmp_path / "t.npz")
    result = pcseg("import", segmenter_file, *arguments)
    assert result.exit_code == 2 and "no features in a text space" in " ".join(
        result.output.split()
    )
