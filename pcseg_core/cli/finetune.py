# SPDX-License-Identifier: Apache-2.0
"""`pcseg finetune`: train a checkpoint on labeled sweeps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcseg_core.cli.options import Device, Out, Resume, Seed, Steps, adjusted, start_over
from pcseg_core.errors import InputError

if TYPE_CHECKING:
    from pcseg_core.checkpoint import CheckpointMeta
    from pcseg_core.data.sample import Sample
    from pcseg_core.labels import LabelSpace
    from pcseg_core.learning.dataset import TrainingSweep
    from pcseg_core.learning.finetune import FinetuneRecipe


def finetune(
    run: Annotated[Path, typer.Argument(help="Run directory or checkpoint to start from.")],
    sources: Annotated[
        list[str],
        typer.Argument(help="Labeled recordings: SemanticKITTI folders, bags, or reader:path."),
    ],
    out: Out,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Folder of .label files for the sweeps of SOURCES, such as `pcseg label` writes; "
            "for one source."
        ),
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Labeled recording of another place, to measure mIoU on.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Settings of the training (YAML), instead of the defaults.")
    ] = None,
    seed: Seed = None,
    steps: Steps = None,
    resume: Resume = True,
    label_space: Annotated[
        str | None,
        typer.Option(
            help="Label space to learn.  [default: that of RUN, or street after `pcseg pretrain`]"
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train a checkpoint on labeled sweeps.

    The last layer is new unless RUN has the same classes; it and the other layers have learning
    rates of their own. OUT is a checkpoint like that of `pcseg distill`. Interrupted runs resume:
    run the same command again.
    """
    from pcseg_core.checkpoint import load_checkpoint
    from pcseg_core.cli.probe import read
    from pcseg_core.learning.finetune import finetune as train
    from pcseg_core.learning.runs import claim

    if labels is not None and len(sources) > 1:
        raise InputError(f"--labels belongs to one source, got {len(sources)}; run one at a time")
    chosen = _recipe(recipe, seed, steps)
    meta = load_checkpoint(run)[1]
    space, reach = _label_space(label_space, meta), meta.student.get("max_range_m", 80.0)
    sweeps = [sweep for source in sources for sweep in read_sweeps(source, space, reach, labels)]
    scans = read(test, space, reach) if test else []
    if not resume:
        start_over(out)
    claim(out, chosen, [*sources, f"start:{run}", f"labels:{labels}", f"classes:{space.name}"])
    _summarize(train(run, sweeps, scans, space, chosen, out, device), out)


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


def read_sweeps(
    source: str, space: LabelSpace, reach: float, labels: Path | None = None
) -> list[TrainingSweep]:
    """The labeled sweeps of a source.

    Args:
        source: a recording.
        space: label space of the result.
        reach: points beyond are left out [m].
        labels: folder of .label files that replace the labels of the source.

    Raises:
        InputError: no labeled sweep.
    """
    from pcseg_core.cli.probe import open_labeled
    from pcseg_core.data import open_recording
    from pcseg_core.evaluation.external_labels import ExternalLabels
    from pcseg_core.learning.finetune import read_labeled

    recording = open_recording(source) if labels else open_labeled(source)
    external = ExternalLabels(labels, recording) if labels else None

    def relabel(index: int, sample: Sample) -> Sample:
        if external is None:
            return sample
        given = external.of(index, sample)
        return dataclasses.replace(sample, labels=given, label_space=external.space)

    found = list(read_labeled(recording, space, reach, relabel))
    if not found:
        raise InputError(f"{source}: none of its {len(recording)} sweeps has labels")
    return found


def _summarize(metrics: dict[str, Any], out: Path) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    spent = f"training {metrics['training_s']:.0f} s"
    console.print(f"{out}: {metrics['sweeps']} sweeps, {metrics['steps']} steps; {spent}")
    if "test" in metrics:
        console.print(f"mIoU {100 * metrics['test']['miou']:.1f} %")
    console.print(f"next: pcseg evaluate {out} --semantic-kitti DIR, or pcseg segment {out}")
