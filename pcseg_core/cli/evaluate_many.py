# SPDX-License-Identifier: Apache-2.0
"""`pcseg evaluate RUN --source A --source B`: figures over several labeled recordings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pcseg_core.cli.outputs import text_console
from pcseg_core.errors import InputError
from pcseg_core.files import STDOUT, write_atomic

if TYPE_CHECKING:
    from pcseg_core.cluster.evaluate import JointReport
    from pcseg_core.cluster.run import RayOptions
    from pcseg_core.online.segmenter import Precision


def evaluate_many(
    run: str,
    sources: list[str],
    json_: Path | None,
    label_space: str,
    engine: tuple[str, Precision, str, float],
    cluster: RayOptions | None,
) -> None:
    """Measure on each of several recordings, here or on a cluster, and on all of them together.

    The reports of the recordings are written to FILE.parts, where an interrupted call finds them.

    Raises:
        InputError: no file for the figures, or recordings were left out.
    """
    if json_ is None or str(json_) == STDOUT:
        raise InputError(
            "several sources need --json FILE: the report of each is kept in FILE.parts"
        )
    from pcseg_core.cluster.evaluate import EvaluateJob, joint_report
    from pcseg_core.cluster.run import report, run_here, run_on_ray

    job = EvaluateJob(run, json_.with_name(f"{json_.name}.parts"), label_space, engine)
    outcome = run_on_ray(job, sources, cluster) if cluster else run_here(job, sources)
    found = joint_report(job, sources, outcome.left_out)
    write_atomic(json_, found.model_dump_json(indent=2) + "\n")
    _print(found, json_)
    report(outcome, len(sources))


def _print(found: JointReport, json_: Path) -> None:
    import numpy as np

    from pcseg_core.evaluation.report import SUMMARY, comparison_table

    counts = np.array(found.confusion).sum(axis=1) + np.array(found.unpredicted)
    shares = dict(zip(found.classes, (counts / max(counts.sum(), 1)).tolist()))
    count = len(found.recordings)
    title = f"{count} recordings: {found.scans} scans, {found.points:,} points"
    console = text_console(json_)
    rows = [row for row in SUMMARY if row[1] in type(found).model_fields]
    console.print(comparison_table(title, {"student": found}, rows, found.classes, shares))
