# SPDX-License-Identifier: Apache-2.0
"""`pcseg finetune`: train a checkpoint on labeled sweeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcseg_core.cli.options import (
    Device,
    Log,
    Out,
    Processes,
    Ray,
    RecipeSeed,
    Resume,
    Shards,
    Steps,
    WorkerCpus,
    adjusted,
    expanded,
    training_options,
)
from pcseg_core.cli.training_run import described, run_once, trained
from pcseg_core.copies import shown
from pcseg_core.errors import InputError

if TYPE_CHECKING:
    from pcseg_core.checkpoint import CheckpointMeta
    from pcseg_core.data import Recording
    from pcseg_core.data.sample import Sample
    from pcseg_core.labels import LabelSpace
    from pcseg_core.learning.dataset import TrainingSweep
    from pcseg_core.learning.finetune import FinetuneRecipe


def finetune(
    run: Annotated[Path, typer.Argument(help="Run directory or checkpoint to start from.")],
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Labeled recordings: SemanticKITTI folders, bags, or reader:path; patterns and "
            "@FILE as for `pcseg distill`.",
            callback=expanded,
        ),
    ],
    out: Out,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Folder of .label files for the sweeps of SOURCES, such as `pcseg label` writes; "
            "for one source."
        ),
    ] = None,
    corrected: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Corrected labels of some sweeps of SOURCES, as for `pcseg distill`; only these "
            "sweeps are learned.",
        ),
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Labeled recording of another place, to measure mIoU on.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Settings of the training (YAML), instead of the defaults.")
    ] = None,
    seed: RecipeSeed = None,
    steps: Steps = None,
    resume: Resume = True,
    label_space: Annotated[
        str | None,
        typer.Option(
            help="Label space to learn.  [default: that of RUN, or street after `pcseg pretrain`]"
        ),
    ] = None,
    shards: Shards = None,
    log: Log = None,
    device: Device = "auto",
    ray: Ray = None,
    processes: Processes = None,
    worker_cpus: WorkerCpus = 1,
) -> None:
    """Train a checkpoint on labeled sweeps.

    The last layer is new unless RUN has the same classes; it and the other layers have learning
    rates of their own. OUT is a checkpoint like that of `pcseg distill`. Interrupted runs resume:
    run the same command again. Under torchrun the processes share the work.
    """
    if labels is not None and len(sources) > 1:
        raise InputError(f"--labels belongs to one source, got {len(sources)}; run one at a time")
    if labels is not None and corrected is not None:
        raise InputError("give --labels or --corrected, not both")
    cluster = training_options(ray, processes, worker_cpus, device)
    command = described(
        recipe,
        sources,
        out,
        None,
        tested=[test] if test else [],
        start=run,
        labels=labels,
        corrected=corrected,
        classes=label_space,
        seed=seed,
        steps=steps,
    )

    def train(fresh: bool) -> dict[str, Any]:
        chosen = _recipe(recipe, seed, steps)
        given = _Given(run, tuple(sources), labels, corrected, test, label_space, shards)
        work = partial(_train, given, chosen, out, device, log=log or ())
        return trained(work, out, fresh, cluster)

    _summarize(run_once(out, resume, command, train), out)


@dataclasses.dataclass(frozen=True)
class _Given:
    """Options of the command, by their names."""

    run: Path
    sources: tuple[str, ...]
    labels: Path | None
    corrected: Path | None
    test: str | None
    label_space: str | None
    shards: str | None


def _train(
    given: _Given, recipe: FinetuneRecipe, out: Path, device: str, fresh: bool, log: Sequence[str]
) -> dict[str, Any]:
    """Read the sweeps, claim the run directory and train."""
    from pcseg_core.checkpoint import load_checkpoint
    from pcseg_core.cli.probe import open_labeled, read
    from pcseg_core.data import open_recording
    from pcseg_core.learning.distributed import first_process_first, join
    from pcseg_core.learning.finetune import finetune
    from pcseg_core.learning.run_folder import check_claim, claim, is_first_process
    from pcseg_core.learning.runs import on_gpu, shard_place

    meta, fresh = load_checkpoint(given.run)[1], fresh and is_first_process()
    space, reach = _label_space(given.label_space, meta), meta.student.get("max_range_m", 80.0)
    foreign = given.labels or given.corrected
    join(on_gpu(device))
    with first_process_first():
        parts = _parts(given, out, space)
        check_claim(out, recipe, parts, fresh)
        opened = [open_recording(s) if foreign else open_labeled(s) for s in given.sources]
        scans = read(given.test, space, reach) if given.test and is_first_process() else []
        place = shard_place(out, given.shards, recipe, parts)
        if place is not None:
            claim(out, recipe, parts, fresh)
    sweeps = _sweeps(given, opened, space, reach, place)
    claim(out, recipe, parts, fresh and place is None)
    return finetune(
        given.run, sweeps, scans, space, recipe, out, device, recordings=opened, log=log
    )


def _parts(given: _Given, out: Path, space: LabelSpace) -> list[str]:
    """What identifies the run beside its recipe."""
    from pcseg_core.learning.run_folder import identity, named

    parts = [*(identity(s, (out,)) for s in given.sources), *named("start", given.run)]
    parts += [*named("labels", given.labels), *named("corrected", given.corrected)]
    return [*parts, f"classes {space.name}"]


def _sweeps(
    given: _Given, opened: list[Recording], space: LabelSpace, reach: float, shards: str | None
) -> Sequence[TrainingSweep]:
    """The labeled sweeps of the recordings.

    Raises:
        InputError: no labeled sweep, or wrong labels.
    """
    from pcseg_core.evaluation.external_labels import ExternalLabels
    from pcseg_core.learning.finetune import prepare_labeled, read_corrected

    if given.corrected is not None:
        named = dict(zip(given.sources, opened))
        return read_corrected(given.corrected, named, space, reach, shards)
    external = ExternalLabels(given.labels, opened[0]) if given.labels else None

    def relabel(index: int, sample: Sample) -> Sample:
        if external is None:
            return sample
        own = external.of(index, sample)
        return dataclasses.replace(sample, labels=own, label_space=external.space)

    return prepare_labeled(opened, space, reach, relabel, shards)


def _recipe(path: Path | None, seed: int | None, steps: int | None) -> FinetuneRecipe:
    from pcseg_core.config import load_yaml
    from pcseg_core.learning.finetune import FinetuneRecipe

    return adjusted(load_yaml(path, FinetuneRecipe) if path else FinetuneRecipe(), seed, steps)


def _label_space(name: str | None, meta: CheckpointMeta) -> LabelSpace:
    from pcseg_core.labels import LabelSpace

    own = LabelSpace.from_dict(meta.label_space)
    if name is None and len(own) > 1:
        return own
    return LabelSpace.load(name or "street")


def _summarize(metrics: dict[str, Any], out: Path) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    spent = f"training {metrics['training_s']:.0f} s"
    place = shown(out)
    console.print(f"{place}: {metrics['sweeps']} sweeps, {metrics['steps']} steps; {spent}")
    if "test" in metrics:
        console.print(f"mIoU {100 * metrics['test']['miou']:.1f} %")
    console.print(f"next: pcseg evaluate {place} --semantic-kitti DIR, or pcseg segment {place}")
