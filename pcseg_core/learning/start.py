# SPDX-License-Identifier: Apache-2.0
"""Start from the student of another run: a segmenter, or a pretrained network without classes."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from pcseg_core.checkpoint import CheckpointMeta, load_checkpoint
from pcseg_core.errors import InputError
from pcseg_core.labels import NO_CLASSES, LabelSpace
from pcseg_core.learning.recipe import Recipe
from pcseg_core.models.student import Student, StudentConfig, stored_config
from pcseg_core.progress import note

_NETWORK, _CLASSIFIER = "network.", "network.classifier."
_ARCHITECTURE = (
    "network",
    "depth",
    "width",
    "planes",
    "stem_kernel",
    "stem_convs",
    "inputs",
    "voxels",
    "rounding",
    "origin",
    "reduce",
)
_SECTIONS = ("waffleiron", "ptv3")  # of one family of networks


def check_start(run: Path, recipe: Recipe, space: LabelSpace) -> str | None:
    """Check that a run can start from another one.

    Args:
        run: the run directory or checkpoint to start from.
        recipe: of the new run.
        space: its label space.

    Returns:
        The license of the run's weights, where they were imported.

    Raises:
        InputError: no checkpoint there, another architecture, or other classes.
    """
    _, meta = load_checkpoint(run)
    pretrained = meta.label_space["name"] == NO_CLASSES.name
    if not pretrained and meta.label_space["name"] != space.name:
        raise InputError(
            f"--start {run} has the classes '{meta.label_space['name']}', the recipe "
            f"'{space.name}'; start from a run of the same label space"
        )
    if pretrained and recipe.optimizer.heads_only:
        raise InputError(
            f"optimizer.heads_only keeps the classes of --start {run}, which is pretrained and "
            "knows none; leave it out"
        )
    there = _architecture(stored_config(meta.student, run))
    here = _architecture(recipe.student)
    different = [
        f"{name}: {there[name]} there, {here[name]} here"
        for name in there
        if there[name] != here[name]
    ]
    if different:
        raise InputError(
            f"--start {run} is another network (student.{'; student.'.join(different)}); use its "
            "student section in the recipe"
        )
    return meta.license


def _architecture(config: StudentConfig) -> dict[str, object]:
    """What two networks must share, by dotted names."""
    values = {name: getattr(config, name) for name in _ARCHITECTURE}
    for section in _SECTIONS:
        values |= {f"{section}.{name}": value for name, value in getattr(config, section)}
    return values


def take_over(student: Student, run: Path) -> None:
    """Copy the tensors of a run that `check_start` accepted; print which.

    The backbone is always copied. The classifier and the other heads are copied if they have the
    same shape and the run is not pretrained.
    """
    state, meta = load_checkpoint(run)
    own = student.state_dict()
    taken = {k: v for k, v in _offered(state, meta).items() if k in own and own[k].shape == v.shape}
    student.load_state_dict({**own, **taken})
    new = [part for part in _parts(own) if part not in _parts(taken)]
    told = f"; new: {', '.join(new)}" if new else ""
    note(f"start: {len(taken)} tensors of {run} ({', '.join(_parts(taken))}){told}")


def _offered(state: dict[str, Tensor], meta: CheckpointMeta) -> dict[str, Tensor]:
    if meta.label_space["name"] != NO_CLASSES.name:
        return state
    return {k: v for k, v in state.items() if _part_of(k) == "backbone"}


def _parts(state: dict[str, Tensor]) -> list[str]:
    """Parts of a student that have tensors: backbone, classifier, regression, text_head."""
    return list(dict.fromkeys(map(_part_of, state)))


def _part_of(name: str) -> str:
    if name.startswith(_CLASSIFIER):
        return "classifier"
    return "backbone" if name.startswith(_NETWORK) else name.partition(".")[0]
