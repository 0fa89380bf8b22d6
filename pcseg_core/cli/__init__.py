# SPDX-License-Identifier: Apache-2.0
"""The `pcseg` command. Each command lives in a file of its own, imported when it runs."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup

from pcseg_core.cli.lazy import LazyCommand, as_command, as_group, from_module
from pcseg_core.errors import PcsegError

# Entry points of this group add commands: `bag-play = package.module:function` is `pcseg bag play`.
PLUGIN_GROUP = "pcseg.commands"

_COMMANDS = {
    "recipe": "List and show the training recipes of the package.",
    "distill": "Train a LiDAR segmenter from recordings with cameras, without labels.",
    "evaluate": "Measure a checkpoint on labeled sweeps: JSON, table and picture.",
    "superpixels": "Cut the images of a recording into segments, for contrastive pretraining.",
    "pretrain": "Train a LiDAR network to see what image networks see, without labels or classes.",
    "probe": "Measure what a pretrained network knows, by a linear classifier on its features.",
    "finetune": "Train a checkpoint on labeled sweeps.",
    "zero-shot": "Train on labels of some classes and learn others from images; measure both.",
    "prompt": "Try words as classes on a sweep.",
    "words": "List the words a checkpoint knows, or add more from a text encoder.",
    "label": "Label a recording from its cameras: auto-labels in SemanticKITTI format.",
    "segment": "Label the clouds of a bag or of any other recording.",
    "view": "Look at a bag, a training run or one sample: Rerun recording or picture.",
    "demo": "The main job from nothing to a picture, on simulated drives.",
    "doctor": "Tell what is installed and what each missing part is needed for.",
}
_BAG_SUMMARY = "Bags: convert, inspect, simulate, play."
_PLAY_HINT = "Publish a bag over ROS 2."


class PcsegGroup(TyperGroup):
    """The top level: knows its commands by name only and reports errors without traceback."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.add_command(LazyCommand("bag", _BAG_SUMMARY, _load_bag))
        for name, summary in _COMMANDS.items():
            attribute = name.replace("-", "_")
            load = from_module(f"pcseg_core.cli.{attribute}", attribute, name)
            self.add_command(LazyCommand(name, summary, load))
        for entry in entry_points(group=PLUGIN_GROUP):
            if "-" not in entry.name:
                self.add_command(plugin_command(entry, entry.name))

    def list_commands(self, ctx: Any) -> list[str]:
        """Commands in the order in which a user meets them."""
        return list(self.commands)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Accept `--debug` after the command as well as before it."""
        if "--debug" in args:
            args = ["--debug", *(argument for argument in args if argument != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error that a user can mend is one line and exit code 2."""
        debug = ctx.params.get("debug") or os.environ.get("PCSEG_DEBUG")
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _complain("interrupted")
            raise typer.Exit(130) from None
        except (PcsegError, OSError) as error:
            if debug or isinstance(error, BrokenPipeError):
                raise
            _complain(str(error))
            raise typer.Exit(2) from None
        except Exception as error:
            if debug or type(error).__module__.startswith(("click", "typer")):
                raise  # typer shows wrong arguments, and ends the program, by exceptions
            kind = type(error).__name__
            _complain(f"{kind}: {error}; this is a bug, `pcseg --debug ...` shows where")
            raise typer.Exit(1) from None


def _complain(message: str) -> None:
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(message, err=True)


def _load_bag() -> TyperGroup:
    group = as_group(import_module("pcseg_core.cli.bag").app, "bag")
    load = from_module("pcseg_core.cli.simulate", "simulate", "simulate")
    group.add_command(LazyCommand("simulate", "Write a simulated drive as a bag.", load))
    for entry in entry_points(group=PLUGIN_GROUP):
        if entry.name.startswith("bag-"):
            group.add_command(plugin_command(entry, entry.name.removeprefix("bag-")))
    if "play" not in group.commands:
        group.add_command(LazyCommand("play", _PLAY_HINT, _missing_player))
    return group


def plugin_command(entry: EntryPoint, name: str) -> LazyCommand:
    """Command of another package; when that package does not load, it says what to install."""

    def load() -> Any:
        try:
            target = entry.load()
        except ImportError as error:
            raise PcsegError(
                f"`pcseg {entry.name.replace('-', ' ')}` cannot be loaded ({error}); it needs "
                "ROS 2: source a ROS distribution or run: pip install 'pcseg_ros[ros]'"
            ) from error
        return as_command(target, name)

    return LazyCommand(name, _PLAY_HINT if name == "play" else f"From {entry.value}.", load)


def _missing_player() -> Any:
    raise PcsegError(
        "`pcseg bag play` comes with pcseg_ros, which is not installed here; in a clone run: "
        "pip install -e '.[ros]'"
    )


app = typer.Typer(cls=PcsegGroup, no_args_is_help=True, rich_markup_mode=None)


def _print_version(requested: bool) -> None:
    if requested:
        from pcseg_core import __version__

        typer.echo(f"pcseg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks of errors."),
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Print the version."
    ),
) -> None:
    """From a recording of LiDAR and cameras to a LiDAR segmenter that runs live."""


def main() -> None:
    """Entry point of the `pcseg` command."""
    app(prog_name="pcseg")
