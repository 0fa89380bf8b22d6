# SPDX-License-Identifier: Apache-2.0
"""`pcseg recipe`: the recipes that come with the package."""

from __future__ import annotations

from typing import Annotated

import typer

from pcseg_core.cli.options import complete_recipe

app = recipe = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Recipes that come with the package.",
)


@app.command("list")
def list_recipes() -> None:
    """List the recipes that `--recipe NAME` accepts."""
    from pcseg_core.recipes import available_recipes, recipe_file, recipe_kind, recipe_summary

    names = available_recipes()
    width = max(map(len, names))
    for name in names:
        file = recipe_file(name)
        typer.echo(f"{name:{width}}  {recipe_kind(file):12}  {recipe_summary(file)}")


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(help="Name that `pcseg recipe list` shows.", autocompletion=complete_recipe),
    ],
) -> None:
    """Print a recipe as YAML.

    To change a recipe, save and edit it: `pcseg recipe show kitti > mine.yaml`, then
    `--recipe mine.yaml`.
    """
    from pcseg_core.recipes import recipe_file

    typer.echo(recipe_file(name).read_text(encoding="utf-8"), nl=False)
