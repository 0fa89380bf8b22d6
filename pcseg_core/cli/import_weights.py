# SPDX-License-Identifier: Apache-2.0
"""`pcseg import`: make a run of the published weights of a 3D network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pcseg_core.cli.options import Out


def import_weights(
    file: Annotated[Path, typer.Argument(help="File of the weights, as published.")],
    as_: Annotated[str, typer.Option("--as", help="Family of the network; see docs/import.md.")],
    out: Out,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Label space of the network's outputs, in their order.  [default: nuScenes or "
            "SemanticKITTI where the number of outputs says so; else no classes]",
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="For openscene: weights of CLIP (open_clip) or a table of words (npz); the "
            "classes of --classes (default: street) and prompts then work by their words."
        ),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option("--license", help="License of the weights.  [default: that of the family]"),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="What is before the keys, where FILE holds several networks.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete an earlier run in OUT and start over.")
    ] = False,
) -> None:
    """Make a run directory of the published weights of a 3D network.

    The run works with probe, finetune and distill --start, and with segment if it has classes.
    Files are read as tensors and plain values alone; no code in them runs.
    """
    from pcseg_core.importers.run import import_weights as run
    from pcseg_core.learning.run_folder import RUN
    from pcseg_core.learning.run_mirror import held

    with held(out, RUN, fresh):
        figures = run(
            file, as_, out, classes=classes, license=license_, text=text, prefix=prefix, fresh=fresh
        )
    _summarize(figures, out)


def _summarize(figures: dict[str, Any], out: Path) -> None:
    from pcseg_core.checkpoint import load_checkpoint
    from pcseg_core.labels import NO_CLASSES

    meta = load_checkpoint(out)[1]
    typer.echo(
        f"{out}: {figures['imported']}, {figures['parameters'] / 1e6:.1f} million parameters; "
        f"weights under {figures['license']}"
    )
    for told in figures["left_out"]:
        typer.echo(f"left out: {told}")
    typer.echo(f"student section for distill --start: {_student_section(meta.student)}")
    names = [c["name"] for c in meta.label_space["classes"]]
    if meta.label_space["name"] == NO_CLASSES.name:
        typer.echo(f"no classes; next: pcseg probe {out} --fit DIR --test DIR, or pcseg finetune")
    else:
        typer.echo(f"classes: {', '.join(names)}")
        typer.echo(f"next: pcseg segment SOURCE --checkpoint {out} --out FOLDER")


def _student_section(student: dict[str, Any]) -> str:
    """The settings that differ from the defaults, as YAML in one line."""
    import yaml

    from pcseg_core.models.student import StudentConfig

    default = StudentConfig().model_dump(mode="json")
    heads = ("text_channels", "feature_channels")
    changed = {k: v for k, v in student.items() if v != default.get(k) and k not in heads}
    return yaml.safe_dump(changed, default_flow_style=True, width=10**6, sort_keys=False).strip()
