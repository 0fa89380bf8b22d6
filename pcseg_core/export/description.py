# SPDX-License-Identifier: Apache-2.0
"""`student.json`: what a program needs to know to use an exported graph."""

from __future__ import annotations

import json
from typing import Any

from pcseg_core import __version__
from pcseg_core.confidence import UNSURE
from pcseg_core.data.label_files import raw_ids_of
from pcseg_core.export.graph import OPSET, Precision
from pcseg_core.export.tables import LOGITS, GraphInput, minkunet_inputs, rows_name
from pcseg_core.export.waffleiron import waffleiron_inputs
from pcseg_core.models.network import Network
from pcseg_core.models.student import StudentConfig, input_features, voxel_edges
from pcseg_core.models.waffleiron import WaffleIron
from pcseg_core.online.segmenter import Segmenter

FORMAT = "pcseg student"
VERSION = 1

_INTENSITY = (
    "multiply the intensities of the driver by intensity_scale; if that is null, leave 0..1 "
    "as it is, divide 0..255 by 255 and larger ranges by the power of two that holds 99 % of the "
    "values; clip to 0..1, NaN becomes 0"
)
_POINTS = (
    "points in the sensor's frame, x forward, z up [m]; points that are not finite, exactly zero, "
    "or farther than max_range_m get no voxel and no label"
)
_VOXELS = (
    "a point lies in voxel floor(position / voxel_size), where the position is (x, y, z), for "
    "cylindrical voxels (radius, azimuth, z); the voxels are the occupied cells sorted by their "
    "three indices; level L + 1 halves the indices of level L, rounded down"
)
_LOGITS = "label of a voxel and its points: the largest; confidence: its softmax over the classes"
_CONFIDENCE = (
    "the logits are not calibrated; unless confidence is null, divide those of a voxel by near + "
    "(far - near) min(1, range / range_m) before the softmax, times unsure where the entropy of "
    "the softmax of the undivided logits, over the logarithm of the number of classes, is above "
    "{limit}"
)


_BOX = (
    "leave out voxels whose features x, y, z are not at least 0.1 mm inside of {low} to {high} "
    "[m]; their points take the answer of the nearest voxel inside"
)


def student_inputs(network: Network) -> list[GraphInput]:
    """Inputs of the graph of a student."""
    if isinstance(network, WaffleIron):
        return waffleiron_inputs(network)
    return minkunet_inputs(network.in_channels)


def describe(
    segmenter: Segmenter, precision: Precision, agreement: dict[str, Any] | None
) -> dict[str, Any]:
    """The content of student.json.

    Args:
        segmenter: its active classes are those of the logits.
        precision: of the graph.
        agreement: comparison with float32; None if it was not measured.
    """
    config, space = segmenter.student.config, segmenter.label_space
    trained_on = segmenter.trained_on
    scaling = None if segmenter.prompts else segmenter.meta.confidence
    features = input_features(config)
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "pcseg_version": __version__,
        "opset": OPSET,
        "precision": precision,
        "voxels": config.voxels,
        "voxel_size": list(voxel_edges(config)),
        "max_range_m": config.max_range_m,
        "features": [name for name, _ in features],
        "feature_divisors": [divisor for _, divisor in features],
        "intensity_scale": trained_on.intensity_scale if trained_on else None,
        "classes": list(space.names),
        "colors": [list(c.color) for c in space.classes],
        "label_file_ids": [int(i) for i in raw_ids_of(space)],
        "prompts": list(segmenter.prompts),
        "confidence": scaling and scaling.model_dump(mode="json"),
        "agreement": agreement,
        "caution": segmenter.meta.caution or None,
        "license": segmenter.meta.license,
        "rules": _rules(config),
        "inputs": [_tensor(given) for given in student_inputs(segmenter.student.network)],
        "outputs": [_tensor(GraphInput(LOGITS, "float32", (rows_name(0), len(space)), _LOGITS))],
    }


def _rules(config: StudentConfig) -> dict[str, str]:
    confidence = _CONFIDENCE.format(limit=UNSURE)
    rules = {
        "points": _POINTS,
        "intensity": _INTENSITY,
        "voxels": _VOXELS,
        "confidence": confidence,
    }
    if config.network == "waffleiron":
        box = config.waffleiron
        rules["box"] = _BOX.format(low=box.box_min_m, high=box.box_max_m)
    return rules


def _tensor(tensor: GraphInput) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "type": tensor.dtype,
        "shape": list(tensor.shape),
        "content": tensor.content,
    }


def metadata(description: dict[str, Any]) -> dict[str, str]:
    """The same as metadata of the graph: each key with its value as JSON."""
    return {key: json.dumps(value) for key, value in description.items()}
