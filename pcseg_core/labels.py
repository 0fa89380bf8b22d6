# SPDX-License-Identifier: Apache-2.0
"""Label spaces: named, colored classes, and groupings from one space into another."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from pcseg_core.config import read_yaml
from pcseg_core.errors import InputError

IGNORE = -1
"""Label of a point without a class, in every array of this library."""

WIRE_UNLABELED = 65535
"""The same in ROS messages, in the uint32 field `label` of a cloud."""

UNKNOWN, STATIC, MOVING = 0, 1, 2
"""Values that tell whether a point moves, in every array and in the field `moving` of a cloud."""

MAX_CLASSES = 4096

_FOLDER = Path(__file__).parent / "label_spaces"

Int64: TypeAlias = npt.NDArray[np.int64]
Groupings: TypeAlias = dict[str, dict[str, tuple[str, ...]]]


@dataclass(frozen=True)
class LabelClass:
    """One class.

    Attributes:
        id: 0-based position in its space.
        name: unique in its space.
        color: red, green, blue, each 0 to 255.
        synonyms: other words for the class, used as text prompts.
    """

    id: int
    name: str
    color: tuple[int, int, int]
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelSpace:
    """Classes with ids 0 to C-1, their raw ids in data sets, and groupings into other spaces.

    Attributes:
        name: for example "street".
        classes: in the order of their ids.
        raw_to_id: raw id in the data set's files -> class id, or -1 for ignored ids.
        groupings: destination space -> class name there -> names of classes of this space.
    """

    name: str
    classes: tuple[LabelClass, ...]
    raw_to_id: dict[int, int] = field(default_factory=dict, compare=False)
    groupings: Groupings = field(default_factory=dict, compare=False)

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> LabelSpace:
        """Load a space of the package by name, or any space by the path of its YAML file.

        Raises:
            InputError: no such space or file, or the file is not a valid label space.
        """
        text = os.fspath(source)
        if text in available():
            return _load_file(_FOLDER / f"{text}.yaml")
        path = Path(text)
        if path.suffix not in (".yaml", ".yml") and not path.exists():
            raise InputError(
                f"no label space '{text}': expected one of {', '.join(available())}, or the path "
                "of a .yaml file"
            )
        return _parse(read_yaml(path), str(path))

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> LabelSpace:
        """Build a space from the output of `to_dict` or the content of a YAML file."""
        return _parse(content, "label space")

    def to_dict(self) -> dict[str, Any]:
        """The space as plain values, in the layout of the YAML files."""
        classes = [
            {"name": c.name, "color": list(c.color), "synonyms": list(c.synonyms)}
            for c in self.classes
        ]
        raw = {
            raw_id: self.classes[id_].name if id_ >= 0 else None
            for raw_id, id_ in self.raw_to_id.items()
        }
        groupings = {
            space: {name: list(members) for name, members in groups.items()}
            for space, groups in self.groupings.items()
        }
        return {"name": self.name, "classes": classes, "raw_ids": raw, "groupings": groupings}

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in the order of their ids."""
        return tuple(c.name for c in self.classes)

    @property
    def palette(self) -> npt.NDArray[np.uint8]:
        """(C, 3) uint8 colors in the order of the ids."""
        return np.array([c.color for c in self.classes], dtype=np.uint8).reshape(-1, 3)

    def index(self, name: str) -> int:
        """Id of a class by name.

        Raises:
            InputError: the space has no such class.
        """
        if name not in self.names:
            known = ", ".join(self.names)
            raise InputError(f"label space '{self.name}' has no class '{name}'; it has: {known}")
        return self.names.index(name)

    def from_raw(self, raw: npt.ArrayLike) -> npt.NDArray[np.int16]:
        """Class ids (int16, -1 ignored) of raw ids of a data set, any shape.

        Raw ids that the space does not list are ignored. Remove instance numbers first
        (SemanticKITTI: the lower 16 bits are the class).
        """
        table = np.full(1 << 16, IGNORE, dtype=np.int16)
        for raw_id, class_id in self.raw_to_id.items():
            table[raw_id] = class_id
        values = np.asarray(raw).astype(np.int64, copy=False)
        inside = (values >= 0) & (values < len(table))
        return np.where(inside, table[np.where(inside, values, 0)], np.int16(IGNORE))

    def colorize(self, labels: npt.ArrayLike, ignored: tuple[int, int, int] = (0, 0, 0)) -> Any:
        """Colors (..., 3) uint8 of labels (...); ids outside the space get `ignored`."""
        ids = np.asarray(labels).astype(np.int64, copy=False)
        table = np.vstack([self.palette, np.array([ignored], dtype=np.uint8)])
        return table[np.where((ids >= 0) & (ids < len(self)), ids, len(self))]


NO_CLASSES = LabelSpace("pretrained", (LabelClass(0, "unlabeled", (160, 160, 160)),))
"""Label space of a pretrained network, which has no classes: it labels all points the same."""


def available() -> tuple[str, ...]:
    """Names of the label spaces of the package."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def grouping(src: LabelSpace, dst: LabelSpace) -> Int64:
    """Class ids of `dst`, (len(src),) int64, for the classes of `src`; -1 for classes without one.

    Uses the grouping of `src` for `dst`. Without one, it chains two groupings over one space in
    between, such as "street".

    Raises:
        InputError: no grouping leads from `src` to `dst`, or one names an unknown class.
    """
    if src.names == dst.names:
        return np.arange(len(src), dtype=np.int64)
    if dst.name in src.groupings:
        return _direct(src, dst)
    for name in src.groupings:
        middle = LabelSpace.load(name) if name in available() else None
        if middle is not None and dst.name in middle.groupings:
            return regroup(_direct(src, middle), _direct(middle, dst))
    known = ", ".join(src.groupings) or "none"
    raise InputError(
        f"no grouping from label space '{src.name}' into '{dst.name}' (it has: {known}); add one "
        f"under 'groupings: {dst.name}:' in the YAML file of '{src.name}'"
    )


def regroup(labels: npt.ArrayLike, table: Int64) -> Int64:
    """Map labels of any shape through a table from `grouping`; ids outside it become -1."""
    ids = np.asarray(labels).astype(np.int64, copy=False)
    padded = np.append(np.asarray(table, dtype=np.int64), IGNORE)
    return padded[np.where((ids >= 0) & (ids < len(table)), ids, len(table))]


def group_probabilities(probabilities: np.ndarray, groups: np.ndarray, classes: int) -> np.ndarray:
    """Add up (C_src, h, w) probabilities into (C, h, w); what maps to IGNORE is left out."""
    grouped = np.zeros((classes, *probabilities.shape[1:]), np.float32)
    for source, target in enumerate(groups):
        if target != IGNORE:
            grouped[target] += probabilities[source]
    return grouped


class LabeledSample(Protocol):
    """The part of `pcseg_core.data.Sample` that `truth_of` reads."""

    @property
    def name(self) -> str: ...

    @property
    def cloud(self) -> Sized: ...

    @property
    def labels(self) -> npt.NDArray[np.int16] | None: ...

    @property
    def label_space(self) -> LabelSpace | None: ...


def truth_of(sample: LabeledSample, space: LabelSpace) -> Int64:
    """Labels (N,) of a sample in another label space, -1 for classes without a group there.

    Raises:
        InputError: the sample has no labels, or not one per point.
    """
    if sample.labels is None or sample.label_space is None:
        raise InputError(f"{sample.name}: carries no labels; expected a labeled sweep")
    if len(sample.labels) != len(sample.cloud):
        raise InputError(
            f"{sample.name}: {len(sample.labels)} labels for {len(sample.cloud)} points"
        )
    return regroup(sample.labels, grouping(sample.label_space, space))


def to_wire(labels: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """Labels as the uint32 field `label` of a cloud: -1 becomes 65535."""
    ids = np.asarray(labels)
    return np.where(ids < 0, np.uint32(WIRE_UNLABELED), ids.astype(np.uint32))


def from_wire(values: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Labels (int32, -1 unlabeled) from the field `label` of a cloud."""
    ids = np.asarray(values).astype(np.int64, copy=False)
    return np.where(ids == WIRE_UNLABELED, IGNORE, ids).astype(np.int32)


def _direct(src: LabelSpace, dst: LabelSpace) -> Int64:
    table = np.full(len(src), IGNORE, dtype=np.int64)
    for target, members in src.groupings[dst.name].items():
        for member in members:
            table[src.index(member)] = dst.index(target)
    return table


@functools.cache
def _load_file(path: Path) -> LabelSpace:
    return _parse(read_yaml(path), path.name)


def _parse(content: dict[str, Any], source: str) -> LabelSpace:
    unknown = set(content) - {"name", "description", "classes", "raw_ids", "groupings"}
    if unknown:
        raise InputError(f"{source}: unknown keys {sorted(map(str, unknown))}")
    entries = content.get("classes")
    if not isinstance(content.get("name"), str) or not isinstance(entries, list) or not entries:
        raise InputError(f"{source}: a label space needs 'name' and a list of 'classes'")
    if len(entries) > MAX_CLASSES:
        raise InputError(f"{source}: {len(entries)} classes, expected at most {MAX_CLASSES}")
    classes = tuple(_parse_class(i, entry, source) for i, entry in enumerate(entries))
    names = [c.name for c in classes]
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise InputError(f"{source}: class names must differ, found twice: {', '.join(repeated)}")
    return LabelSpace(
        name=content["name"],
        classes=classes,
        raw_to_id=_parse_raw_ids(content.get("raw_ids") or {}, names, source),
        groupings=_parse_groupings(content.get("groupings") or {}, names, source),
    )


def _parse_class(id_: int, entry: Any, source: str) -> LabelClass:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise InputError(f"{source}: class {id_} needs a 'name', found {entry!r}")
    unknown = set(entry) - {"name", "color", "synonyms"}
    if unknown:
        listed = sorted(map(str, unknown))
        raise InputError(f"{source}: class '{entry['name']}' has unknown keys {listed}")
    color = entry.get("color")
    if not (
        isinstance(color, (list, tuple))
        and len(color) == 3
        and all(isinstance(value, int) and 0 <= value <= 255 for value in color)
    ):
        raise InputError(
            f"{source}: class '{entry['name']}': 'color' must be [red, green, blue] from 0 to 255, "
            f"found {color!r}"
        )
    words = entry.get("synonyms") or ()
    if not isinstance(words, (list, tuple)):
        raise InputError(
            f"{source}: class '{entry['name']}': 'synonyms' must be a list of words, found "
            f"{words!r}"
        )
    synonyms = tuple(str(word) for word in words)
    return LabelClass(id_, entry["name"], (color[0], color[1], color[2]), synonyms)


def _parse_raw_ids(content: Any, names: list[str], source: str) -> dict[int, int]:
    """Raw id -> class id, from a mapping of raw ids to class names (null: ignored)."""
    if not isinstance(content, dict):
        raise InputError(f"{source}: 'raw_ids' must map ids to class names, found {content!r}")
    result = {}
    for raw, name in content.items():
        if name is not None and name not in names:
            raise InputError(f"{source}: raw id {raw} names the class '{name}', which is not there")
        try:
            result[int(raw)] = IGNORE if name is None else names.index(name)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"{source}: raw id {raw!r} is not an integer") from error
    if any(not 0 <= raw < 1 << 16 for raw in result):
        raise InputError(f"{source}: raw ids must lie between 0 and 65535")
    return result


def _parse_groupings(content: Any, names: list[str], source: str) -> Groupings:
    nested = isinstance(content, dict) and all(
        isinstance(space, str)
        and isinstance(groups, dict)
        and all(isinstance(members, list) for members in groups.values())
        for space, groups in content.items()
    )
    if not nested:
        raise InputError(
            f"{source}: 'groupings' must map a space to its classes, and each to a list of classes"
        )
    result: Groupings = {}
    for space, groups in content.items():
        seen: set[str] = set()
        result[space] = {}
        for target, members in groups.items():
            for member in members:
                if member not in names or member in seen:
                    reason = "is given twice" if member in names else "is not one of its classes"
                    raise InputError(f"{source}: grouping '{space}': '{member}' {reason}")
                seen.add(member)
            result[space][target] = tuple(members)
    return result
