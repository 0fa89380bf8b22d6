# SPDX-License-Identifier: Apache-2.0
"""Options and steps that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from pcseg_core.errors import InputError

if TYPE_CHECKING:
    from pcseg_core.cluster.run import RayOptions
    from pcseg_core.learning.recipe import OptimizerConfig


def expanded(sources: list[str] | None) -> list[str] | None:
    """Callback of options: sources with patterns and lists replaced, see `expand_sources`."""
    if not sources:
        return sources
    from pcseg_core.data.source_list import expand_sources

    return expand_sources(sources)


Sources = Annotated[
    list[str],
    typer.Argument(
        help="Recordings: bags, or reader:path (kitti-raw:PATH, ...); 'drives/2026-*' for "
        "several, @FILE for a list of them, s3://BUCKET/PATH and other URLs.",
        callback=expanded,
    ),
]


def complete_recipe(incomplete: str) -> list[str]:
    """Recipes of the package, for the completion of shells."""
    from pcseg_core.recipes import available_recipes

    return [name for name in available_recipes() if name.startswith(incomplete)]


RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help="Recipe: a name from `pcseg recipe list`, or a YAML file.",
        autocompletion=complete_recipe,
    ),
]
_CLUSTER = "Cluster"
DEFAULT_RECIPE = "kitti"
"""Recipe of `pcseg distill` where none is given: streets, by ESPNetv2 of Cityscapes."""
SMALL_RECIPE = "small"
"""The same with --teacher-3d: a small student, by the 3D teacher alone."""
_SEED = "Seed of everything random."


def run_place(out: Path) -> Path:
    """Callback of --out: the folder, or the local copy of a run at a URL."""
    from pcseg_core.copies import RUN, local_copy

    return local_copy(out, RUN)


def cache_place(cache: Path | None) -> Path | None:
    """Callback of --cache: the folder, or the local copy of one at a URL, which can be written."""
    from pcseg_core import copies

    if cache is not None:
        cache = copies.local_copy(cache, copies.CACHE)
        copies.check(cache)
    return cache


Out = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER|URL",
        help="Run directory, new or to resume; s3://BUCKET/RUN and other URLs.",
        callback=run_place,
    ),
]
Seed = Annotated[int, typer.Option(min=0, help=_SEED)]
RecipeSeed = Annotated[
    int | None, typer.Option("--seed", min=0, help=_SEED, show_default="of the recipe")
]
Steps = Annotated[
    int | None,
    typer.Option(min=1, help="Optimizer steps, instead of the recipe's; rounds take no more."),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--fresh", help="Resume the run in OUT, or delete its files and start over."
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER|URL",
        help="Folder of prepared sweeps, to share between runs and machines.  [default: OUT/cache]",
        callback=cache_place,
    ),
]
Shards = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|URL",
        help="Stream the training from shards of labeled sweeps, which are written there once, "
        "instead of holding all sweeps in memory.",
    ),
]
TimeField = Annotated[
    str | None,
    typer.Option(
        help="Field with the time of each point, if its name is not a usual one; none reads no "
        "times."
    ),
]
MaxEntropy = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="Points whose classes have a higher entropy, 0 to 1, become unlabeled; 1 labels all.",
    ),
]


def installed(trackers: list[str] | None) -> list[str]:
    """Callback of --log: the trackers, all of them known and installed."""
    from pcseg_core.learning.trackers import check_trackers

    check_trackers(trackers or [])
    return trackers or []


Log = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="csv|tensorboard|mlflow|wandb",
        help="Where to log the losses and the learning rate, in OUT/logs; repeat for several. "
        "logs/metrics.csv is always written.",
        callback=installed,
    ),
]
Device = Annotated[str, typer.Option(help="Where networks run: auto, cpu, cuda or cuda:N.")]
Backend = Annotated[
    str, typer.Option(envvar="PCSEG_BACKEND", help="Backend of the sparse convolutions.")
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="Write the figures as JSON; - is the standard output."
    ),
]
Picture = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw the result into a picture, such as PNG.")
]


Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Work on a Ray cluster: HOST:PORT, or the one of this machine, which is started if "
        "there is none.",
        rich_help_panel=_CLUSTER,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="With --ray: number of workers.  [default: one per GPU, else as many as fit]",
        rich_help_panel=_CLUSTER,
    ),
]
WorkerCpus = Annotated[
    int,
    typer.Option(
        "--worker-cpus", min=1, help="With --ray: cores of a worker.", rich_help_panel=_CLUSTER
    ),
]


Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        min=1,
        help="With --ray: processes of the cluster that share the training, as under torchrun.",
        rich_help_panel=_CLUSTER,
    ),
]


def training_options(
    address: str | None, processes: int | None, cpus: int, device: str
) -> RayOptions | None:
    """How a command trains on a cluster; None without --ray and --processes.

    Raises:
        InputError: one of them without the other.
    """
    if (address is None) != (processes is None):
        raise InputError("training on a cluster needs both: --ray and --processes N")
    return ray_options(address, processes, cpus, device)


def ray_options(
    address: str | None, workers: int | None, cpus: int, device: str = "auto"
) -> RayOptions | None:
    """How a command uses a cluster; None without --ray.

    Raises:
        InputError: options of --ray without it.
    """
    if address is None:
        if workers is not None or cpus != 1:
            raise InputError("--workers and --worker-cpus are for work on a cluster: give --ray")
        return None
    from pcseg_core.cluster.run import RayOptions

    return RayOptions(address, workers or 0, cpus, gpu=device != "cpu")


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
        rounds = getattr(recipe, "rounds", None)
        if rounds is not None and rounds.steps is not None:
            changes["rounds"] = rounds.model_copy(update={"steps": min(rounds.steps, steps)})
    return recipe.model_copy(update=changes)
