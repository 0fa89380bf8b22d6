# SPDX-License-Identifier: Apache-2.0
"""`pcseg weights`: public weights by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcseg_core.errors import InputError

app = weights = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Public weights by name: list, find, download, add and convert them.",
)


def complete_weights(incomplete: str) -> list[str]:
    """Known weights, for the completion of shells."""
    from pcseg_core.known_weights import KNOWN

    return [name for name in KNOWN if name.startswith(incomplete)]


Name = Annotated[
    str,
    typer.Argument(help="Name that `pcseg weights list` shows.", autocompletion=complete_weights),
]
File = Annotated[Path, typer.Argument(help="File of the weights, as published or converted.")]


@app.command("list")
def list_weights() -> None:
    """List the weights that recipes and teachers can name."""
    from pcseg_core.known_weights import KNOWN, stored_file

    for name, entry in KNOWN.items():
        try:
            place = str(stored_file(name) or "not on this machine")
        except InputError as error:
            place = str(error)
        typer.echo(f"{name}: {entry.network}, {entry.license}\n  {entry.url}\n  {place}")


@app.command()
def where(name: Name) -> None:
    """Print the file of weights on this machine."""
    from pcseg_core.known_weights import known_file

    typer.echo(known_file(_known(name)))


@app.command()
def get(name: Name) -> None:
    """Download weights into the cache folder, check and convert them."""
    from pcseg_core.vision.weight_store import download

    typer.echo(download(_known(name)))


@app.command()
def add(
    file: File,
    name: Annotated[
        str | None, typer.Option(help="Name of the weights.  [default: by checksum or file name]")
    ] = None,
) -> None:
    """Copy a downloaded file into the cache folder, checked and converted."""
    from pcseg_core.vision.weight_store import add_file

    typer.echo(add_file(file, _known(name) if name else None))


@app.command()
def convert(
    file: File,
    out: Annotated[Path | None, typer.Option(help="File to write.  [default: beside FILE]")] = None,
) -> None:
    """Convert ESPNetv2 weights of EdgeNets (.pth) to safetensors.

    The file is read as tensors alone; no code in it runs.
    """
    from pcseg_core.vision.weight_store import convert_espnetv2

    typer.echo(convert_espnetv2(file, out or file.with_suffix(".safetensors")))


def _known(name: str) -> str:
    from difflib import get_close_matches

    from pcseg_core.known_weights import KNOWN

    if name not in KNOWN:
        close = get_close_matches(name, KNOWN, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise InputError(f"no weights '{name}': {hint}expected one of {', '.join(KNOWN)}")
    return name
