# SPDX-License-Identifier: Apache-2.0
"""Several teachers at once: votes, weighted per class by agreement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE, LabelSpace, group_probabilities, grouping
from pcseg_core.vision.pixel_classes import PixelClasses, Teacher, TeacherConfig, load_teacher
from pcseg_core.vision.registry import Kind

_PRIOR_SHARE = 0.01  # share of the pixels that count as confirmed, for classes of few pixels


class SeveralConfig(TeacherConfig):
    """Teachers that vote."""

    name: Literal["several"] = "several"
    label_space: str = Field(
        "street", description="Label space of the result, into which those of the teachers group"
    )
    teachers: tuple[Teacher, ...] = Field(min_length=2, description="Teachers of any kind")
    votes: tuple[dict[str, float], ...] = Field(
        (),
        description="For each teacher: class of the label space -> factor on its vote, in place of "
        "1; {'*': 0.5} for all others",
    )

    @property
    def title(self) -> str:
        """See `TeacherConfig`."""
        return " and ".join(member.title for member in self.teachers)

    @property
    def identity(self) -> dict[str, Any]:
        """See `KindConfig`."""
        return {**super().identity, "teachers": [member.identity for member in self.teachers]}

    def relative_to(self, folder: Path) -> SeveralConfig:
        """See `KindConfig`."""
        found = tuple(member.relative_to(folder) for member in self.teachers)
        return self.model_copy(update={"teachers": found})


class Several:
    """Votes of teachers; `PixelClasses`.

    A teacher without a class does not vote against it: the probability that its own classes leave
    is spread over the classes that it lacks, as the others see them. A teacher's votes for a class
    weigh more the more of them, over the image, agree with the mean of all teachers. Features are
    those of the first teacher.

    Args:
        teachers: two or more.
        space: label space of the result.
        factors: (T, C) factors on the votes.

    Raises:
        InputError: a label space of a teacher does not group into `space`, or no teacher has a
            class of it.
    """

    def __init__(
        self,
        teachers: Sequence[PixelClasses],
        space: LabelSpace,
        factors: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self.teachers, self.label_space = tuple(teachers), space
        self.groups = [grouping(teacher.label_space, space) for teacher in teachers]
        shape = len(teachers), len(space)
        self.factors = torch.ones(shape) if factors is None else torch.from_numpy(factors)
        known = np.zeros(shape, bool)
        for row, groups in zip(known, self.groups):
            row[groups[groups != IGNORE]] = True
        self.known = torch.from_numpy(known)
        if not known.any():
            raise InputError(f"no teacher has a class of label space '{space.name}'")

    def probabilities(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `PixelClasses`; the map has the size of the largest."""
        classes = len(self.label_space)
        maps = [
            torch.from_numpy(group_probabilities(teacher.probabilities(image), groups, classes))
            for teacher, groups in zip(self.teachers, self.groups)
        ]
        size = max((found.shape[-2:] for found in maps), key=lambda s: s[0] * s[1])
        votes = torch.stack([_resized(found, size) for found in maps])
        votes = fill_unknown(votes, self.known)
        weights = agreement(votes) * self.factors
        scores = torch.einsum("tc,tchw->chw", weights, votes)
        mass = votes.sum(1).mean(0).clamp_max(1.0)  # the rest has none of the classes
        found: npt.NDArray[np.float32] = (scores / scores.sum(0).clamp_min(1e-9) * mass).numpy()
        return found

    def features(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `PixelClasses`."""
        return self.teachers[0].features(image)


def fill_unknown(votes: Tensor, known: Tensor) -> Tensor:
    """Give teachers a vote on the classes that they lack.

    Args:
        votes: (T, C, H, W) probabilities, 0 for classes that a teacher lacks.
        known: (T, C) whether a teacher has a class.

    Returns:
        (T, C, H, W): what a teacher's own classes leave, spread over the others in proportion to
        their mean vote of the teachers that have them; unchanged where these are 0.
    """
    counts = known.sum(0).clamp_min(1)[:, None, None]
    mean = votes.sum(0) / counts
    lacking = mean * (~known)[:, :, None, None]
    left = (1 - votes.sum(1, keepdim=True)).clamp_min(0)
    share = lacking / lacking.sum(1, keepdim=True).clamp_min(1e-9)
    # Never more than the others give, so that a pixel without any class stays one.
    return votes + torch.minimum(left * share, lacking.clamp_max(1.0))


def agreement(votes: Tensor) -> Tensor:
    """Weights of the teachers' votes, by agreement with the mean of all.

    Args:
        votes: (T, C, H, W) probabilities.

    Returns:
        (T, C) in 0..1: how much of a teacher's probability of a class the mean confirms where the
        teacher gives it, sum(v * mean) / sum(v * v); 1 for a class that it does not give.
    """
    mean = votes.mean(0, keepdim=True)
    prior = _PRIOR_SHARE * votes.shape[-2] * votes.shape[-1]
    confirmed, own = (votes * mean).sum((-2, -1)), (votes * votes).sum((-2, -1))
    return ((confirmed + prior) / (own + prior)).clamp_max(1.0)


def _resized(found: Tensor, size: tuple[int, ...]) -> Tensor:
    if found.shape[-2:] == size:
        return found
    return F.interpolate(found[None], tuple(size), mode="bilinear", align_corners=False)[0]


def vote_factors(
    votes: Sequence[dict[str, float]], teachers: int, space: LabelSpace
) -> npt.NDArray[np.float32]:
    """(T, C) factors of a configuration.

    Raises:
        InputError: another number of teachers, an unknown class or a negative factor.
    """
    factors = np.ones((teachers, len(space)), np.float32)
    if votes and len(votes) != teachers:
        raise InputError(f"votes: {len(votes)} entries for {teachers} teachers; expected one each")
    for row, given in zip(factors, votes):
        row[:] = given.get("*", 1.0)
        for name, factor in given.items():
            if name != "*":
                row[space.index(name)] = factor
    if not np.isfinite(factors).all() or factors.min() < 0 or not factors.any(0).all():
        raise InputError("votes: expected factors from 0, and one above 0 for every class")
    return factors


def _load(config: SeveralConfig, device: str) -> Several:
    space = LabelSpace.load(config.label_space)
    factors = vote_factors(config.votes, len(config.teachers), space)
    return Several([load_teacher(member, device) for member in config.teachers], space, factors)


KIND = Kind(SeveralConfig, _load, "several teachers, whose votes are weighted by agreement")
