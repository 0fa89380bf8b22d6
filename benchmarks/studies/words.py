# SPDX-License-Identifier: Apache-2.0
"""What words answer on labeled sweeps: each alone, and all together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.config import Section
from pcseg_core.errors import InputError
from pcseg_core.evaluation.evaluator import truth_of
from pcseg_core.labels import LabelSpace, grouping, regroup
from pcseg_core.online.prompts import EVERYTHING_ELSE, PromptSet

if TYPE_CHECKING:
    from rich.table import Table

    from pcseg_core.data import Recording, Sample
    from pcseg_core.online.segmenter import Segmenter

Progress = Callable[[int, int], None]
_ALONE = "alone"


class WordFigures(Section):
    """One word, or one group of words, against the class it should mean."""

    prompt: str = Field(description="Word, or name of the group")
    truth: str = Field(description="Class that the points should have")
    precision: float | None = Field(
        description="Share of the answered points that have that class; none without an answer"
    )
    recall: float | None = Field(description="Share of that class's points that are answered")
    answered: int = Field(description="Points with this answer that have a true class")
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
    trained: list[WordFigures] = Field(
        description="The checkpoint's own classes, as a measure of what is possible"
    )

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
    """Ask a segmenter for words on every labeled sweep of a drive.

    Args:
        segmenter: with a text head; its prompts are as before afterwards.
        recording: labeled sweeps.
        groups: prompts "class: word, word", where class is one of `space` that the words mean.
        space: label space of the truth.
        checkpoint: name for the report.
        progress: called with (prompt lists done, prompt lists in all).

    Raises:
        InputError: a group that is no class of the space, an unknown word, or nothing labeled.
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
    """Measure the classes in force, named as those of `space` (others are everything else).

    The segmenter answers the checkpoint's own classes afterwards.

    Raises:
        InputError: no class of that space among them, or nothing labeled.
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
    """The sweeps with labels, and the truth of their points in a row."""
    samples = [s for s in (recording[i] for i in range(len(recording))) if s.labels is not None]
    if not samples:
        raise InputError(f"{recording.name}: none of its {len(recording)} sweeps has labels")
    return samples, np.concatenate([truth_of(sample, space) for sample in samples])


def _labels(segmenter: Segmenter, samples: Sequence[Sample]) -> npt.NDArray[np.int32]:
    """Labels of the points of all samples in a row."""
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
