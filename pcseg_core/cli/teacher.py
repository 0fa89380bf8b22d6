# SPDX-License-Identifier: Apache-2.0
"""`pcseg teacher`: try a camera teacher on an image, before an hour of labeling."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcseg_core.cli.options import Device, Json, Picture, complete_recipe
from pcseg_core.cli.outputs import check_file, text_console, write_json
from pcseg_core.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from pcseg_core.vision.teacher_report import TeacherReport

app = teacher = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Camera teachers."
)


@app.callback()
def _group() -> None:
    """Camera teachers."""


@app.command()
def check(
    image: Annotated[Path, typer.Option(help="Image file: PNG, JPEG, WebP or TIFF.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", help="Recipe with the teacher.", autocompletion=complete_recipe
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="BLOCK", help="Teacher block in braces, or a YAML file with it, for --recipe."
        ),
    ] = None,
    label_space: Annotated[
        str | None,
        typer.Option(help="Label space of the student.  [default: the recipe's, street]"),
    ] = None,
    picture: Picture = Path("teacher.png"),
    json_: Json = None,
    device: Device = "auto",
) -> None:
    """Show the classes of a teacher, their mapping, its speed and its labels of an image.

    Exits with 1 if classes of the teacher have no class in its label space.
    """
    check_file(picture, (".png",))
    check_file(json_)
    from PIL import Image

    from pcseg_core.data.images import read_image
    from pcseg_core.files import atomic_path
    from pcseg_core.labels import LabelSpace
    from pcseg_core.learning.recipe import load_recipe
    from pcseg_core.models.inference import choose_device
    from pcseg_core.recipes import recipe_file
    from pcseg_core.vision.pixel_classes import read_teacher
    from pcseg_core.vision.teacher_report import report_teacher

    if (recipe is None) == (teacher is None):
        raise InputError("give --recipe or --teacher, the one that names the teacher to check")
    target = label_space or "street"
    if recipe is not None:
        chosen = load_recipe(recipe_file(recipe))
        config, target = chosen.required_teacher(), label_space or chosen.labels.label_space
    else:
        config = read_teacher(str(teacher))
    pixels = read_image(image)
    space = LabelSpace.load(target)
    found = report_teacher(config, pixels, space, str(choose_device(device)))
    console = text_console(json_)
    _print(console, found, f"{pixels.shape[1]} x {pixels.shape[0]}", config.label_space, target)
    write_json(json_, found.figures())
    if picture is not None:
        with atomic_path(picture) as temporary:
            Image.fromarray(found.picture).save(temporary, format="PNG")
        console.print(f"picture: {picture}", soft_wrap=True)
    if found.unmapped:
        raise typer.Exit(1)


def _print(console: Console, found: TeacherReport, size: str, space: str, target: str) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("class of the teacher", f"in {space}", f"in {target}", "pixels"):
        table.add_column(column)
    for row in found.rows:
        near = f"no class; nearest: {', '.join(row.nearest) or 'none'}"
        mapped = near if row.mapped == "?" else row.mapped or "ignored"
        share = f"{100 * row.share:.1f} %" if row.share else ""
        table.add_row(row.name, mapped, row.target, share)
    console.print(table, soft_wrap=True)
    say = partial(console.print, highlight=False, soft_wrap=True)
    say(
        f"{size} image in {1000 * found.seconds:.0f} ms, map of {found.map_size[0]} x "
        f"{found.map_size[1]}; {100 * found.undecided:.1f} % of the pixels have no class"
    )
    if found.unmapped:
        say(
            f"{len(found.unmapped)} classes have no class in {space}: give them one under "
            "'mapping' or list them under 'ignore'"
        )
