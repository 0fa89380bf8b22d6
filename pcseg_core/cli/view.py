# SPDX-License-Identifier: Apache-2.0
"""`pcseg view`: a bag, a run or one sample as a Rerun recording or a picture."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcseg_core.cli.options import Device, Picture
from pcseg_core.cli.outputs import PICTURES, check_file
from pcseg_core.errors import InputError
from pcseg_core.progress import bar, console

if TYPE_CHECKING:
    from pcseg_core.labels import LabelSpace
    from pcseg_core.online.pipeline import Pipeline
    from pcseg_core.viewer.rerun import View


def view(
    source: Annotated[
        str,
        typer.Argument(
            help="A bag, reader:path, a run directory, or one of its pseudo_labels/*.npz."
        ),
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Labels the sweeps; default for a run: its own.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--out", "--save", help="Write a Rerun recording (.rrd).")
    ] = None,
    picture: Picture = None,
    sweep: Annotated[
        int | None, typer.Option(help="Only this sweep, counted from 0; -1 is the last.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Only every N-th sweep.")] = 1,
    device: Device = "auto",
) -> None:
    """Show a bag, a training run or one sample: Rerun recording or picture.

    Clouds are colored by class, by confidence and, with known labels, by error; images show the
    points in view. Without --out and --picture the Rerun viewer opens.
    """
    check_file(save, (".rrd",))
    check_file(picture, PICTURES)
    if save is None and picture is None and not _has_display():
        raise InputError("no display for the viewer; give --out FILE.rrd or --picture PNG")
    source = _here(source)
    _check_inputs(source, checkpoint)
    scene = _Scene(source, checkpoint, device)
    if picture is not None:
        from pcseg_core.viewer.picture import draw

        middle = len(scene) // 2 if sweep is None else sweep
        draw(next(scene.views([scene.index(middle)])), scene.space, picture)
        console().print(f"wrote {picture}", highlight=False)
    if save is not None or picture is None:
        _record(scene, sweep, every, save)


def _check_inputs(source: str, checkpoint: Path | None) -> None:
    """Check the paths, before the slow imports."""
    from pcseg_core.bundled import checkpoint_file
    from pcseg_core.data import find_source

    if not _is_run(Path(source)):
        find_source(source)
    if checkpoint is not None:
        checkpoint_file(checkpoint)


def _here(source: str) -> str:
    """A source; a run at a URL is fetched."""
    from pcseg_core.storage import is_url, names

    if not is_url(source) or "recipe.yaml" not in names(source):
        return source
    from pcseg_core.learning.run_folder import local_run

    return str(local_run(Path(source)))


def _is_run(path: Path) -> bool:
    """Whether a path is a run directory, or one of its training sweeps."""
    of_run = path.suffix == ".npz" and path.parent.name == "pseudo_labels"
    return of_run or (path / "pseudo_labels").is_dir()


def _record(scene: _Scene, sweep: int | None, every: int, save: Path | None) -> None:
    from pcseg_core.viewer.rerun import record

    indices = list(range(0, len(scene), every)) if sweep is None else [scene.index(sweep)]
    with bar("recording") as progress:

        def counted() -> Iterator[View]:
            for done, one in enumerate(scene.views(indices)):
                yield one
                progress(done + 1, len(indices))

        count = record(counted(), scene.space, save, name=f"pcseg {scene.name}")
    console().print(f"{count} sweeps in {save or 'the viewer'}", highlight=False)


class _Scene:
    """The sweeps of a source: training sweeps of a run, or samples of a recording."""

    def __init__(self, source: str, checkpoint: Path | None, device: str) -> None:
        from pcseg_core.bundled import FILE_NAME

        path = Path(source)
        self.run: Path | None = None
        self.only: str | None = None
        if _is_run(path):
            self.only = path.name if path.suffix == ".npz" else None
            self.run = path.parent.parent if self.only else path
        if self.run is not None and checkpoint is None and (self.run / FILE_NAME).is_file():
            checkpoint = self.run
        self.pipeline = _load(checkpoint, device)
        self.space: LabelSpace | None = self.pipeline.label_space if self.pipeline else None
        self.name = path.name
        if self.run is not None:
            self._open_run(self.run)
        else:
            self._open_recording(source)

    def _open_run(self, run: Path) -> None:
        from pcseg_core.evaluation.baselines import PseudoLabels
        from pcseg_core.labels import LabelSpace

        files = [file.name for file in PseudoLabels(run).files]
        if self.only is not None and self.only not in files:
            raise InputError(f"{run / 'pseudo_labels' / self.only}: no such file")
        self.numbers = [i for i, name in enumerate(files) if self.only in (None, name)]
        if self.space is None:  # the run has not finished
            self.space = LabelSpace.load(_recipe_space(run))

    def _open_recording(self, source: str) -> None:
        from pcseg_core.data import open_recording
        from pcseg_core.labels import LabelSpace

        trained = self.pipeline.trained_on if self.pipeline else None
        self.recording = open_recording(source, trained=trained)
        self.numbers = list(range(len(self.recording)))
        beside = Path(source.partition(":")[2] or source) / "labels.yaml"
        if self.space is None:
            self.space = LabelSpace.load(beside) if beside.is_file() else self.recording.label_space

    def __len__(self) -> int:
        return len(self.numbers)

    def index(self, position: int) -> int:
        """Position of a sweep, from 0; negative positions count from the end."""
        if not -len(self) <= position < len(self):
            raise InputError(f"--sweep {position}: {self.name} has {len(self)} sweeps")
        return position % len(self)

    def views(self, positions: list[int]) -> Iterator[View]:
        from pcseg_core.viewer.rerun import recording_views, run_views

        numbers = [self.numbers[position] for position in positions]
        if self.run is not None:
            return run_views(self.run, self.pipeline, numbers)
        return recording_views(self.recording, self.space, self.pipeline, numbers)


def _load(checkpoint: Path | None, device: str) -> Pipeline | None:
    from pcseg_core.online.pipeline import Pipeline
    from pcseg_core.online.segmenter import Segmenter

    return None if checkpoint is None else Pipeline(Segmenter.load(checkpoint, device=device))


def _recipe_space(run: Path) -> str:
    from pcseg_core.config import read_yaml

    stored = run / "recipe.yaml"
    recipe = read_yaml(stored).get("recipe", {}) if stored.is_file() else {}
    return str(recipe.get("labels", {}).get("label_space", "street"))


def _has_display() -> bool:
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
