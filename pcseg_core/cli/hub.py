# SPDX-License-Identifier: Apache-2.0
"""`pcseg hub`: share the checkpoints of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = hub = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Share checkpoints with their model card, by a hub or a folder.",
)
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier result in a folder.")]


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="Run directory or checkpoint.")],
    target: Annotated[
        str, typer.Argument(help="OWNER/NAME on the hub, or a folder: ./PATH, /PATH or ~/PATH.")
    ],
    data_license: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="License of the recordings of the training, for the card; a hub needs it.",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private/--public", help="Who sees a new page of the hub.")
    ] = True,
    force: Force = False,
) -> None:
    """Put the checkpoint of a run on a hub or into a folder, with a model card.

    The card, README.md, is made of the metadata of the checkpoint: classes, licenses, figures,
    teachers, input and recipe. Names and paths of recordings that the metadata hold go along.
    """
    from pcseg_core.export.hub import push as run_push

    place = run_push(run, target, data_license, private=private, force=force)
    typer.echo(f"{run} is at {place}; next: pcseg hub pull {target} OUT")


@app.command()
def pull(
    source: Annotated[
        str, typer.Argument(help="OWNER/NAME on the hub, or a folder: ./PATH, /PATH or ~/PATH.")
    ],
    out: Annotated[Path, typer.Argument(help="New folder of the checkpoint and its card.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit.  [default: the newest]")
    ] = None,
    force: Force = False,
) -> None:
    """Take a checkpoint from a hub or a folder, once it is known to load."""
    from pcseg_core.export.hub import pull as run_pull

    place = run_pull(source, out, revision, force=force)
    typer.echo(f"{place}; next: pcseg segment RECORDING --checkpoint {place} --out labeled")
