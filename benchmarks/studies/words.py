# SPDX-License-Identifier: Apache-2.0
"""Word study: measure words as classes on labeled sweeps, each alone and all together.

python -m benchmarks.studies.words RUN --semantic-kitti DIR --words "vehicle: jeep, cab"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import typer
from pydantic import Field

from benchmarks.studies import study
from pcseg_core.cli.outputs import check_file
from pcseg_core.config import Section
from pcseg_core.data.semantic_kitti import SemanticKittiRecording
from pcseg_core.errors import InputError
from pcseg_core.files import write_atomic
from pcseg_core.labels import LabelSpace, grouping, regroup, truth_of
from pcseg_core.online.example_pictures import encoder_of, read_pictures
from pcseg_core.online.prompts import EVERYTHING_ELSE, PromptSet
from pcseg_core.online.prototypes import fit_prototypes
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.progress import bar

if TYPE_CHECKING:
    from rich.table import Table

    from pcseg_core.data import Recording, Sample

Progress = Callable[[int, int], None]
_ALONE = "alone"


class WordFigures(Section):
    """Figures of one word, or of one group of words, against the class that it should mean."""

    prompt: str = Field(description="Word, or name of the group")
    truth: str = Field(description="Class that the points should have")
    precision: float | None = Field(
        description="Share of the points labeled so that have that class; none without such points"
    )
    recall: float | None = Field(
        description="Share of the points of that class that are labeled so"
    )
    answered: int = Field(description="Points labeled so that have a true class")
    chance: float = Field(description="Share of that class among all points with a true class")

    @property
    def iou(self) -> float | None:
        """Intersection over union."""
        if not self.precision or not self.recall:
            return None if self.recall is None else 0.0
        return 1 / (1 / self.precision + 1 / self.recall - 1)


class WordReport(Section):
    """Figures of words on labeled sweeps."""

    checkpoint: str
    source: str
    label_space: str
    scans: int
    points: int = Field(description="Points with a true class")
    alone: list[WordFigures] = Field(
        description="Each word against everything else, one prompt list per word"
    )
    together: list[WordFigures] = Field(
        description="All groups and everything else, in one prompt list"
    )
    trained: list[WordFigures] = Field(description="The checkpoint's own classes, for comparison")

    def tables(self) -> list[Table]:
        """For the terminal."""
        titles = {
            "alone": "each word against everything else",
            "together": "all groups at once",
            "trained": "the checkpoint's own classes",
        }
        rows = {name: getattr(self, name) for name in titles}
        return [_table(title, rows[name]) for name, title in titles.items() if rows[name]]


def measure_words(
    segmenter: Segmenter,
    recording: Recording,
    groups: Sequence[str],
    space: str = "street",
    checkpoint: str = "",
    progress: Progress | None = None,
) -> WordReport:
    """Measure words on every labeled sweep of a recording.

    Args:
        segmenter: with a text head; its prompts are restored afterwards.
        recording: labeled sweeps.
        groups: prompts "class: word, word", where the words should mean that class of `space`.
        space: label space of the truth.
        checkpoint: name for the report.
        progress: called with (prompt lists done, prompt lists in all).

    Raises:
        InputError: a group is not a class of the space, a word is unknown, or nothing is labeled.
    """
    truth_space = LabelSpace.load(space)
    parsed = PromptSet.parse(groups)
    named = [prompt for prompt in parsed.prompts if prompt.words]
    expected = [truth_space.index(prompt.name) for prompt in named]
    samples, truth = _labeled(recording, truth_space)
    words = [(w, t) for prompt, t in zip(named, expected) for w in prompt.words]
    before = segmenter.prompts or None
    try:
        answers = {}
        for done, (word, _) in enumerate(words):
            answers[word] = _answers(segmenter, [f"{_ALONE}: {word}", "*"], samples) == 0
            if progress:
                progress(done + 1, len(words) + 1)
        prompts = [f"{p.name}: {', '.join(p.words)}" for p in named]
        together = _answers(segmenter, [*prompts, EVERYTHING_ELSE], samples)
        trained = _answers(segmenter, None, samples)
        own = regroup(trained, grouping(segmenter.label_space, truth_space))
    finally:
        segmenter.set_prompts(before)

    def row(prompt: str, class_id: int, answered: npt.NDArray[np.bool_]) -> WordFigures:
        return _figures(prompt, truth_space.names[class_id], answered, truth, class_id)

    return WordReport(
        checkpoint=checkpoint,
        source=recording.name,
        label_space=space,
        scans=len(samples),
        points=int((truth >= 0).sum()),
        alone=[row(word, t, answers[word]) for word, t in words],
        together=[row(p.name, t, together == i) for i, (p, t) in enumerate(zip(named, expected))],
        trained=[row(truth_space.names[t], t, own == t) for t in dict.fromkeys(expected)],
    )


def measure_classes(
    segmenter: Segmenter, recording: Recording, space: str = "street", checkpoint: str = ""
) -> WordReport:
    """Measure the current classes that `space` has too; the others count as everything else.

    The prompts of the segmenter are reset.

    Raises:
        InputError: none of them is a class of that space, or nothing is labeled.
    """
    truth_space = LabelSpace.load(space)
    names = segmenter.label_space.names
    shared = [(i, truth_space.index(n)) for i, n in enumerate(names) if n in truth_space.names]
    if not shared:
        raise InputError(
            f"none of the classes {', '.join(names)} is one of '{space}': "
            f"{', '.join(truth_space.names)}"
        )
    samples, truth = _labeled(recording, truth_space)
    labels = _labels(segmenter, samples)
    segmenter.set_prompts(None)
    own = regroup(_labels(segmenter, samples), grouping(segmenter.label_space, truth_space))
    rows = [_figures(names[i], truth_space.names[t], labels == i, truth, t) for i, t in shared]
    trained = [
        _figures(truth_space.names[t], truth_space.names[t], own == t, truth, t) for _, t in shared
    ]
    return WordReport(
        checkpoint=checkpoint,
        source=recording.name,
        label_space=space,
        scans=len(samples),
        points=int((truth >= 0).sum()),
        alone=[],
        together=rows,
        trained=trained,
    )


def _labeled(recording: Recording, space: LabelSpace) -> tuple[list[Sample], npt.NDArray[np.int64]]:
    """The sweeps with labels, and the true classes of their points, concatenated."""
    samples = [s for s in (recording[i] for i in range(len(recording))) if s.labels is not None]
    if not samples:
        raise InputError(f"{recording.name}: none of its {len(recording)} sweeps has labels")
    return samples, np.concatenate([truth_of(sample, space) for sample in samples])


def _labels(segmenter: Segmenter, samples: Sequence[Sample]) -> npt.NDArray[np.int32]:
    """Labels of the points of all samples, concatenated."""
    return np.concatenate([segmenter.segment(sample.cloud).labels for sample in samples])


def _answers(
    segmenter: Segmenter, prompts: Sequence[str] | None, samples: Sequence[Sample]
) -> npt.NDArray[np.int32]:
    segmenter.set_prompts(prompts)
    return _labels(segmenter, samples)


def _figures(
    prompt: str,
    name: str,
    answered: npt.NDArray[np.bool_],
    truth: npt.NDArray[np.int64],
    class_id: int,
) -> WordFigures:
    answered = answered & (truth >= 0)
    of_class = truth == class_id
    hits, count, total = (int(m.sum()) for m in (answered & of_class, answered, of_class))
    return WordFigures(
        prompt=prompt,
        truth=name,
        precision=hits / count if count else None,
        recall=hits / total if total else None,
        answered=count,
        chance=total / max(int((truth >= 0).sum()), 1),
    )


def _table(title: str, rows: Sequence[WordFigures]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("prompt", "should be", "precision", "recall", "IoU", "points", "chance"):
        table.add_column(column, justify="left" if column in ("prompt", "should be") else "right")
    for row in rows:
        shares = (row.precision, row.recall, row.iou)
        cells = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
        table.add_row(row.prompt, row.truth, *cells, str(row.answered), f"{100 * row.chance:.1f}")
    return table


def words_study(
    run: Annotated[Path, typer.Argument(help="Run directory of `pcseg distill`, or a checkpoint.")],
    semantic_kitti: Annotated[
        Path, typer.Option(help="Labeled sweeps: folder in SemanticKITTI layout.")
    ],
    words: Annotated[
        list[str] | None,
        typer.Option(
            help="A class and the words that should mean it, 'vehicle: minivan, jeep'; repeat for "
            "several classes."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--pictures",
            help="Classes by example pictures instead of words: FOLDER/CLASS/NAME.png, and "
            "NAME.mask.png where the class is not all of the picture.",
        ),
    ] = None,
    label_space: Annotated[str, typer.Option(help="Label space to measure in.")] = "street",
    json_: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this JSON file.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    backend: Annotated[
        str, typer.Option(envvar="PCSEG_BACKEND", help="Backend of the sparse convolutions.")
    ] = "auto",
) -> None:
    """Measure words, or example pictures, as classes on labeled sweeps.

    Each word is measured alone against everything else, and all groups together: precision, recall
    and IoU against the class that names the group.
    """
    if bool(words) == bool(images):
        raise InputError("give either --words 'vehicle: minivan, jeep' or --pictures FOLDER")
    if not semantic_kitti.is_dir():
        raise InputError(f"--semantic-kitti {semantic_kitti}: no such folder")
    check_file(json_, (".json",))
    segmenter = Segmenter.load(run, device=device, backend=backend)
    recording = SemanticKittiRecording(semantic_kitti, lidar_only=True)
    if images is not None:
        encoder = encoder_of(segmenter.meta.recipe)
        segmenter.set_prototypes(fit_prototypes(encoder, read_pictures(images)))
        report = measure_classes(segmenter, recording, label_space, str(run))
    else:
        with bar("measuring words") as progress:
            report = measure_words(
                segmenter, recording, words or [], label_space, str(run), progress
            )
    show(report)
    if json_:
        write_atomic(json_, report.model_dump_json(indent=1) + "\n")


def show(report: WordReport) -> None:
    """Print the tables."""
    from rich.console import Console

    console = Console()
    for table in report.tables():
        console.print(table)


app = study.command(words_study)

if __name__ == "__main__":
    app()
