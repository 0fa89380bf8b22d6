# SPDX-License-Identifier: Apache-2.0
"""`pcseg hub`: checkpoints and their cards, into folders and to a hub that is played."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from pcseg_core.checkpoint import CheckpointMeta, Measurement, load_checkpoint, save_checkpoint
from pcseg_core.cli import app
from pcseg_core.confidence import ConfidenceScaling
from pcseg_core.export.hub import is_folder
from pcseg_core.export.model_card import model_card
from pcseg_core.input_check import InputStatistics
from tests.small_runs import STREET, write_run

CHECKPOINT = "checkpoint.safetensors"


def pcseg(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["hub", *(str(argument) for argument in arguments)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", classes=STREET)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub that is a folder; stands in for huggingface_hub."""
    pages = tmp_path / "hub"

    class Api:
        def create_repo(self, name: str, private: bool, exist_ok: bool) -> str:
            assert private and exist_ok
            return f"page of {name}"

        def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
            shutil.copytree(folder_path, pages / repo_id)

    def snapshot_download(name: str, local_dir: str, **_: Any) -> None:
        shutil.copytree(pages / name, local_dir, dirs_exist_ok=True)

    module = ModuleType("huggingface_hub")
    module.HfApi, module.snapshot_download = Api, snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return pages


def test_a_folder_takes_a_checkpoint_and_gives_it_back_without_the_hub(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    pushed = pcseg("push", run, tmp_path / "shared", "--data-license", "own recordings")
    assert pushed.exit_code == 0, pushed.output
    pulled = pcseg("pull", tmp_path / "shared", tmp_path / "mine")
    assert pulled.exit_code == 0, pulled.output
    names = {path.name for path in (tmp_path / "mine").iterdir()}
    assert names == {CHECKPOINT, "README.md"}
    assert (tmp_path / "mine" / CHECKPOINT).read_bytes() == (run / CHECKPOINT).read_bytes()
    assert "own recordings" in (tmp_path / "mine" / "README.md").read_text()


def test_a_hub_takes_a_checkpoint_and_gives_it_back(run: Path, hub: Path, tmp_path: Path) -> None:
    pushed = pcseg("push", run, "me/street", "--data-license", "CC BY 4.0")
    assert pushed.exit_code == 0, pushed.output
    assert "# street\n" in (hub / "me" / "street" / "README.md").read_text()
    assert pcseg("pull", "me/street", tmp_path / "mine").exit_code == 0
    assert len(load_checkpoint(tmp_path / "mine")[0]) > 10
    failed = pcseg("pull", "me/other", tmp_path / "other")
    assert failed.exit_code == 2 and "cannot pull me/other" in failed.output
    assert not (tmp_path / "other").exists()


def test_a_hub_needs_the_license_of_the_recordings(run: Path, hub: Path) -> None:
    result = pcseg("push", run, "me/street")
    assert result.exit_code == 2 and "--data-license" in result.output
    assert not hub.exists()


def test_a_hub_that_is_not_installed_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for arguments in (
        ("push", run, "me/street", "--data-license", "own"),
        ("pull", "me/street", tmp_path / "mine"),
    ):
        result = pcseg(*arguments)
        assert result.exit_code == 2 and "pip install 'pcseg_ros[hub]'" in result.output


def test_what_does_not_load_does_not_land(run: Path, tmp_path: Path) -> None:
    state, meta = load_checkpoint(run)
    state.pop(next(iter(state)))
    save_checkpoint(tmp_path / "broken" / CHECKPOINT, state, meta)
    for arguments in (("pull", tmp_path / "broken"), ("push", tmp_path / "broken")):
        result = pcseg(*arguments, tmp_path / "out")
        assert result.exit_code == 2 and "does not fit" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "run"]


def test_folders_of_others_stay(run: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    assert pcseg("push", run, taken, "--force").exit_code == 2
    assert pcseg("push", run, tmp_path / "a").exit_code == 0
    assert "--force" in pcseg("push", run, tmp_path / "a").output
    assert pcseg("push", run, tmp_path / "a", "--force").exit_code == 0
    (tmp_path / "a" / "notes.txt").write_text("mine")
    assert pcseg("pull", run, tmp_path / "a", "--force").exit_code == 2
    assert (taken / "thesis.txt").is_file() and (tmp_path / "a" / "notes.txt").is_file()


def test_targets_are_folders_or_names(run: Path) -> None:
    assert is_folder("./a/b") and is_folder("/a") and is_folder("~/a") and not is_folder("a/b")
    result = pcseg("push", run, "shared")
    assert result.exit_code == 2 and "expected OWNER/NAME" in result.output


def test_a_card_tells_what_the_checkpoint_knows() -> None:
    meta = CheckpointMeta(
        student={"network": "minkunet"},
        label_space=STREET.to_dict(),
        recipe={"teacher": {"name": "espnetv2"}, "seed": 7},
        metrics={"sweeps": 12, "poses": {"bag:/secret/drive": "tf"}, "test": {"miou": 0.5}},
        inputs=InputStatistics(range_m=(1, 2, 3, 4, 5, 6, 7, 8, 9), returns=(100.0, 200.0)),
        confidence=ConfidenceScaling(near=1.5, far=2.0, range_m=50),
        measured=Measurement(data="KITTI", sweeps=9, miou=0.49, accuracy=0.77),
        license="CC BY-NC 4.0",
    )
    card = model_card("street", meta, "CC BY 4.0")
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "pcseg" and "lidar" in head["tags"]
    for told in (
        "no commercial use",
        "- Weights: CC BY-NC 4.0",
        "- Recordings of the training: CC BY 4.0",
        "road, ",
        "49 % mIoU",
        "mIoU 50.0 %",
        "1 recordings, read as bag",
        "- teacher: espnetv2",
        "- `returns`: [100.0, 200.0]",
        "- `near`: 1.5",
        "seed: 7",
    ):
        assert told in card, told
    assert "secret" not in card
