# SPDX-License-Identifier: Apache-2.0
"""Class maps: files that give each class of a checkpoint a class, or a cost, of another program."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.config import read_yaml
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace

_FOLDER = Path(__file__).parents[1] / "class_maps"

AUTOWARE_CLASSES = (
    "CAR",
    "TRUCK",
    "BUS",
    "MOTORCYCLE",
    "BICYCLE",
    "PEDESTRIAN",
    "ANIMAL",
    "HAZARD",
    "FLAT_SURFACE",
    "STRUCTURE",
    "VEGETATION",
    "NOISE",
)
"""Names of Autoware's PointCloudClassification; the position is the id."""

AUTOWARE_INVALID = 255
"""Id of INVALID, the class of points without a class."""


def autoware_ids(file: str | os.PathLike[str], space: LabelSpace) -> npt.NDArray[np.uint8]:
    """Ids of Autoware for the classes of a space.

    Args:
        file: YAML file with a name of `AUTOWARE_CLASSES`, or INVALID, for every class of the space;
            "" is the file of the package for the classes of the label space "street".
        space: classes of the checkpoint.

    Returns:
        (C + 1,) uint8; the last one, which the label -1 reads, is that of unlabeled points.

    Raises:
        InputError: the file cannot be read, names a class that the space lacks or one that
            Autoware lacks, or leaves out a class of the space.
    """
    source, values = read_class_map(file, "autoware_street.yaml", space)
    ids = {name: number for number, name in enumerate(AUTOWARE_CLASSES)}
    ids["INVALID"] = AUTOWARE_INVALID
    for name, value in values.items():
        if value not in ids:
            raise InputError(
                f"{source}: '{name}' is {value!r:.80}; expected one of {', '.join(ids)}"
            )
    chosen = [ids[values[name]] for name in space.names]
    return np.array([*chosen, AUTOWARE_INVALID], np.uint8)


def read_class_map(
    file: str | os.PathLike[str], default: str, space: LabelSpace, others: Collection[str] = ()
) -> tuple[str, dict[str, Any]]:
    """Name of a class map for messages, and its value for each class of a space.

    Args:
        file: path of the file; "" takes `default`.
        default: name of a file of the package.
        space: classes of the checkpoint.
        others: further names that the file may have.

    Raises:
        InputError: the file cannot be read, or its classes are not those of the space.
    """
    path = Path(file) if str(file) else _FOLDER / default
    source = f"class map {path}"
    values = read_yaml(path)
    require_classes([name for name in values if name not in others], space, source)
    missing = [name for name in space.names if name not in values]
    if missing:
        raise InputError(
            f"{source}: the class '{missing[0]}' of the checkpoint is missing; add it, or give a "
            "file for the classes of this checkpoint"
        )
    return source, values


def require_classes(names: Iterable[object], space: LabelSpace, source: str) -> None:
    """Check that names are classes of a space.

    Raises:
        InputError: a class that the space lacks; the message lists the classes that there are.
    """
    for name in names:
        if name not in space.names:
            raise InputError(
                f"{source}: unknown class '{name!s:.80}'; expected one of {', '.join(space.names)}"
            )
