# SPDX-License-Identifier: Apache-2.0
"""Corrected labels are found for the sweeps that they belong to, or refused with their file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from labeled_drive import STREET, Drive, labels_of, write_labels

from pcseg_core.data.corrections import read_corrections
from pcseg_core.data.label_formats import MANIFEST, export_labels
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace

READABLE = ["semantic-kitti", "nuscenes", "segments", "pcd"]


def corrected(index: int) -> np.ndarray:
    """Labels of a sweep as a person leaves them."""
    return np.where(labels_of(index) == 2, 5, labels_of(index))


def rewrite(folder: Path, index: int, labels: np.ndarray) -> Path:
    """Store labels as the tool of a format does; the changed file."""
    content = json.loads((folder / MANIFEST).read_text())
    file, _, frame = content["sweeps"][index]["labels"].partition("#")
    if frame:
        stored = json.loads((folder / file).read_text())
        # Tools number the objects anew.
        objects = np.where(labels < 0, 0, labels + 101)
        known = [{"id": k, "category_id": k - 100} for k in set(objects.tolist()) - {0}]
        stored["frames"][int(frame)] = {"annotations": known, "point_annotations": objects.tolist()}
        (folder / file).write_text(json.dumps(stored))
    elif file.endswith(".pcd"):
        rows = "".join(f"{k} 0 0 {label + 1}\n" for k, label in enumerate(labels.tolist()))
        head = "VERSION .7\nFIELDS x y z label\nSIZE 4 4 4 4\nTYPE F F F I\nCOUNT 1 1 1 1\n"
        (folder / file).write_text(f"{head}POINTS {len(labels)}\nDATA ascii\n{rows}")
    else:
        kind = "u1" if content["format"] == "nuscenes" else "<u4"
        instance = 0 if kind == "u1" else 7 << 16
        (folder / file).write_bytes(np.where(labels < 0, 0, labels + 1 + instance).astype(kind))
    return folder / file


@pytest.mark.parametrize("format", READABLE)
def test_the_changed_sweeps_of_an_export_come_back(tmp_path: Path, format: str) -> None:
    folder = export_labels(Drive(), write_labels(tmp_path), format).folder
    with pytest.raises(InputError, match="no labels in it were changed"):
        read_corrections(folder, {"drive": Drive()}, STREET)
    rewrite(folder, 3, corrected(3))
    for given in (folder, tmp_path):  # the export, or the folder of all exports
        (found,) = read_corrections(given, {"other": Drive(2), "drive": Drive()}, STREET)
        assert (found.recording, found.index) == ("drive", 3)
        np.testing.assert_array_equal(found.labels, corrected(3))
        np.testing.assert_array_equal(found.finite, Drive()[3].cloud.finite)


@pytest.mark.parametrize("format", READABLE)
def test_another_length_or_class_is_refused(tmp_path: Path, format: str) -> None:
    folder = export_labels(Drive(), write_labels(tmp_path), format).folder
    file = rewrite(folder, 1, corrected(1)[:-1])
    with pytest.raises(InputError, match=r"50 labels for the 51 points of sweep a/1/1") as error:
        read_corrections(folder, {"drive": Drive()}, STREET)
    assert str(file) in str(error.value)
    rewrite(folder, 1, np.where(labels_of(1) == 2, 90, labels_of(1)))
    with pytest.raises(InputError, match=r"91 (is|are) no class(es)? of street") as error:
        read_corrections(folder, {"drive": Drive()}, STREET)
    assert str(file) in str(error.value)


def test_label_files_belong_to_the_sweep_of_their_name(tmp_path: Path) -> None:
    write_labels(tmp_path)
    for name in ("a/1/labels/0.label", "b/labels/2.label"):
        (tmp_path / name).unlink()
    found = read_corrections(tmp_path, {"drive": Drive()}, STREET)
    assert [one.index for one in found] == [1, 3]
    for one in found:
        np.testing.assert_array_equal(one.labels, labels_of(one.index))
    (tmp_path / "b" / "labels" / "9.label").write_bytes(b"\0\0\0\0")
    with pytest.raises(InputError, match=r"9\.label: no sweep of the sources has this name"):
        read_corrections(tmp_path, {"drive": Drive()}, STREET)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        read_corrections(tmp_path / "nowhere", {"drive": Drive()}, STREET)
    with pytest.raises(InputError, match=r"neither export\.json nor \.label files"):
        read_corrections(tmp_path, {"drive": Drive()}, STREET)
    folder = export_labels(Drive(), write_labels(tmp_path), "semantic-kitti").folder
    rewrite(folder, 0, corrected(0))
    other = Drive()
    other.name = "elsewhere"
    with pytest.raises(InputError, match="of the recording drive, which is not among the sources"):
        read_corrections(folder, {"drive": other}, STREET)
    fine = LabelSpace.load("semantic_kitti")
    with pytest.raises(InputError, match=r"export\.json: no grouping from label space 'street'"):
        read_corrections(folder, {"drive": Drive()}, fine)
    pcd = export_labels(Drive(), tmp_path, "pcd").folder
    file = rewrite(pcd, 0, corrected(0))
    file.write_text(file.read_text().replace("FIELDS x y z label", "FIELDS x y z class"))
    with pytest.raises(InputError, match=r"0\.pcd: no field 'label' of a PCD file"):
        read_corrections(pcd, {"drive": Drive()}, STREET)
    las = export_labels(Drive(), tmp_path, "las").folder
    with pytest.raises(InputError, match="corrections in the format las cannot be read"):
        read_corrections(las, {"drive": Drive()}, STREET)
