# SPDX-License-Identifier: Apache-2.0
"""Common parts of the studies: rows that are stored one by one, data, options, pictures."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from typer.core import TyperCommand

from benchmarks.measure import cpu_name, threads, wall_and_cpu
from pcseg_core.cli.outputs import PICTURES, check_file
from pcseg_core.cloud import PointCloud
from pcseg_core.data import open_recording
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.evaluation import pictures
from pcseg_core.files import atomic_path, slug, write_atomic
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.finetune import measure
from pcseg_core.learning.probe import Scan, read_scans
from pcseg_core.learning.runs import torch_device
from pcseg_core.metrics.figures import Figures, merge_of
from pcseg_core.online.segmenter import Segmenter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
Key = tuple[Any, ...]

JsonOut = Annotated[
    Path, typer.Option("--json", help="Rows and summary. Interrupted studies resume from it.")
]
Work = Annotated[
    Path | None,
    typer.Option(
        help="Folder of caches and runs.  [default: the JSON path, with the suffix .work]"
    ),
]
Picture = Annotated[Path | None, typer.Option(help="Draw the rows into this picture.")]
Seeds = Annotated[int, typer.Option(min=1, help="Seeds of every row.")]

TOWNS = ("center", "suburb", "old-town", "avenue")  # trained and fitted in
TEST_TOWN = "industrial"
_TIMED_ROUNDS = 15


@dataclass
class Data:
    """Sources of a study.

    Attributes:
        train: recordings with cameras.
        test: labeled recordings to measure on.
        fit: labeled recordings that probes are fitted to.
    """

    train: list[str]
    test: list[str]
    fit: list[str] = field(default_factory=list)

    @property
    def split(self) -> bool:
        """Whether the same sweeps serve both: even ones are fitted to and odd ones tested on."""
        return self.fit == self.test


def simulated_data(
    recordings: int, rig: str, tests: int, lidar: str = "beams=32,columns=1024"
) -> Data:
    """Recordings with cameras in four towns, labeled ones there, and others in a fifth town.

    Args:
        recordings: to train on.
        rig: their options, without the LiDAR's.
        tests: recordings of the fifth town.
        lidar: options of the LiDAR.
    """

    def sources(first_seed: int, towns: Iterable[str], options: str) -> list[str]:
        return [
            f"simulated:seed={first_seed + i},town={town},{options},{lidar}"
            for i, town in enumerate(towns)
        ]

    labeled = "sweeps=2,stride=20,cameras=0"
    return Data(
        train=sources(100, islice(cycle(TOWNS), recordings), rig),
        fit=sources(300, TOWNS, labeled),
        test=sources(500, [TEST_TOWN] * tests, labeled),
    )


def labeled_sequences(path: Path) -> list[Path]:
    """Folders below `path` with labels/ and velodyne/, in order."""
    return sorted(p.parent for p in path.glob("**/labels") if (p.parent / "velodyne").is_dir())


def scans_of(sources: Sequence[str], space: LabelSpace, reach: float, cache: Path) -> list[Scan]:
    """Labeled scans of sources, cached in a file each.

    Args:
        sources: labeled recordings.
        space: label space of the truth.
        reach: points beyond are left out [m].
        cache: folder of the files.

    Raises:
        InputError: no labeled sweep.
    """
    scans: list[Scan] = []
    for source in sources:
        file = cache / "scans" / f"{slug(source)[-150:]}-{space.name}-{reach:g}.npz"
        if not file.is_file():
            found = list(read_scans(open_recording(source), space, reach))
            arrays = {f"{i}_{k}": v for i, s in enumerate(found) for k, v in vars(s).items()}
            with atomic_path(file) as temporary, temporary.open("wb") as handle:
                np.savez_compressed(handle, count=np.array(len(found)), **arrays)
        with np.load(file, allow_pickle=False) as stored:
            names = Scan.__dataclass_fields__
            for i in range(int(stored["count"])):
                values = {name: stored[f"{i}_{name}"] for name in names}
                scans.append(Scan(**{**values, "name": str(values["name"])}))
    if not scans:
        raise InputError(f"no labeled sweep in {', '.join(sources)}")
    return scans


def run_figures(run: Path, scans: Sequence[Scan], space: LabelSpace, device: str) -> Row:
    """Figures of the classes of a run on labeled scans, in float32.

    Args:
        run: run directory or checkpoint.
        scans: labeled scans.
        space: its classes.
        device: "auto", "cpu" or "cuda".
    """
    student = Segmenter.load(run, device, "fp32").student
    confusion = measure(student, scans, len(space), torch_device(device))
    return Figures.of(confusion, space.names, merge_of(space)).model_dump(exclude_none=True)


def sweep_times(runs: Mapping[str, Path], scan: Scan, device: str) -> dict[str, float]:
    """CPU time of a sweep by name [ms], one thread, float32; the runs take turns.

    Args:
        runs: run directories or checkpoints by name.
        scan: the sweep.
        device: "auto", "cpu" or "cuda".
    """
    cloud = PointCloud(scan.xyz, scan.intensity)
    loaded = {name: Segmenter.load(run, device, "fp32") for name, run in runs.items()}
    with threads(1):
        actions = {name: partial(found.segment, cloud) for name, found in loaded.items()}
        return wall_and_cpu(actions, _TIMED_ROUNDS)[1]


class Study(ABC):
    """Rows of figures, computed one by one and stored, so that interrupted studies resume.

    Args:
        out: JSON file of the rows.
        settings: everything that the rows depend on; stored rows must have the same.
        columns: keys of a row that identify it, the first one is its name.

    Raises:
        InputError: `out` holds rows of other settings.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], columns: Sequence[str]) -> None:
        self.out, self.settings, self.columns = out, dict(settings), tuple(columns)
        self.rows = stored_rows(out, self.settings)

    @abstractmethod
    def keys(self, seeds: int) -> Iterable[Key]:
        """Values of the columns of all rows, in the order in which they are computed."""

    @abstractmethod
    def compute(self, *key: Any) -> Row:
        """Figures of one row."""

    @abstractmethod
    def headline(self, row: Row) -> str:
        """The main figures of a row, for the terminal."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """Content of the JSON file besides settings and rows."""

    def run(
        self, seeds: int, tell: Callable[[str], None] = print, limit: int | None = None
    ) -> dict[str, Any]:
        """Compute the rows that are missing.

        Args:
            seeds: of every row.
            tell: called with a line before and after each row.
            limit: compute at most so many rows.

        Returns:
            The content of the JSON file.
        """
        done = {tuple(row[column] for column in self.columns) for row in self.rows}
        for key in [key for key in self.keys(seeds) if key not in done][:limit]:
            values = dict(zip(self.columns, key))
            others = list(values.items())[1:]
            told = (v if isinstance(v, str) else f"{k} {v:g}" for k, v in others)
            name = ", ".join([str(key[0]), *told])
            tell(name)
            self.rows.append({**values, **self.compute(*key)})
            tell(f"{name}: {self.headline(self.rows[-1])}")
            self._write()
        return self._write()

    def _write(self) -> dict[str, Any]:
        content = {"settings": self.settings, "rows": self.rows, **self.content()}
        write_atomic(self.out, json.dumps(content, indent=1) + "\n")
        return content


class StudentStudy(Study):
    """Rows of (name, seed), a trained student each; those of the first seed are timed together.

    Args:
        out, settings: see `Study`.
        column: of the names.
        space: classes of the truth.
        work: folder of caches and runs.
        device: "auto", "cpu" or "cuda".

    Attributes:
        cpu_ms: CPU time of a sweep by name [ms], after `run`.
    """

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, Any],
        column: str,
        space: LabelSpace,
        work: Path,
        device: str,
    ) -> None:
        self.space, self.work, self.device = space, work, device
        self.cpu_ms: dict[str, float] = {}
        super().__init__(out, settings, (column, "seed"))

    @property
    @abstractmethod
    def scans(self) -> list[Scan]:
        """Labeled scans to measure on."""

    def timed(self) -> tuple[list[str], Scan]:
        """Names of the students that take turns on a sweep, and the sweep."""
        return [row[self.columns[0]] for row in self.rows if row["seed"] == 0], self.scans[0]

    @abstractmethod
    def summary(self) -> list[Row]:
        """Rows of the summary."""

    def run(
        self, seeds: int, tell: Callable[[str], None] = print, limit: int | None = None
    ) -> dict[str, Any]:
        """See `Study`; then the students of the first seed take turns on one sweep."""
        super().run(seeds, tell, limit)
        names, scan = self.timed()
        self.cpu_ms = sweep_times({n: self.run_of(n, 0) for n in names}, scan, self.device)
        return self._write()

    def content(self) -> dict[str, Any]:
        """The summary, CPU time of a sweep by name, and the machine."""
        return {"cpu": cpu_name(), "cpu_ms": self.cpu_ms, "summary": self.summary()}

    def run_of(self, name: str, seed: int) -> Path:
        """Run directory of a student."""
        return self.work / "runs" / f"{slug(name)}-{seed}"

    def figures(self, name: str, seed: int) -> Row:
        """Figures of the classes, and the number of parameters."""
        run = self.run_of(name, seed)
        figures = run_figures(run, self.scans, self.space, self.device)
        made = Segmenter.load(run, self.device, "fp32").student.network
        return {**figures, "parameters": sum(weights.numel() for weights in made.parameters())}


def stored_rows(path: Path, settings: Mapping[str, Any]) -> list[Row]:
    """Rows that an interrupted study left in its JSON file; none without the file.

    Raises:
        InputError: not JSON, or rows of other settings.
    """
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); remove it") from None
    if content.get("settings") != json.loads(json.dumps(settings)):
        raise InputError(
            f"{path} holds rows of other settings (recipe, data or split); choose another file"
        )
    rows: list[Row] = content["rows"]
    return rows


def chosen_rows(chosen: Sequence[str] | None, known: Sequence[str], kind: str) -> list[str]:
    """The rows that were asked for, all if none were.

    Raises:
        InputError: a name that is not known.
    """
    if unknown := set(chosen or ()) - set(known):
        raise InputError(f"no {kind} {', '.join(sorted(unknown))}; {kind}s: {', '.join(known)}")
    return list(chosen or known)


def spread(values: Sequence[float | None], name: str) -> dict[str, float | None]:
    """Mean and standard deviation of the values that exist, as `name` and `name`_deviation."""
    known = [value for value in values if value is not None]
    return {
        name: float(np.mean(known)) if known else None,
        f"{name}_deviation": float(np.std(known)) if known else None,
    }


def draw_bars(
    axes: Axes,
    names: Sequence[str],
    means: Sequence[float | None],
    dots: Sequence[Sequence[float]],
    diamonds: Sequence[float] = (),
) -> None:
    """A horizontal bar per row from top to bottom, in percent, with a dot per seed.

    Args:
        axes: where to draw.
        names: of the rows.
        means: lengths of the bars, fractions in 0..1; None for a row without a bar.
        dots: values of each row's seeds, fractions in 0..1.
        diamonds: a second figure per row, fractions in 0..1.
    """
    for place, (mean, values) in enumerate(zip(means, dots)):
        if mean is None:
            continue
        percents = [100 * value for value in values]
        others = [100 * value for value in diamonds[place : place + 1]]
        axes.barh(place, 100 * mean, color="#9ec5fe", height=0.62)
        axes.plot(percents, [place] * len(percents), "o", color=pictures.ACCENT, markersize=4)
        axes.plot(others, [place] * len(others), "D", color="#f0a202", markersize=5)
        end = max([100 * mean, *percents, *others])
        axes.text(end + 2, place, f"{100 * mean:.1f}", va="center")
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first row on top, also without bars
    axes.set_xlim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)


class _Command(TyperCommand):
    """A command whose user errors are one line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PcsegError as error:
            typer.secho(f"error: {error}", err=True)
            raise typer.Exit(2) from None


def command(function: Callable[..., None]) -> typer.Typer:
    """Application of a study's command."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(cls=_Command)(function)
    return app


def check_outputs(json_: Path, picture: Path | None = None) -> None:
    """Refuse outputs that cannot be written, before the work."""
    check_file(json_)
    check_file(picture, PICTURES)
