# SPDX-License-Identifier: Apache-2.0
"""Class names of a network and the classes of a label space that they stand for."""

from __future__ import annotations

import colorsys
import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.config import read_yaml
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE, LabelSpace, available
from pcseg_core.text_table import word_key

_ALIKE = 0.5  # ratio of difflib, from which a spelling is near

Words = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class NameMatch:
    """How the names of a network map to the classes of a label space.

    Attributes:
        names: of the network, in the order of its outputs.
        space: label space.
        table: (len(names),) int64 class of each name, IGNORE for none.
        unmapped: names without a class that `ignore` does not list either.
    """

    names: tuple[str, ...]
    space: LabelSpace
    table: npt.NDArray[np.int64]
    unmapped: tuple[str, ...]

    @classmethod
    def of(cls, space: LabelSpace) -> NameMatch:
        """The classes of a space, each by its own name."""
        return cls(space.names, space, np.arange(len(space)), ())

    def require_all(self, source: str) -> None:
        """Check that every name has a class or is ignored.

        Raises:
            InputError: some have none; the message lists them with the nearest classes, or no name
                has a class.
        """
        if self.unmapped:
            listed = "; ".join(f"'{n}'{self._hint(n)}" for n in self.unmapped[:20])
            more = f" and {len(self.unmapped) - 20} more" if len(self.unmapped) > 20 else ""
            raise InputError(
                f"{source}: {len(self.unmapped)} of {len(self.names)} classes have no class in "
                f"label space '{self.space.name}': {listed}{more}; give them one under 'mapping' "
                "(class: [names]), or list them under 'ignore' ('*' ignores all that are left)"
            )
        if (self.table == IGNORE).all():
            raise InputError(
                f"{source}: none of its classes ({', '.join(self.names[:10])}) is in label space "
                f"'{self.space.name}'; give 'mapping' or another 'label_space'"
            )

    def _hint(self, name: str) -> str:
        near = nearest(name, self.space)
        return f" (nearest: {', '.join(near)})" if near else ""


def nearest(name: str, space: LabelSpace, count: int = 2) -> list[str]:
    """The classes of a space whose name or synonym is spelled most like a name, best first."""
    key = word_key(name)
    tokens = set(re.findall(r"\w+", key))
    scores: dict[str, float] = {}
    for c in space.classes:
        for word in map(word_key, (c.name, *c.synonyms)):
            shared = len(tokens & set(word.split()))
            alike = difflib.SequenceMatcher(None, key, word).ratio()
            if shared or alike >= _ALIKE:
                scores[c.name] = max(scores.get(c.name, 0.0), shared + alike)
    return sorted(scores, key=lambda found: -scores[found])[:count]


def match_names(
    names: Sequence[str],
    space: LabelSpace,
    mapping: Words | None = None,
    ignore: Sequence[str] = (),
) -> NameMatch:
    """Find the class of each name.

    A name takes the class that `mapping` gives it, literally or by a pattern, else the class with
    its name or synonym. Case and separators do not count. Names such as "car, auto" are tried
    whole, then by their parts.

    Args:
        names: of the network.
        space: label space.
        mapping: class of the space -> names or patterns (`Lane Marking*`).
        ignore: names or patterns without a class.

    Raises:
        InputError: `mapping` has an unknown class, or a name that the network lacks.
    """
    patterns = [
        (word_key(p), space.index(c)) for c, group in (mapping or {}).items() for p in group
    ]
    keys = [word_key(name) for name in names]
    for pattern, _ in patterns:
        if not any(fnmatchcase(key, pattern) for key in keys):
            close = difflib.get_close_matches(pattern, keys, n=2)
            raise InputError(
                f"mapping: no class '{pattern}' among those of the teacher; nearest: "
                f"{', '.join(close) or ', '.join(names[:10])}"
            )
    exact = dict(patterns)
    own = {word_key(w): c.id for c in space.classes for w in c.synonyms}
    own |= {word_key(c.name): c.id for c in space.classes}
    table, unmapped = [], []
    for name, key in zip(names, keys):
        by_pattern = [c for p, c in patterns if fnmatchcase(key, p)]
        by_word = [own[part] for part in map(word_key, _parts(name)) if part in own]
        found = exact.get(key, (by_pattern or by_word or [IGNORE])[0])
        table.append(found)
        if found == IGNORE and not is_ignored(name, ignore):
            unmapped.append(name)
    return NameMatch(tuple(names), space, np.array(table, np.int64), tuple(unmapped))


def is_ignored(name: str, ignore: Sequence[str]) -> bool:
    """Whether a name is among names or patterns."""
    return any(fnmatchcase(word_key(name), word_key(p)) for p in ignore)


def own_space(names: Sequence[str], title: str, mapping: Words) -> LabelSpace:
    """The names of a network as a label space, with groupings into the spaces of the package.

    Args:
        names: of the network.
        title: name of the space.
        mapping: class -> names or patterns, for every space that has the class.

    Raises:
        InputError: `mapping` has a class that no space has, or a name that the network lacks.
    """
    spaces = [LabelSpace.load(name) for name in available()]
    for target in mapping:
        if not any(target in space.names for space in spaces):
            raise InputError(f"mapping: no label space ({', '.join(available())}) has '{target}'")
    groupings = {}
    for space in spaces:
        own = {target: group for target, group in mapping.items() if target in space.names}
        table = match_names(names, space, own).table
        groupings[space.name] = {
            c.name: [name for name, k in zip(names, table) if k == c.id] for c in space.classes
        }
    classes = [
        {"name": name, "color": _color(k), "synonyms": _parts(name)[1:]}
        for k, name in enumerate(names)
    ]
    return LabelSpace.from_dict({"name": title, "classes": classes, "groupings": groupings})


def _color(k: int) -> list[int]:
    """A color for a number, unlike those of the numbers near it."""
    rgb = colorsys.hsv_to_rgb(k * 0.618034 % 1.0, (0.6, 0.9)[k % 2], (0.95, 0.7, 0.5)[k % 3])
    return [round(255 * part) for part in rgb]


def _parts(name: str) -> list[str]:
    """A name such as "car, auto", and the words in it."""
    parts = [part.strip() for part in name.replace(";", ",").split(",") if part.strip()]
    return [name, *parts] if len(parts) > 1 else [name]


def read_mapping(source: Words | Path) -> dict[str, tuple[str, ...]]:
    """A mapping, or that of a YAML file: class -> names.

    Raises:
        InputError: the file is missing or has another form.
    """
    if not isinstance(source, Path):
        return {name: tuple(group) for name, group in source.items()}
    content = read_yaml(source)
    for name, group in content.items():
        if not isinstance(group, list) or not all(isinstance(entry, str) for entry in group):
            raise InputError(f"{source}: '{name}' must be a list of the teacher's class names")
    return {name: tuple(group) for name, group in content.items()}


def read_names(source: Sequence[str] | Path) -> tuple[str, ...]:
    """Class names in the order of ids, or those of a file; "" for ids that are not used.

    A text file has one name per line; a YAML or JSON file has `names`, a list or a mapping of ids
    to names, or is a label space with `classes`.

    Raises:
        InputError: the file is missing, has another form, or names twice the same.
    """
    if not isinstance(source, Path):
        return _unique(tuple(source), "names")
    if source.suffix not in (".yaml", ".yml", ".json"):
        try:
            text = source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"names {source}: not readable ({error}); one name per line") from None
        return _unique(tuple(line.strip() for line in text.splitlines() if line.strip()), source)
    content = read_yaml(source)
    found: Any = content.get("names", content.get("classes", content))
    if isinstance(found, dict) and all(str(key).isdigit() for key in found):
        by_id = {int(key): str(name) for key, name in found.items()}
        if max(by_id, default=0) < 1 << 16:
            found = [by_id.get(k, "") for k in range(max(by_id, default=-1) + 1)]
    if not isinstance(found, list) or not found:
        raise InputError(f"names {source}: expected 'names', a list or a mapping of ids to names")
    named = (entry.get("name") if isinstance(entry, dict) else entry for entry in found)
    return _unique(tuple(str(name) for name in named), source)


def _unique(names: tuple[str, ...], source: object) -> tuple[str, ...]:
    used = [name for name in names if name]
    twice = sorted(name for name, count in Counter(used).items() if count > 1)
    if not used or twice:
        raise InputError(f"{source}: {f'names given twice: {twice}' if used else 'no class names'}")
    return names
