# SPDX-License-Identifier: Apache-2.0
"""`pcseg finetune`: train a checkpoint on labeled sweeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcseg_core.cli.options import (
    Device,
    Log,
    Out,
    RecipeSeed,
    Resume,
    Steps,
    adjusted,
    described,
    expanded,
    run_once,
)
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
    log: Log = None,
    device: Device = "auto",
) -> None:
    """Train a checkpoint on labeled sweeps.

    The last layer is new unless RUN has the same classes; it and the other layers have learning
    rates of their own. OUT is a checkpoint like that of `pcseg distill`. Interrupted runs resume:
    run the same command again.
    """
    if labels is not None and len(sources) > 1:
        raise InputError(f"--labels belongs to one source, got {len(sources)}; run one at a time")
    if labels is not None and corrected is not None:
        raise InputError("give --labels or --corrected, not both")
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
        given = (labels, corrected)
        return _train(run, sources, given, test, chosen, label_space, out, device, fresh, log or ())

    _summarize(run_once(out, resume, command, train), out)


def _train(
    run: Path,
    sources: list[str],
    given: tuple[Path | None, Path | None],
    test: str | None,
    recipe: FinetuneRecipe,
    label_space: str | None,
    out: Path,
    device: str,
    fresh: bool,
    log: Sequence[str],
) -> dict[str, Any]:
    """Read the sweeps, claim the run directory and train; `given` labels, and corrected ones."""
    from pcseg_core.checkpoint import load_checkpoint
    from pcseg_core.cli.probe import open_labeled, read
    from pcseg_core.data import open_recording
    from pcseg_core.learning.finetune import finetune, read_corrected
    from pcseg_core.learning.run_folder import check_claim, claim, identity, named

    meta = load_checkpoint(run)[1]
    space, reach = _label_space(label_space, meta), meta.student.get("max_range_m", 80.0)
    parts = [*(identity(source, (out,)) for source in sources), *named("start", run)]
    labels, corrected = given
    parts += [*named("labels", labels), *named("corrected", corrected), f"classes {space.name}"]
    check_claim(out, recipe, parts, fresh)
    foreign = labels or corrected
    opened = [open_recording(source) if foreign else open_labeled(source) for source in sources]
    if corrected is not None:
        sweeps = read_corrected(corrected, dict(zip(sources, opened)), space, reach)
    else:
        sweeps = [s for one in opened for s in labeled_sweeps(one, space, reach, labels)]
    scans = read(test, space, reach) if test else []
    claim(out, recipe, parts, fresh)
    return finetune(run, sweeps, scans, space, recipe, out, device, recordings=opened, log=log)


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


def labeled_sweeps(
    recording: Recording, space: LabelSpace, reach: float, labels: Path | None = None
) -> list[TrainingSweep]:
    """The labeled sweeps of a recording.

    Args:
        recording: the sweeps.
        space: label space of the result.
        reach: points beyond are left out [m].
        labels: folder of .label files that replace the labels of the recording.

    Raises:
        InputError: no labeled sweep.
    """
    from pcseg_core.evaluation.external_labels import ExternalLabels
    from pcseg_core.learning.finetune import read_labeled

    external = ExternalLabels(labels, recording) if labels else None

    def relabel(index: int, sample: Sample) -> Sample:
        if external is None:
            return sample
        given = external.of(index, sample)
        return dataclasses.replace(sample, labels=given, label_space=external.space)

    found = list(read_labeled(recording, space, reach, relabel))
    if not found:
        raise InputError(f"{recording.name}: none of its {len(recording)} sweeps has labels")
    return found


def _summarize(metrics: dict[str, Any], out: Path) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    spent = f"training {metrics['training_s']:.0f} s"
    console.print(f"{out}: {metrics['sweeps']} sweeps, {metrics['steps']} steps; {spent}")
    if "test" in metrics:
        console.print(f"mIoU {100 * metrics['test']['miou']:.1f} %")
    console.print(f"next: pcseg evaluate {out} --semantic-kitti DIR, or pcseg segment {out}")
