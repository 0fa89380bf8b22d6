# SPDX-License-Identifier: Apache-2.0
"""`pcseg robustness`: a checkpoint under corruptions of its sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcseg_core.cli.evaluate import PrecisionName
from pcseg_core.cli.options import Backend, Device, Json, Picture, Seed, expanded
from pcseg_core.cli.outputs import PICTURES, check_file, text_console
from pcseg_core.progress import bar, note

if TYPE_CHECKING:
    from pcseg_core.data import Recording
    from pcseg_core.evaluation.robustness import Plan
    from pcseg_core.evaluation.robustness_report import RobustnessReport
    from pcseg_core.online.segmenter import Segmenter


def robustness(
    run: Annotated[
        str,
        typer.Argument(help='Run directory of `pcseg distill`, a checkpoint file, or "bundled".'),
    ],
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Drives: bags, or reader:path (semantic-kitti:PATH, ...); patterns and @FILE as "
            "for `pcseg distill`.",
            callback=expanded,
        ),
    ],
    corruptions: Annotated[
        str | None,
        typer.Option(
            help="Names, separated by commas: fog, wet-ground, snow, motion-blur, beam-missing, "
            "crosstalk, incomplete-echo, cross-sensor.  [default: all that the sweeps allow]"
        ),
    ] = None,
    severities: Annotated[
        str, typer.Option(help="Names, separated by commas.")
    ] = "light,moderate,heavy",
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="JSON|RUN",
            help="Figures of another run on the same sweeps (--json), or a run or checkpoint to "
            "measure now, for mCE.  [default: RUN itself, without smoothing]",
        ),
    ] = None,
    stability: Annotated[
        bool,
        typer.Option(
            "--stability",
            help="Compare with the clean prediction, as for recordings without labels.",
        ),
    ] = False,
    label_space: Annotated[
        str | None,
        typer.Option(
            help="Label space to measure in.  [default: street; without labels the classes of RUN]"
        ),
    ] = None,
    temporal: Annotated[
        bool | None,
        typer.Option(
            "--temporal/--no-temporal",
            help="Also smooth over time.  [default: where the recordings have poses]",
        ),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Measure every so many sweeps.")] = 1,
    seed: Seed = 1205,
    json_: Json = None,
    picture: Picture = None,
    device: Device = "auto",
    backend: Backend = "auto",
    precision: PrecisionName = "auto",
) -> None:
    """Measure a checkpoint under fog, snow, lost beams and other corruptions.

    Labels whole drives clean and under eight corruptions at three severities. With labels, mIoU
    and the calibration error are measured; without, how many labels stay those of the clean sweep.
    mRR is the share of the clean mIoU that is left, mCE the error relative to a baseline.
    docs/robustness.md describes the corruptions and figures. With --json an interrupted run
    resumes: run the same command again.
    """
    check_file(json_)
    check_file(picture, PICTURES)
    plan = _plan(corruptions, severities, label_space, stability, temporal, every, seed)
    baseline_file = _check_inputs(run, sources, baseline)
    report = _measured(run, sources, plan, (device, precision, backend), json_)
    if baseline is not None:
        from pcseg_core.evaluation.robustness_report import read_baseline

        if baseline_file is not None:
            other = read_baseline(baseline_file)
        else:
            other = _measured(baseline, sources, plan, (device, precision, backend), None)
        report = report.compared_with(other)
    _write(report, json_, picture)


def _plan(corruptions: str | None, severities: str, *others: Any) -> Plan:
    from pcseg_core.evaluation.robustness import Plan

    chosen = _names(severities)
    return Plan(_names(corruptions or ""), chosen, *others)  # type: ignore[arg-type]


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def _check_inputs(run: str, sources: list[str], baseline: str | None) -> Path | None:
    """Check the paths before the long work; the file of figures if the baseline is one."""
    from pcseg_core.bundled import checkpoint_file
    from pcseg_core.data import find_source

    checkpoint_file(run)
    for source in sources:
        find_source(source)
    if baseline is None:
        return None
    if baseline.endswith(".json"):
        from pcseg_core.evaluation.robustness_report import read_baseline

        read_baseline(Path(baseline))
        return Path(baseline)
    checkpoint_file(baseline)
    return None


def _measured(
    run: str, sources: list[str], plan: Plan, engine: tuple[str, Any, str], json_: Path | None
) -> RobustnessReport:
    from pcseg_core.data import open_recording
    from pcseg_core.evaluation.condition_store import ConditionStore
    from pcseg_core.evaluation.robustness import measure_robustness
    from pcseg_core.files import STDOUT
    from pcseg_core.online.segmenter import Segmenter

    segmenter = Segmenter.load(run, *engine)
    recordings = [open_recording(source, trained=segmenter.trained_on) for source in sources]
    partial = None
    if json_ is not None and str(json_) != STDOUT:
        partial = json_.with_name(f"{json_.name}.partial")
    store = ConditionStore(partial, _identity(run, sources, recordings, plan, segmenter))
    if store:
        note(f"resuming: {len(store)} conditions are measured already ({partial})")
    with bar("measuring sweeps") as progress:
        report = measure_robustness(run, segmenter, recordings, plan, done=store, progress=progress)
    store.close()
    return report


def _identity(
    run: str, sources: list[str], recordings: list[Recording], plan: Plan, segmenter: Segmenter
) -> dict[str, Any]:
    """Everything that decides the figures of a condition."""
    from pcseg_core import __version__
    from pcseg_core.bundled import checkpoint_file
    from pcseg_core.data import find_source, fingerprint, split_query

    places = [find_source(source) for source in sources]
    return {
        "checkpoint": fingerprint(checkpoint_file(run)),
        "sources": sources,
        "sweeps": [len(recording) for recording in recordings],
        "content": [
            "" if reader == "simulated" else fingerprint(split_query(place)[0])
            for reader, place in places
        ],
        "plan": [plan.space, plan.stability, plan.temporal, plan.every, plan.seed],
        "engine": segmenter.engine,
        "version": __version__,
    }


def _write(report: RobustnessReport, json_: Path | None, picture: Path | None) -> None:
    from pcseg_core.evaluation.robustness_picture import render_robustness

    for name, reason in report.left_out.items():
        note(f"left out: {name}: {reason}")
    for reason, count in report.skipped.items():
        note(f"skipped: {reason} ({count})")
    if report.every > 1 and len(report.methods) > 1:
        note(f"smoothing over time sees every {report.every}th sweep only")
    console = text_console(json_)
    for table in report.tables():
        console.print(table)
    if json_:
        report.write_json(json_)
    if picture:
        render_robustness(report, picture)
