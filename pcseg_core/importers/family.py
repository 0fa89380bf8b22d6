# SPDX-License-Identifier: Apache-2.0
"""What a family of published 3D networks is, and a network of it as a student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from pcseg_core.importers.published import Keys
from pcseg_core.models.student import StudentConfig


@dataclass(frozen=True, eq=False)
class Head:
    """The published layer from features to classes.

    Attributes:
        weight: (K, C) for features of C channels.
        bias: (K,).
        ignored: row of the class "ignored" that the training left out; None if all rows count.
    """

    weight: Tensor
    bias: Tensor
    ignored: int | None = None


@dataclass(frozen=True, eq=False)
class Imported:
    """A published network as a student.

    Attributes:
        config: of the student; `text_channels` is set by a text head.
        state: tensors of the student by name, without its classifier (`network.classifier.*`).
        head: classes of the file; None for a pretrained network.
        classes: label space of `head`, where the family knows it; None where the user names it.
    """

    config: StudentConfig
    state: dict[str, Tensor]
    head: Head | None = None
    classes: str | None = None


@dataclass(frozen=True)
class Family:
    """Networks of one layout.

    Attributes:
        name: of `pcseg import --as`.
        title: what the networks are.
        license: of the weights, an SPDX identifier where there is one.
        source: where the weights are published.
        probes: keys of which one is in every such network.
        convert: takes all tensors of the network; `Keys.check` is called afterwards.
        text: model of open_clip whose text space the features of a text head lie in.
    """

    name: str
    title: str
    license: str
    source: str
    probes: tuple[str, ...]
    convert: Callable[[Keys], Imported]
    text: Mapping[int, str] = field(default_factory=dict)
