# SPDX-License-Identifier: Apache-2.0
"""Parts of a recipe that can be left out, and the recipes of a study of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pcseg_core.config import Section
from pcseg_core.learning.recipe import Recipe
from pcseg_core.vision.pixel_classes import TeacherConfig
from pcseg_core.vision.teachers.several import SeveralConfig

ALL, NONE = "all parts", "no part"
CARRYING, SEE_THROUGH, INTENSITY, ROUNDS = "carrying", "see-through test", "intensity", "rounds"


@dataclass(frozen=True)
class Part:
    """Keys of a recipe that belong together.

    Attributes:
        off: dotted key -> its value without the part, or a function that gives it from the value
            with the part.
        needs: a part without which this one changes nothing, or "". Such a part has no row alone.
    """

    off: Mapping[str, object]
    needs: str = ""

    def without(self, recipe: Recipe) -> Recipe:
        """The recipe with the part switched off."""
        for key, off in self.off.items():
            value = off(_value(recipe, key)) if callable(off) else off
            recipe = _replaced(recipe, key, value)
        return recipe


def _first_teacher(teacher: TeacherConfig | None) -> TeacherConfig | None:
    return teacher.teachers[0] if isinstance(teacher, SeveralConfig) else teacher


def _without_intensity(inputs: tuple[str, ...]) -> tuple[str, ...]:
    """Inputs of a student without the intensity, if any others remain."""
    return tuple(name for name in inputs if name != "intensity") or inputs


PARTS: dict[str, Part] = {
    "several teachers": Part({"teacher": _first_teacher}),
    "3D teacher": Part({"teacher_3d": None}),
    "class priors": Part({"labels.priors": {}}),
    SEE_THROUGH: Part({"labels.see_through.patch_px": 0}),
    "shapes": Part({"labels.shape.weight": 0.0}),
    CARRYING: Part({"labels.propagate_voxel_m": 0.0, "labels.consolidation.voxel_m": 0.0}),
    "range and angle": Part(
        {"labels.full_range_m": 0.0, "labels.full_angle_deg": 0.0}, needs=CARRYING
    ),
    "noise of looks": Part(
        {
            "labels.consolidation.estimate_noise": False,
            "labels.consolidation.look_deg": 0.0,
            "labels.consolidation.look_exponent": 1.0,
            "labels.consolidation.own_weight": 1.0,
        },
        needs=CARRYING,
    ),
    "carried count less": Part({"labels.carried_confidence": 1.0}, needs=CARRYING),
    "class quota": Part({"loss.class_quota": 0.0}),
    "class balance": Part({"loss.class_balance": 0.0}),
    "range balance": Part({"loss.range_balance": 0.0}),
    "loss for noise": Part({"loss.generalized": 0.0, "loss.reverse": 0.0, "loss.bootstrap": 0.0}),
    "thinning": Part({"augment.thin_m": 0.0}),
    "fewer beams": Part({"augment.coarse": 0.0}),
    "stretching": Part({"augment.stretch": 0.0}),
    "other intensities": Part(
        {
            "augment.intensity_offset": 0.0,
            "augment.intensity_gamma": 0.0,
            "augment.intensity_curve": 0.0,
            "augment.intensity_noise": 0.0,
            "augment.intensity_drop": 0.0,
        },
        needs=INTENSITY,
    ),
    "corruptions": Part({"augment.corrupt": {}}),
    "PolarMix": Part({"mix.polar": 0.0}),
    "LaserMix": Part({"mix.laser": 0.0}),
    "things": Part({"mix.things": 0}),
    "self-training": Part({"self_training": None}),
    ROUNDS: Part({"rounds.count": 0}),
    "network beside": Part({"rounds.beside": None}, needs=ROUNDS),
    "split ground": Part({"rounds.split_ground": False}, needs=ROUNDS),
    "start": Part({"start": None}),
    "simulated sweeps": Part({"simulated.towns": 0}),
    INTENSITY: Part({"student.inputs": _without_intensity}),
}


def switched_on(recipe: Recipe) -> list[str]:
    """Names of the parts that a recipe has, without those that have no effect in it."""
    on = [name for name, part in PARTS.items() if part.without(recipe) != recipe]
    return [name for name in on if not PARTS[name].needs or PARTS[name].needs in on]


def without(recipe: Recipe, names: Collection[str]) -> Recipe:
    """The recipe with the parts of these names switched off."""
    for name in names:
        recipe = PARTS[name].without(recipe)
    return recipe


def uncorrected(recipe: Recipe, names: Collection[str]) -> Recipe:
    """The recipe without those of the parts that change the class of a label.

    Carrying adds labels and the see-through test removes some; both stay.
    """

    def corrects(name: str) -> bool:
        labels = any(key == "teacher" or key.startswith("labels.") for key in PARTS[name].off)
        return labels and name not in (CARRYING, SEE_THROUGH)

    return without(recipe, [name for name in names if corrects(name)])


def row_without(part: str) -> str:
    """Name of the row that leaves a part out."""
    return f"without {part}"


def row_alone(part: str) -> str:
    """Name of the row that has no other part."""
    return f"{part} alone"


def variants(recipe: Recipe, names: Sequence[str]) -> dict[str, Recipe]:
    """Recipes by the name of their row: all parts, none, each one left out, and each one alone.

    Args:
        recipe: with all parts.
        names: of the parts. What else the recipe has stays in all rows.
    """
    found = {ALL: recipe, NONE: without(recipe, names)}
    found |= {row_without(part): without(recipe, [part]) for part in names}
    for part in names:
        if PARTS[part].needs not in names:
            found[row_alone(part)] = without(recipe, [name for name in names if name != part])
    return found


def _value(section: Section, key: str) -> Any:
    head, _, rest = key.partition(".")
    return _value(getattr(section, head), rest) if rest else getattr(section, head)


def _replaced(section: Any, key: str, value: object) -> Any:
    head, _, rest = key.partition(".")
    if rest:
        value = _replaced(getattr(section, head), rest, value)
    return section.model_copy(update={head: value})
