# SPDX-License-Identifier: Apache-2.0
"""Model cards: what the metadata of a checkpoint tell those who take it over."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import yaml

from pcseg_core.checkpoint import CheckpointMeta
from pcseg_core.labels import LabelSpace

NOT_GIVEN = "not given"
_TAGS = ("lidar", "point-cloud", "semantic-segmentation", "pcseg")
_TEACHERS = ("teacher", "teacher_3d", "encoder")
_FIGURES = ("steps", "sweeps", "held_out", "training_s")


def model_card(name: str, meta: CheckpointMeta, data_license: str | None = None) -> str:
    """README.md of a checkpoint, with the front matter that hubs read.

    Args:
        name: title, such as the name of the run.
        meta: of the checkpoint.
        data_license: of the recordings of the training.
    """
    header = {"library_name": "pcseg", "tags": list(_TAGS), "license": "other"}
    parts = [f"---\n{yaml.safe_dump(header, sort_keys=False)}---", f"# {name}"]
    network = meta.student.get("network", "minkunet")
    parts.append(
        f"A LiDAR segmenter of pcseg {meta.pcseg_version}, network `{network}`. Label a recording "
        "with it: `pcseg segment RECORDING --checkpoint FOLDER --out OUT`."
    )
    if meta.caution:
        parts.append(f"**Caution:** {meta.caution}.")
    for title, lines in (
        ("Licenses", _licenses(meta, data_license)),
        ("Classes", [", ".join(LabelSpace.from_dict(meta.label_space).names)]),
        ("Figures", _figures(meta)),
        ("Training", _training(meta)),
        ("Input", _inputs(meta)),
        ("Confidence", _confidence(meta)),
    ):
        parts += [f"## {title}", "\n".join(lines)]
    recipe = yaml.safe_dump(meta.recipe, sort_keys=False) if meta.recipe else "{}\n"
    parts += ["## Recipe", f"```yaml\n{recipe}```"]
    return "\n\n".join(parts) + "\n"


def _licenses(meta: CheckpointMeta, data_license: str | None) -> list[str]:
    weights = meta.license or "no imported weights; that of the owner of this page"
    return [f"- Weights: {weights}", f"- Recordings of the training: {data_license or NOT_GIVEN}"]


def _figures(meta: CheckpointMeta) -> list[str]:
    found = [f"- {meta.measured}"] if meta.measured else []
    test = meta.metrics.get("test")
    if isinstance(test, Mapping) and "miou" in test:
        found.append(f"- mIoU {100 * float(test['miou']):.1f} % on the test recording of the run")
    for key in ("plain", "stacked"):
        figures = meta.metrics.get(key)
        if isinstance(figures, Mapping):
            shown = ((k, figures.get(k)) for k in ("seen", "unseen", "hiou"))
            told = ", ".join(f"{k} {100 * float(v):.1f} %" for k, v in shown if v is not None)
            found.append(f"- zero-shot, {key} classifier: {told}")
    if meta.int8 is not None:
        found.append(f"- 8-bit integers: {100 * meta.int8.agreement:.1f} % of the float32 labels")
    return found or ["Not measured on labeled sweeps. Measure it: `pcseg evaluate`."]


def _training(meta: CheckpointMeta) -> list[str]:
    found = [f"- {key}: {meta.metrics[key]}" for key in _FIGURES if key in meta.metrics]
    sources = meta.metrics.get("poses")
    if isinstance(sources, Mapping) and sources:
        readers = sorted({str(source).partition(":")[0] for source in sources})
        found.append(f"- {len(sources)} recordings, read as {', '.join(readers)}")
    for key in _TEACHERS:
        section = meta.recipe.get(key)
        if isinstance(section, Mapping):
            kind = section.get("name") or section.get("run") or "unnamed"
            found.append(f"- {key}: {kind}")
    return found or ["Not told by the checkpoint."]


def _inputs(meta: CheckpointMeta) -> list[str]:
    if meta.inputs is None:
        return ["No statistics: input of another sensor is not noticed."]
    return list(_pairs(meta.inputs.model_dump(mode="json")))


def _confidence(meta: CheckpointMeta) -> list[str]:
    if meta.confidence is None:
        return ["Not calibrated: the largest probability of the softmax."]
    return list(_pairs(meta.confidence.model_dump(mode="json")))


def _pairs(values: Mapping[str, object]) -> Iterator[str]:
    for key, value in values.items():
        if value is not None:
            yield f"- `{key}`: {json.dumps(_rounded(value))}"


def _rounded(value: object) -> object:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value
