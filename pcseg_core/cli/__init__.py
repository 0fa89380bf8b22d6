# SPDX-License-Identifier: Apache-2.0
"""The `pcseg` command: one module per command.

The modules import numpy, torch and the like inside their functions, so that `pcseg --help` is
quick. Commands of other packages are imported when they run.
"""

from __future__ import annotations

import os
import re
import signal
from importlib.metadata import EntryPoint, entry_points
from types import FrameType
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from pcseg_core.cli import (
    bag,
    calibrate,
    demo,
    distill,
    doctor,
    estimate,
    evaluate,
    export,
    finetune,
    hub,
    images,
    import_weights,
    label,
    pretrain,
    probe,
    prompt,
    quantize,
    recipe,
    robustness,
    segment,
    select,
    superpixels,
    teacher,
    view,
    weights,
    words,
    zero_shot,
)
from pcseg_core.cli.help import EXIT_CODES, GROUPS, examples
from pcseg_core.copies import shown
from pcseg_core.errors import PcsegError, Terminated

# Entry points of this group add commands: `bag-play = package.module:function` is `pcseg bag play`.
PLUGIN_GROUP = "pcseg.commands"
_EVERYWHERE = ("--debug", "--quiet", "--verbose")
"""Options of all commands, before or after the command."""
_ADDRESS = re.compile(r"auto|local|(ray://)?(\[[0-9a-f:]+\]|[\w.-]+):\d+")
"""What may follow `--ray`."""
_HINTS = {"play": "Publish a bag over ROS 2.", "record": "Record topics of ROS 2 in a bag."}


class PluginCommand(TyperCommand):
    """A command of another package, which is imported when the command runs."""

    def __init__(self, name: str, entry: EntryPoint | None) -> None:
        summary = _HINTS.get(name) or (f"From {entry.value}." if entry else "")
        super().__init__(name=name, help=summary, short_help=summary)
        self._entry = entry

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the arguments with the command of the plugin."""
        plugin = typer.Typer(add_completion=False, rich_markup_mode=None)
        plugin.command(name=self.name)(_load(self._entry))
        command = typer.main.get_command(plugin)
        command.name, command.epilog = self.name, self.epilog
        return command.make_context(*args, **kwargs)


def _load(entry: EntryPoint | None) -> Any:
    if entry is None:
        raise PcsegError(
            "`pcseg bag play` comes with pcseg_ros, which is not installed here; in a clone run: "
            "pip install -e '.[ros]'"
        )
    try:
        return entry.load()
    except ImportError as error:
        raise PcsegError(
            f"`pcseg {entry.name.replace('-', ' ')}` cannot be loaded ({error}); it needs "
            "ROS 2: source a ROS distribution or run: pip install 'pcseg_ros[ros]'"
        ) from error


class PcsegGroup(TyperGroup):
    """The top level: commands of plugins, and errors without tracebacks."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for entry in entry_points(group=PLUGIN_GROUP):
            if "-" not in entry.name:
                self.add_command(PluginCommand(entry.name, entry))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Accept `--debug` and the like after the command as well as before it."""
        given = [option for option in _EVERYWHERE if option in args]
        others = [argument for argument in args if argument not in given]
        return super().parse_args(ctx, [*given, *_with_address(others)])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, with examples at the end of its help."""
        command = super().get_command(ctx, cmd_name)
        for name, inner in getattr(command, "commands", {}).items():
            inner.epilog = examples(f"{cmd_name} {name}")
        if command is not None:
            command.epilog = examples(cmd_name)
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands by what a user wants."""
        left = self.list_commands(ctx)
        for title, names in (*GROUPS, ("More", tuple(left))):
            shown = [name for name in names if name in left]
            left = [name for name in left if name not in shown]
            width = formatter.width - 6 - max(map(len, shown), default=0)
            if shown:
                with formatter.section(title):
                    formatter.write_dl([(n, _summary(self, ctx, n, width)) for n in shown])

    def invoke(self, ctx: Any) -> Any:
        """Run the command. User errors print one line and exit with code 2."""
        debug = ctx.params.get("debug") or os.environ.get("PCSEG_DEBUG")
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
            word = "terminated" if isinstance(error, Terminated) else "interrupted"
            _complain(str(error) or word)
            raise typer.Exit(128 + number) from None
        except (PcsegError, OSError) as error:
            if debug or isinstance(error, BrokenPipeError):
                raise
            _complain(str(error))
            raise typer.Exit(2) from None
        except Exception as error:
            if debug or type(error).__module__.startswith(("click", "typer")):
                raise  # typer uses exceptions for wrong arguments and to exit
            kind = type(error).__name__
            _complain(f"{kind}: {error}; this is a bug, `pcseg --debug ...` shows where")
            raise typer.Exit(1) from None


def _with_address(args: list[str]) -> list[str]:
    """Arguments with the default address after a `--ray` that no address follows."""
    found: list[str] = []
    for argument, after in zip(args, [*args[1:], ""]):
        found.append(argument)
        if argument == "--ray" and not _ADDRESS.fullmatch(after):
            found.append("auto")
    return found


def _summary(group: TyperGroup, ctx: Any, name: str, width: int) -> str:
    command = group.get_command(ctx, name)
    return "" if command is None else command.get_short_help_str(width)


def _complain(message: str) -> None:
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(shown(message), err=True)


class BagGroup(TyperGroup):
    """`pcseg bag`, with the commands of plugins."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for entry in entry_points(group=PLUGIN_GROUP):
            if entry.name.startswith("bag-"):
                self.add_command(PluginCommand(entry.name.removeprefix("bag-"), entry))
        if "play" not in self.commands:
            self.add_command(PluginCommand("play", None))


app = typer.Typer(
    cls=PcsegGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bag.app, name="bag", cls=BagGroup)
app.add_typer(recipe.app, name="recipe")
app.add_typer(teacher.app, name="teacher")
app.add_typer(weights.app, name="weights")
app.add_typer(hub.app, name="hub")
for _command in (  # in the order of the help
    distill.distill,
    evaluate.evaluate,
    robustness.robustness,
    calibrate.calibrate,
    images.images,
    superpixels.superpixels,
    pretrain.pretrain,
    probe.probe,
    finetune.finetune,
    import_weights.import_weights,
    zero_shot.zero_shot,
    prompt.prompt,
    words.words,
    quantize.quantize,
    label.label,
    select.select,
    estimate.estimate,
    segment.segment,
    export.export,
    view.view,
    demo.demo,
    doctor.doctor,
):
    app.command(
        "import" if _command is import_weights.import_weights else None,
        short_help=(_command.__doc__ or "").partition("\n")[0],
    )(_command)


def _print_version(requested: bool) -> None:
    if requested:
        from pcseg_core import __version__

        typer.echo(f"pcseg {__version__}")
        raise typer.Exit


def _set_volume(quiet: bool, verbose: bool) -> None:
    """Hide progress and notes, or log everything. Of torchrun's processes the first one tells."""
    if quiet or os.environ.get("RANK", "0") != "0":
        from pcseg_core.progress import console

        console().quiet = True
    if verbose:
        import logging

        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("pcseg_core").setLevel(logging.DEBUG)


@app.callback()
def _root(
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks of errors."),
    quiet: bool = typer.Option(False, "--quiet", help="Show no progress and no notes."),
    verbose: bool = typer.Option(False, "--verbose", help="Log what happens inside."),
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Print the version."
    ),
) -> None:
    """From a recording of LiDAR and cameras to a LiDAR segmenter that runs live.

    --debug, --quiet and --verbose may also stand after the command. `--json -` writes JSON to the
    standard output, and what the command prints to the standard error.
    """
    _set_volume(quiet, verbose)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Handler of SIGTERM: the command stores its work and ends."""
    if signal.getsignal(number) is _terminate:  # else a training ends itself at its next step
        raise Terminated


def main() -> None:
    """Entry point of the `pcseg` command."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(prog_name="pcseg")
    finally:  # what runs at exit must not be interrupted by an exception
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
