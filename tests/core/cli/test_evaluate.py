# SPDX-License-Identifier: Apache-2.0
"""`pcseg evaluate` as a user runs it, on good input and on bad."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from pcseg_core.checkpoint import FILE_NAME, CheckpointMeta, load_checkpoint, save_checkpoint
from pcseg_core.cli import app
from pcseg_core.confidence import ConfidenceScaling

Sequence = Callable[..., Path]


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_json_table_and_picture(tiny_run: Path, sequence: Sequence, tmp_path: Path) -> None:
    report, picture = tmp_path / "out" / "report.json", tmp_path / "out" / "report.png"
    result = evaluate(
        tiny_run, "--semantic-kitti", sequence(), "--json", report, "--picture", picture
    )
    assert result.exit_code == 0, result.output
    content = json.loads(report.read_text())
    assert {"miou", "accuracy", "miou_merged_ground", "iou", "confusion", "per_scan"} <= set(
        content
    )
    assert list(content["baselines"]) == ["majority", "linear_raw", "linear_untrained"]
    # the raw inputs separate the scenes of these tests perfectly
    assert content["baselines"]["linear_raw"]["miou"] > 0.98
    assert content["baselines"]["majority"]["accuracy"] < 0.5
    assert [scan["points"] for scan in content["per_scan"]] == [600, 637]
    assert content["baselines_note"] is None
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "mIoU" in result.output
    assert "linear" in result.output
    assert sorted(path.name for path in report.parent.iterdir()) == ["report.json", "report.png"]


def test_figures_before_and_after_calibration(
    tiny_run: Path, sequence: Sequence, tmp_path: Path
) -> None:
    state, meta = load_checkpoint(tiny_run)
    scaling = ConfidenceScaling(near=3, far=3, range_m=80)
    scaled = meta.model_copy(update={"confidence": scaling})
    save_checkpoint(tmp_path / "scaled" / FILE_NAME, state, scaled)
    folder, contents = sequence(), []
    for run in (tiny_run, tmp_path / "scaled"):
        files = "--json", tmp_path / "report.json", "--picture", tmp_path / "report.png"
        result = evaluate(run, "--semantic-kitti", folder, "--no-baselines", *files)
        assert result.exit_code == 0, result.output
        contents.append(json.loads((tmp_path / "report.json").read_text()))
    assert "before calibration" in result.output
    before, after = contents
    assert before["confidence_uncalibrated"] is None
    assert after["confidence_uncalibrated"] == before["confidence"] != after["confidence"]
    assert after["confusion"] == before["confusion"]


@pytest.mark.parametrize("place", ["drive", ".", "drive/velodyne/.."])
def test_a_sequence_a_folder_above_it_and_a_single_scan(
    tiny_run: Path, sequence: Sequence, tmp_path: Path, place: str
) -> None:
    folder = sequence(scans=1).parent
    report = tmp_path / "report.json"
    result = evaluate(
        tiny_run, "--semantic-kitti", folder / place, "--no-baselines", "--json", report
    )
    assert result.exit_code == 0, result.output
    content = json.loads(report.read_text())
    assert (content["scans"], content["points"], content["baselines"]) == (1, 600, {})


def test_several_sequences_are_measured_together(
    tiny_run: Path, sequence: Sequence, tmp_path: Path
) -> None:
    sequence("sequences/00", 2)
    sequence("sequences/08", 1)
    report = tmp_path / "report.json"
    result = evaluate(
        tiny_run, "--semantic-kitti", tmp_path / "sequences", "--no-baselines", "--json", report
    )
    assert result.exit_code == 0, result.output
    names = [scan["name"] for scan in json.loads(report.read_text())["per_scan"]]
    assert names == ["00/000000", "00/000001", "08/000000"]


def test_what_lies_beside_the_sweeps_does_not_matter(
    tiny_run: Path, sequence: Sequence, tmp_path: Path
) -> None:
    folder = sequence(scans=2)
    (folder / "calib.txt").write_text("P0: 1 2 3\n")
    (folder / "poses.txt").write_text("nonsense")
    (folder / "image_2").mkdir()
    (folder / "image_2" / "000000.png").write_bytes(b"no image")
    for kind, suffix in (("velodyne", "bin"), ("labels", "label")):
        (folder / kind / f"000001.{suffix}").rename(folder / kind / f"place_b.{suffix}")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "08").symlink_to(folder)
    report = tmp_path / "report.json"
    result = evaluate(
        tiny_run, "--semantic-kitti", tmp_path / "linked", "--no-baselines", "--json", report
    )
    assert result.exit_code == 0, result.output
    scans = json.loads(report.read_text())["per_scan"]
    assert [(scan["name"], scan["points"]) for scan in scans] == [
        ("08/000000", 600),
        ("08/place_b", 637),
    ]


def test_the_same_command_gives_the_same_figures(
    tiny_run: Path, sequence: Sequence, tmp_path: Path
) -> None:
    folder = sequence()
    contents = []
    for name in ("a.json", "b.json"):
        evaluate(tiny_run, "--semantic-kitti", folder, "--json", tmp_path / name)
        content = json.loads((tmp_path / name).read_text())
        content.pop("milliseconds_median")
        for scan in content["per_scan"]:
            scan.pop("milliseconds")
        contents.append(content)
    assert contents[0] == contents[1]


def test_without_pseudo_labels_it_says_why_there_are_no_baselines(
    tiny_run: Path, sequence: Sequence, tmp_path: Path
) -> None:
    shutil.copy(tiny_run / FILE_NAME, tmp_path / FILE_NAME)
    report = tmp_path / "report.json"
    result = evaluate(tmp_path / FILE_NAME, "--semantic-kitti", sequence(), "--json", report)
    assert result.exit_code == 0, result.output
    assert "baselines left out" in result.output
    assert "pseudo_labels" in json.loads(report.read_text())["baselines_note"]


def edit_labels(folder: Path) -> None:
    path = folder / "labels" / "000001.label"
    path.write_bytes(path.read_bytes()[:-4])


def remove_labels(folder: Path) -> None:
    shutil.rmtree(folder / "labels")


def remove_sweeps(folder: Path) -> None:
    for path in (folder / "velodyne").iterdir():
        path.unlink()


def remove_all(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit_labels, "000001.label"),
        (remove_labels, "none of its 2 sweeps has labels"),
        (remove_sweeps, "drive"),
        (remove_all, "no such folder"),
    ],
)
def test_bad_folders(
    tiny_run: Path, sequence: Sequence, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = sequence()
    damage(folder)
    report = tmp_path / "report.json"
    result = evaluate(
        tiny_run,
        "--semantic-kitti",
        folder,
        "--no-baselines",
        "--json",
        report,
        "--picture",
        tmp_path / "report.png",
    )
    assert result.exit_code == 2, result.output
    assert message in result.output.replace("\n", " ")
    assert "Traceback" not in result.output
    assert not list(tmp_path.glob("*report*"))


def test_only_part_of_the_scans_labeled(tiny_run: Path, sequence: Sequence, tmp_path: Path) -> None:
    folder = sequence(scans=3)
    (folder / "labels" / "000001.label").unlink()
    report = tmp_path / "report.json"
    result = evaluate(tiny_run, "--semantic-kitti", folder, "--no-baselines", "--json", report)
    assert result.exit_code == 0, result.output
    assert "sweep without labels (1)" in result.output
    assert json.loads(report.read_text())["scans"] == 2


def test_a_checkpoint_with_missing_tensors(
    tiny_run: Path, sequence: Sequence, tmp_path: Path
) -> None:
    state, meta = load_checkpoint(tiny_run)
    name = next(iter(state))
    save_checkpoint(tmp_path / FILE_NAME, {k: v for k, v in state.items() if k != name}, meta)
    result = evaluate(tmp_path, "--semantic-kitti", sequence(), "--json", tmp_path / "r.json")
    assert result.exit_code == 2
    assert name in result.output
    assert not (tmp_path / "r.json").exists()


def test_a_checkpoint_of_another_label_space(
    tiny_run: Path, sequence: Sequence, tmp_path: Path
) -> None:
    state, meta = load_checkpoint(tiny_run)
    fruit = {
        "name": "fruit",
        "classes": [{"name": f"fruit{i}", "color": [i, 0, 0]} for i in range(8)],
    }
    other = CheckpointMeta(**{**meta.model_dump(), "label_space": fruit})
    save_checkpoint(tmp_path / FILE_NAME, state, other)
    result = evaluate(tmp_path, "--semantic-kitti", sequence(), "--json", tmp_path / "r.json")
    assert result.exit_code == 2
    assert "no grouping from label space 'fruit' into 'street'" in result.output
    assert not (tmp_path / "r.json").exists()


def test_a_file_that_is_no_checkpoint(tiny_run: Path, sequence: Sequence, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((tiny_run / FILE_NAME).read_bytes()[:5000])
    for path in (damaged, tmp_path / "missing"):
        result = evaluate(path, "--semantic-kitti", sequence(f"for_{path.stem}"))
        assert result.exit_code == 2
        assert path.name in result.output
    assert load_file(tiny_run / FILE_NAME)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to measure on"),
        (["--semantic-kitti", "X", "--source", "bag:X"], "not both"),
        (["--boxes", "X", "--picture", "p.png"], "needs labeled sweeps"),
        (["--source", "X", "--picture", "p.gif"], "cannot write '.gif'"),
        (["--source", "X", "--json", "."], "is a folder"),
        (["--source", "X", "--label-space", "street"], "no such file or folder"),
    ],
)
def test_arguments_are_checked_before_the_work(
    tiny_run: Path, arguments: list[str], message: str
) -> None:
    result = evaluate(tiny_run, *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_write_that_fails_leaves_the_old_report(
    tiny_run: Path, sequence: Sequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report.json"
    report.write_text("the old one")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    result = evaluate(tiny_run, "--semantic-kitti", sequence(), "--no-baselines", "--json", report)
    assert result.exit_code == 2
    assert "No space left" in result.output
    assert report.read_text() == "the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drive", "report.json"]


def test_real_sweeps(tiny_run: Path, shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "semantic_kitti" / "sequences" / "00"
    report = tmp_path / "report.json"
    result = evaluate(
        tiny_run,
        "--semantic-kitti",
        folder,
        "--no-baselines",
        "--json",
        report,
        "--boxes",
        f"kitti-object:{shared_data / 'kitti_object' / 'training'}",
    )
    assert result.exit_code == 0, result.output
    content = json.loads(report.read_text())
    raw = [np.fromfile(p, "<u4") & 0xFFFF for p in sorted((folder / "labels").iterdir())]
    cars = sum(int(np.isin(labels, (10, 252)).sum()) for labels in raw)
    vehicle = content["classes"].index("vehicle")
    counted = sum(content["confusion"][vehicle]) + content["unpredicted"][vehicle]
    assert counted >= cars > 1000
    assert content["boxes"]["classes"]["vehicle"]["boxes"] > 10
