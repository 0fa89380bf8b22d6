# SPDX-License-Identifier: Apache-2.0
"""Write a student as `student.onnx` and `student.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pcseg_core.cloud import PointCloud
from pcseg_core.config import read_yaml
from pcseg_core.errors import InputError, require
from pcseg_core.export.calibration import labels_changed, record
from pcseg_core.export.description import FORMAT, describe, metadata, student_inputs
from pcseg_core.export.graph import Graph, Precision
from pcseg_core.export.network import Words, add_classifier, add_network, add_words
from pcseg_core.export.runtime import OnnxStudent
from pcseg_core.export.waffleiron import add_waffleiron
from pcseg_core.files import FolderKind, check_new_folder, new_folder
from pcseg_core.labels import LabelSpace
from pcseg_core.models.inference import only_minkunet
from pcseg_core.models.network import Network
from pcseg_core.models.student import StudentConfig
from pcseg_core.models.sweep_input import other_grid
from pcseg_core.models.waffleiron import WaffleIron
from pcseg_core.online.prompts import PromptHead, PromptSet
from pcseg_core.online.segmenter import Segmenter

FORMATS = ("onnx",)
MODEL, DESCRIPTION = "student.onnx", "student.json"


@dataclass(frozen=True)
class Exported:
    """A written student.

    Attributes:
        model: path of the graph.
        label_space: classes of the logits.
        agreement: comparison with float32; None if it was not measured.
    """

    model: Path
    label_space: LabelSpace
    agreement: dict[str, Any] | None


def check_export(
    out: Path, precision: str, *, format_: str = "onnx", sweeps: int = 0, force: bool = False
) -> None:
    """Check the arguments of an export before the work.

    Args:
        out: folder to write.
        precision: "fp32", "fp16" or "int8".
        format_: "onnx".
        sweeps: number of sweeps.
        force: replace an earlier export.

    Raises:
        InputError: an unknown format or precision, sweeps missing or without use, or a folder that
            is taken.
        MissingDependency: onnx or onnxruntime is not installed.
    """
    if format_ not in FORMATS:
        raise InputError(f"format '{format_}': expected {', '.join(FORMATS)}")
    if precision not in get_args(Precision):
        expected = ", ".join(get_args(Precision))
        raise InputError(f"precision '{precision}': expected one of {expected}")
    if precision == "int8" and sweeps < 2:
        raise InputError(
            f"precision 'int8': expected at least 2 sweeps to calibrate and to compare, got "
            f"{sweeps}; give a recording of the sensor, labels are not needed"
        )
    if precision == "fp32" and sweeps:
        raise InputError("precision 'fp32' needs no sweeps; they calibrate int8 and compare fp16")
    check_new_folder(out, EXPORT, force=force)
    require("onnx", "export")
    require("onnxruntime", "export")


def export_onnx(
    run: str | Path,
    out: Path,
    *,
    precision: Precision = "fp32",
    prompts: Sequence[str] = (),
    sweeps: Sequence[PointCloud] = (),
    force: bool = False,
) -> Exported:
    """Write the student of a run into a new folder.

    Args:
        run: run directory, checkpoint file, or "bundled".
        out: folder; appears when it is complete.
        precision: of the graph.
        prompts: classes in words, as `Segmenter.set_prompts`; empty for those of the checkpoint.
        sweeps: recorded sweeps. Every second one calibrates int8, the others are compared with
            float32.
        force: replace an earlier export.

    Raises:
        InputError: see `check_export`; or a run without classes, words without a text head, or a
            network whose inputs the native library cannot make.
        MissingDependency: onnx or onnxruntime is not installed.
    """
    check_export(out, precision, sweeps=len(sweeps), force=force)
    segmenter = Segmenter.load(run, device="cpu", backend="torch")
    _check_known(segmenter.student.config, run)
    _check_precision(segmenter.student.network, precision)
    if prompts:
        segmenter.set_prompts(prompts)
    peaks = record(segmenter, sweeps[::2]).peaks if precision == "int8" else None
    model = build(segmenter, precision, peaks)
    compared = sweeps[1::2] if precision == "int8" else sweeps
    agreement = _agreement(segmenter, model, compared) if compared else None
    about = describe(segmenter, precision, agreement)
    require("onnx.helper", "export").set_model_props(model, metadata(about))
    with new_folder(out, EXPORT, force=force) as folder:
        folder.mkdir()
        (folder / MODEL).write_bytes(model.SerializeToString())
        (folder / DESCRIPTION).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return Exported(out / MODEL, segmenter.label_space, agreement)


def build(
    segmenter: Segmenter, precision: Precision = "fp32", peaks: Mapping[str, float] | None = None
) -> Any:
    """The ModelProto of the active classes of a segmenter.

    Args:
        segmenter: on the CPU.
        precision: of the graph.
        peaks: largest inputs of the convolutions, for int8; see `calibration.Recorded`.
    """
    student = segmenter.student
    graph = Graph(precision, peaks)
    if isinstance(student.network, WaffleIron):
        features = add_waffleiron(graph, student.network)
    else:
        features = add_network(graph, only_minkunet(student.network, "pcseg export"))
    if segmenter.prompts:
        add_words(graph, features, _words(segmenter))
    else:
        add_classifier(graph, features, student.network.classifier)
    return graph.model(student_inputs(student.network), len(segmenter.label_space))


def _check_precision(network: Network, precision: Precision) -> None:
    """Check that the graph of a family exists in a precision.

    Raises:
        InputError: it does not.
    """
    if isinstance(network, WaffleIron) and precision != "fp32":
        raise InputError(f"precision '{precision}': a WaffleIron is exported in fp32 only")


def _check_known(config: StudentConfig, run: str | Path) -> None:
    """Check that the native library can make the inputs of a student.

    Raises:
        InputError: it cannot.
    """
    unknown = other_grid(config)
    if config.stem_kernel != 3:
        unknown.append(f"stem_kernel: {config.stem_kernel}")
    if unknown:
        raise InputError(
            f"{run} cannot be exported: the tables of an export do not know student."
            f"{', student.'.join(unknown)}; run it with pcseg, or distill a student with the "
            "defaults from it"
        )


def _words(segmenter: Segmenter) -> Words:
    head, text = segmenter.student.text_head, segmenter.text
    assert head is not None and text is not None  # `set_prompts` refuses others
    rows, owner = PromptSet.parse(segmenter.prompts).encode(text)
    classes = len(segmenter.label_space)
    folded = PromptHead(head, rows, owner, classes, text.temperature)
    return Words(folded.matrix.numpy(), folded.offset.numpy(), owner, classes)


def _agreement(segmenter: Segmenter, model: Any, clouds: Sequence[PointCloud]) -> dict[str, Any]:
    """Comparison of a graph with the graph in float32."""
    exact = OnnxStudent(build(segmenter).SerializeToString())
    given = OnnxStudent(model.SerializeToString())
    voxels = record(segmenter, clouds).sweeps
    changed = labels_changed(exact, given, voxels)
    return {"sweeps": len(voxels), "labels_changed": round(changed, 6)}


def _check_description(path: Path) -> None:
    """Check that a student.json is one of ours.

    Raises:
        InputError: it is not.
    """
    if read_yaml(path).get("format") != FORMAT:
        raise InputError(f"its {path.name} is not of an export")


EXPORT = FolderKind("folder of an export", DESCRIPTION, _check_description, (MODEL,))
