# SPDX-License-Identifier: Apache-2.0
"""Options and steps that the training commands share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from pcseg_core.files import claim_folder

if TYPE_CHECKING:
    from pcseg_core.learning.recipe import OptimizerConfig

Sources = Annotated[
    list[str], typer.Argument(help="Recordings: bags, or reader:path (kitti-raw:PATH, ...).")
]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help="Recipe: a name from `pcseg recipe list`, or a YAML file.",
    ),
]
DEFAULT_RECIPE = "kitti"
"""Recipe of `pcseg distill` where none is given: streets, by ESPNetv2 of Cityscapes."""
Out = Annotated[Path, typer.Option(help="Run directory, new or to resume.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed, instead of the recipe's.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimizer steps, instead of the recipe's.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--fresh", help="Resume the run in OUT, or delete its files and start over."
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(help="Folder of prepared sweeps, to share between runs.  [default: OUT/cache]"),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


class TrainingRecipe(Protocol):
    """Common part of all recipes."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """Steps and rates."""

    def model_copy(self: AnyRecipe, *, update: Mapping[str, Any] | None = None) -> AnyRecipe:
        """A copy with other values."""


AnyRecipe = TypeVar("AnyRecipe", bound=TrainingRecipe)


def adjusted(recipe: AnyRecipe, seed: int | None = None, steps: int | None = None) -> AnyRecipe:
    """The recipe with another seed and another number of optimizer steps, where given."""
    changes: dict[str, Any] = {}
    if seed is not None:
        changes["seed"] = seed
    if steps is not None:
        changes["optimizer"] = recipe.optimizer.model_copy(update={"steps": steps})
    return recipe.model_copy(update=changes)


def start_over(out: Path) -> None:
    """Delete the files of a run, for `--fresh`.

    Raises:
        InputError: `out` is not a run directory, or holds other files too. Nothing is deleted.
    """
    from pcseg_core.learning.runs import RUN

    claim_folder(out, RUN, fresh=True)
