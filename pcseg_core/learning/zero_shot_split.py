# SPDX-License-Identifier: Apache-2.0
"""Splits of a label space into seen and unseen classes, with their words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.config import Section, load_yaml
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.vision.text_space import TextSpace

_FOLDER = Path(__file__).parents[1] / "splits"


class Split(Section):
    """Seen and unseen classes."""

    label_space: str = Field(description="Label space, by name or path of its YAML file")
    unseen: tuple[str, ...] = Field(min_length=1, description="Classes that are never labeled")
    words: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Words of a class, by its name; by default its name and synonyms",
    )

    @property
    def space(self) -> LabelSpace:
        """The label space."""
        return LabelSpace.load(self.label_space)

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(C,) bool: which classes are unseen."""
        return np.isin(self.space.names, self.unseen)

    def class_words(self, text: TextSpace) -> dict[str, tuple[str, ...]]:
        """Class name -> its words that the text space knows, in the order of the ids.

        Raises:
            InputError: a class has no known word, or the split gives an unknown word.
        """
        found = {}
        for entry in self.space.classes:
            given = self.words.get(entry.name)
            words = given or (entry.name, *entry.synonyms)
            known = tuple(dict.fromkeys(word for word in words if text.known(word)))
            if not known or (given and len(known) < len(set(given))):
                missing = ", ".join(word for word in words if not text.known(word))
                raise InputError(
                    f"class '{entry.name}' of '{self.label_space}': the text space '{text.name}' "
                    f"does not know {missing}; give other words for it under 'words' in the split"
                )
            found[entry.name] = known
        return found


def available_splits() -> tuple[str, ...]:
    """Names of the splits of the package."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load_split(source: str) -> Split:
    """A split of the package by name, or any split by the path of its YAML file.

    Raises:
        InputError: no such split or file, unknown keys, or classes that its space lacks.
    """
    file = _FOLDER / f"{source}.yaml" if source in available_splits() else Path(source)
    if not file.is_file():
        known = ", ".join(available_splits())
        raise InputError(f"no split '{source}': expected one of {known}, or a .yaml file")
    split = load_yaml(file, Split)
    space = split.space
    for name in (*split.unseen, *split.words):
        space.index(name)
    if len(set(split.unseen)) >= len(space):
        raise InputError(f"{file}: all classes are unseen; leave one that is seen")
    return split
