# SPDX-License-Identifier: Apache-2.0
"""`pcseg words`: list the words of a checkpoint, or add words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcseg_core.errors import InputError

if TYPE_CHECKING:
    from pcseg_core.checkpoint import CheckpointText


def words(
    run: Annotated[Path, typer.Argument(help="Run directory of `pcseg distill`, or a checkpoint.")],
    add: Annotated[
        list[str] | None, typer.Argument(help="Words to add; needs --weights and --out.")
    ] = None,
    find: Annotated[
        str | None, typer.Option(help="List only words that contain this or are spelled similarly.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Model of open_clip of the checkpoint's text space.")
    ] = "ViT-B-32-quickgelu",
    weights: Annotated[
        Path | None, typer.Option(help="Weights of that model (safetensors or torch).")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help="Sentence with '{}' for the word; 'a {}' for LVIS tables."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Checkpoint to write with the added words.")
    ] = None,
) -> None:
    """List the words of a checkpoint, or add words from its text encoder.

    A checkpoint contains the vectors of its words, so prompts need no text encoder. Add missing
    words from the text encoder that it was trained with; vectors of others are not comparable.
    """
    from pcseg_core.checkpoint import load_text

    text = load_text(run)
    if text is None:
        raise InputError(
            f"{run} has no words: it was trained without a text head; train one with a recipe "
            "that has a 'text' section, such as --recipe kitti-words"
        )
    if add:
        _add(run, text, add, model, weights, tuple(template or ()), out)
    else:
        _list(text, find)


def _list(text: CheckpointText, find: str | None) -> None:
    if find is not None:
        row = text.table.find(find)
        same = [] if row is None else [text.table.words[row]]
        for word in dict.fromkeys([*same, *text.table.near(find, 20)]):
            typer.echo(word + ("  (generated direction)" if word in text.table.generated else ""))
        return
    for name, members in text.classes.items():
        typer.echo(f"trained class {name}: {', '.join(members)}")
    for word in sorted(text.table.words, key=str.casefold):
        typer.echo(word + ("  (generated direction)" if word in text.table.generated else ""))


def _add(
    run: Path,
    text: CheckpointText,
    words: list[str],
    model: str,
    weights: Path | None,
    templates: tuple[str, ...],
    out: Path | None,
) -> None:
    import dataclasses

    from pcseg_core.checkpoint import load_checkpoint, save_checkpoint
    from pcseg_core.cli.outputs import check_file
    from pcseg_core.vision.text_space import OpenClipText

    if weights is None or out is None:
        raise InputError("adding words needs --weights FILE (of --model) and --out CHECKPOINT")
    check_file(out, (".safetensors",))
    if not all("{}" in template for template in templates):
        raise InputError("--template needs '{}' where the word goes")
    encoder = OpenClipText(model, weights, templates or "imagenet+scene")
    table = text.table.extended(words, encoder.embed(words))
    state, meta = load_checkpoint(run)
    save_checkpoint(out, state, meta, dataclasses.replace(text, table=table))
    typer.echo(f"{out}: {len(table)} words, {len(table) - len(text.table)} of them new")
