# SPDX-License-Identifier: Apache-2.0
"""Import: a file of published weights in, a run directory out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from pcseg_core.checkpoint import check_weights
from pcseg_core.config import Section
from pcseg_core.errors import InputError
from pcseg_core.importers.classes import Classes, head_classes, text_classes
from pcseg_core.importers.family import Family, Imported
from pcseg_core.importers.published import read_published
from pcseg_core.importers.registry import family_named, network_of
from pcseg_core.labels import NO_CLASSES
from pcseg_core.learning.run_folder import claim, named, resumed
from pcseg_core.learning.runs import finish
from pcseg_core.models.student import Student, load_student

_WEIGHT, _BIAS = "network.classifier.weight", "network.classifier.bias"


class ImportRecipe(Section):
    """How a published network became a run."""

    family: str = Field(description="Layout of the file")
    license: str = Field(description="License of the weights")
    classes: str | None = Field(None, description="Label space of the classes")
    prefix: str | None = Field(None, description="What is before the keys in the file")


def import_weights(
    file: Path,
    family: str,
    out: Path,
    *,
    classes: str | None = None,
    license: str | None = None,
    text: Path | None = None,
    prefix: str | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """Turn a file of published weights into a run directory.

    Args:
        file: torch or safetensors file; no code in it runs.
        family: name in `registry.FAMILIES`.
        out: run directory.
        classes: label space of the package, or the path of a YAML file; None takes the one that the
            family knows for the number of outputs, else the network is imported without classes.
        license: of the weights; None takes the family's.
        text: for networks with features in a text space: weights of its text encoder, or a table of
            words (npz).
        prefix: what is before the keys of the network in the file; None finds it.
        fresh: delete an earlier run in `out`.

    Returns:
        Figures of the import, also written to metrics.json.

    Raises:
        InputError: no such family, a file with code in it, keys that are missing, left over or of
            another shape, classes that do not fit, or a directory that holds something else.
    """
    known = family_named(family)
    if license is not None and not license.strip():
        raise InputError("--license: expected a name such as Apache-2.0, got an empty one")
    recipe = ImportRecipe(
        family=family, license=license or known.license, classes=classes, prefix=prefix
    )
    parts = [*named("weights", file), *named("text", text)]
    if (done := resumed(out, recipe, parts, fresh)) is not None:
        return done
    keys = network_of(read_published(file, known.source), known, prefix)
    try:
        found = known.convert(keys)
    except ValidationError as error:  # sizes of the file that no student can have
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        keys.refuse(f"{where} {str(first['input'])[:100]}: {first['msg']}")
    keys.check()
    if text is not None:
        chosen: Classes | None = text_classes(found, known, text, classes)
    else:
        chosen = head_classes(found, classes, file)
    student = _student(found, chosen, file)
    figures = _figures(student, found, known, recipe.license, keys.left_out)
    claim(out, recipe, parts, fresh)
    space, words = (chosen.space, chosen.text) if chosen else (NO_CLASSES, None)
    finish(student, space, recipe, figures, out, words, license=recipe.license)
    return figures


def _student(found: Imported, classes: Classes | None, file: Path) -> Student:
    """The student with all tensors; without classes its classifier answers 0."""
    state = dict(found.state)
    check_weights(state, file)
    count = len(classes.space) if classes else 1
    with torch.device("meta"):
        width = Student(found.config, count).network.feature_channels
    head: tuple[Tensor, Tensor] = (torch.zeros(count, width), torch.zeros(count))
    if classes:
        head = classes.weight, classes.bias
    state[_WEIGHT], state[_BIAS] = head
    return load_student(found.config, count, state, file)


def _figures(
    student: Student, found: Imported, family: Family, license: str, left_out: list[str]
) -> dict[str, Any]:
    outputs = 0 if found.head is None else len(found.head.weight)
    return {
        "imported": family.title,
        "license": license,
        "source": family.source,
        "parameters": sum(p.numel() for p in student.parameters()),
        "outputs": outputs,
        "left_out": left_out,
    }
