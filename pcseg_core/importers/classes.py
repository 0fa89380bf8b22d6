# SPDX-License-Identifier: Apache-2.0
"""Classes of an imported network: rows of its published head, or words in its text space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pcseg_core.checkpoint import CheckpointText
from pcseg_core.errors import InputError
from pcseg_core.importers.family import Family, Imported
from pcseg_core.labels import LabelSpace
from pcseg_core.text_table import TextTable, unit_rows
from pcseg_core.vision.text_space import OpenClipText, TextSpace, table_of

DEFAULT_WORDS = "street"
"""Label space whose classes a network with a text head gets where none is given."""


@dataclass(frozen=True, eq=False)
class Classes:
    """The classifier of a run.

    Attributes:
        space: C classes.
        weight: (C, F) for F features.
        bias: (C,).
        text: words of the text head; None without it.
    """

    space: LabelSpace
    weight: Tensor
    bias: Tensor
    text: CheckpointText | None = None


def head_classes(found: Imported, name: str | None, file: Path) -> Classes | None:
    """The classes of the published head; None for a network without them.

    Args:
        found: the network.
        name: label space; None takes the one that the family knows.
        file: for messages.

    Raises:
        InputError: no head, or one with another number of classes.
    """
    head, name = found.head, name or found.classes
    if name is None:
        return None
    space = LabelSpace.load(name)
    if head is None:
        raise InputError(
            f"--classes {name}: {file} is a pretrained network without classes; leave --classes "
            "out and train classes with `pcseg finetune`"
        )
    rows = list(range(len(head.weight)))
    if head.ignored is not None and len(space) == len(rows) - 1:
        rows.remove(head.ignored)
    if len(space) != len(rows):
        ignored = "" if head.ignored is None else f" (row {head.ignored} may be 'ignored')"
        raise InputError(
            f"--classes {name} has {len(space)} classes, the head of {file} has {len(rows)} "
            f"outputs{ignored}; give the label space that it was trained on, in its order"
        )
    return Classes(space, head.weight[rows], head.bias[rows])


def text_classes(
    found: Imported, family: Family, source: Path, name: str | None, temperature: float = 0.07
) -> Classes:
    """Classes by the vectors of their words in the text space of the features.

    The logit of a class is <t_c, W h + b> / temperature: its largest is that of the cosines.

    Args:
        found: a network with a text head.
        family: knows the model of the text space.
        source: weights of its text encoder, or a table of words (npz).
        name: label space; None takes `DEFAULT_WORDS`.
        temperature: of the cosine classifier.

    Raises:
        InputError: no text head, another text encoder, or a word without a vector.
    """
    channels = found.config.text_channels
    if not channels:
        raise InputError(
            f"--text {source}: networks of the family '{family.name}' have no features in a text "
            "space; leave it out"
        )
    space = LabelSpace.load(name or DEFAULT_WORDS)
    words = {c.name: (c.name, *c.synonyms) for c in space.classes}
    table = _table(source, family, channels, [w for group in words.values() for w in group])
    vectors = unit_rows(np.stack([table.embed(group).mean(0) for group in words.values()]))
    rows = torch.from_numpy(vectors) / temperature
    weight, bias = found.state["text_head.weight"], found.state["text_head.bias"]
    text = CheckpointText(table, words, temperature, from_classes=False)
    return Classes(space, rows @ weight, rows @ bias, text)


def _table(source: Path, family: Family, channels: int, words: list[str]) -> TextTable:
    model = family.text[channels]
    if source.suffix == ".npz":
        table = TextTable.load(source)
    else:
        encoder: TextSpace = OpenClipText(model, source)
        table = table_of(encoder, words)
    if table.channels != channels:
        raise InputError(
            f"--text {source} has vectors of {table.channels} numbers, the features have "
            f"{channels}; give the weights of {model}, or a table of its words"
        )
    return table
