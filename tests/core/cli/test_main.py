# SPDX-License-Identifier: Apache-2.0
"""The `pcseg` command itself: quick help, errors without tracebacks, commands of plugins."""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import pcseg_core.cli as cli
from pcseg_core import progress
from pcseg_core.cli.help import EXAMPLES, GROUPS
from pcseg_core.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[3]
COMMANDS = ("bag", "distill", "evaluate", "segment", "view", "doctor")
runner = CliRunner()


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )


Failing = Callable[[BaseException], None]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """Make `pcseg doctor` raise."""

    def arrange(error: BaseException) -> None:
        def fail() -> None:
            raise error

        monkeypatch.setattr("pcseg_core.cli.doctor.findings", fail)

    return arrange


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    done = run_python(
        "import sys\n"
        "from pcseg_core.cli import main\n"
        "sys.argv = ['pcseg', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'lightning', 'rosbags', 'rclpy'}\n"
        "heavy |= {'rich', 'yaml'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)), 'code', code)"
    )
    assert "loaded [] code 0" in done.stdout, done.stderr
    for command in COMMANDS:
        assert f"  {command} " in done.stdout


@pytest.mark.parametrize("command", [*COMMANDS, "bag from-kitti", "bag info"])
def test_each_command_explains_itself(command: str) -> None:
    result = runner.invoke(cli.app, [*command.split(), "--help"])
    assert result.exit_code == 0, result.output
    assert f" {command} [OPTIONS]" in result.output


def leaves(group: typer.core.TyperGroup, words: str = "") -> Iterator[tuple[str, object]]:
    for name in group.list_commands(typer.Context(group)):
        command = group.get_command(typer.Context(group), name)
        if hasattr(command, "list_commands"):
            yield from leaves(command, f"{words}{name} ")
        else:
            yield words + name, command


def test_each_command_is_in_one_group_of_the_help_and_has_examples_that_parse() -> None:
    group = typer.main.get_command(cli.app)
    found = dict(leaves(group))
    grouped = [name for _, names in GROUPS for name in names]
    assert sorted(grouped) == sorted(group.list_commands(typer.Context(group)))
    assert "More:" not in runner.invoke(cli.app, ["-h"]).output
    assert set(EXAMPLES) == set(found), "add an example to pcseg_core/cli/help.py"
    for name, command in found.items():
        for example in EXAMPLES[name]:
            assert example.startswith(name)
            if isinstance(command, cli.PluginCommand) and find_spec("rclpy") is None:
                continue  # it is imported for its options
            words = shlex.split(example.partition(" >")[0])[len(name.split()) :]
            command.make_context(name, words)  # raises for an option that does not exist


@pytest.mark.parametrize("option", ["--device", "--json", "--picture", "--seed", "--backend"])
def test_an_option_of_several_commands_has_one_help_text(option: str) -> None:
    texts = [
        parameter.help
        for _, command in leaves(typer.main.get_command(cli.app))
        for parameter in command.get_params(typer.Context(command))
        if option in parameter.opts
    ]
    assert len(texts) >= 3 and len(set(texts)) == 1, texts


def test_examples_and_exit_codes_are_in_the_help() -> None:
    text = runner.invoke(cli.app, ["distill", "-h"]).output
    assert "Examples:\n    pcseg distill drive --out runs/first\n    pcseg distill drive1" in text
    assert "pcseg bag info drive --json - " in runner.invoke(cli.app, ["bag", "info", "-h"]).output
    assert "130  interrupted by Ctrl-C" in runner.invoke(cli.app, ["-h"]).output


def test_quiet_hides_progress_and_verbose_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.getLogger("pcseg_core")
    monkeypatch.setattr(progress.console(), "quiet", False)
    monkeypatch.setattr(log, "level", logging.WARNING)
    monkeypatch.setattr("pcseg_core.cli.doctor.findings", lambda: progress.note("a note") or ())
    assert "a note" in runner.invoke(cli.app, ["doctor"]).stderr
    assert "a note" not in runner.invoke(cli.app, ["doctor", "--quiet"]).stderr
    assert not log.isEnabledFor(logging.DEBUG)
    assert runner.invoke(cli.app, ["--verbose", "doctor"]).exit_code == 0
    assert log.level == logging.DEBUG


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("pcseg dis", "distill"),
        ("pcseg bag from", "from-kitti"),
        ("pcseg distill --recipe zero-shot-sim", "zero-shot-simulated"),
        ("pcseg weights get deep", "deeplab-cityscapes"),
    ],
)
def test_bash_completes_commands_and_names(line: str, found: str) -> None:
    variables = {
        "_PCSEG_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
    }
    result = runner.invoke(cli.app, [], prog_name="pcseg", env=variables)
    assert result.output.strip() == found


def test_no_arguments_show_the_help() -> None:
    assert "Usage:" in runner.invoke(cli.app, []).output


def test_an_error_of_a_user_is_one_line_and_code_2(failing: Failing) -> None:
    failing(InputError("scan 7 is truncated"))
    result = runner.invoke(cli.app, ["doctor"])
    assert result.exit_code == 2
    assert result.output.strip() == "error: scan 7 is truncated"


def test_an_error_of_the_system_is_one_line_too(failing: Failing) -> None:
    failing(PermissionError(13, "Permission denied", "/etc/shadow"))
    result = runner.invoke(cli.app, ["doctor"])
    assert result.exit_code == 2
    assert "error: " in result.output
    assert "/etc/shadow" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("arguments", [["--debug", "doctor"], ["doctor", "--debug"]])
def test_debug_shows_where_it_happened(failing: Failing, arguments: list[str]) -> None:
    failing(InputError("scan 7 is truncated"))
    result = runner.invoke(cli.app, arguments)
    assert isinstance(result.exception, InputError)


def test_interrupting_ends_with_130(failing: Failing) -> None:
    failing(KeyboardInterrupt())
    result = runner.invoke(cli.app, ["doctor"])
    assert result.exit_code == 130
    assert "interrupted" in result.output


def test_a_bug_is_not_dressed_up_as_a_users_error(failing: Failing) -> None:
    failing(KeyError("labels"))
    result = runner.invoke(cli.app, ["doctor"])
    assert result.exit_code == 1
    assert "KeyError" in result.output
    assert "--debug" in result.output


def test_unknown_commands_and_options_are_refused() -> None:
    assert runner.invoke(cli.app, ["evaluete"]).exit_code == 2
    assert runner.invoke(cli.app, ["doctor", "--color"]).exit_code == 2


def test_exit_codes_reach_the_shell(tmp_path: Path) -> None:
    done = run_python(
        "import sys\nfrom pcseg_core.cli import main\n"
        f"sys.argv = ['pcseg', 'evaluate', {str(tmp_path)!r}, '--boxes', 'nowhere']\nmain()"
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no checkpoint at")


def test_a_signal_at_exit_shows_no_traceback() -> None:
    done = run_python(
        "import atexit, os, signal, sys\nfrom pcseg_core.cli import main\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "sys.argv = ['pcseg', '--version']\nmain()"
    )
    assert done.returncode == -15 and done.stderr == ""


WRONG = """
segment nowhere --checkpoint bundled --out out
segment {source} --checkpoint nowhere --out out
segment {source} --checkpoint bundled --out {taken}
label nowhere --recipe kitti --out out
label {source} --recipe nowhere --out out
label {source} --recipe kitti --out out --checkpoint nowhere
evaluate nowhere --semantic-kitti {source}
evaluate bundled --semantic-kitti nowhere
evaluate bundled --source nowhere
evaluate bundled --boxes nowhere
evaluate nowhere --checkpoint bundled
evaluate {source} --checkpoint nowhere
evaluate {source} --checkpoint bundled --compare nowhere
evaluate {source} --checkpoint bundled --labels nowhere
evaluate {source} --checkpoint bundled --teacher nowhere
view nowhere --picture out.png
view {source} --checkpoint nowhere --picture out.png
view {source} --picture nowhere/
prompt nowhere {source} --words car
prompt bundled nowhere --words car
bag info nowhere
bag from-kitti nowhere --out out
"""


def test_wrong_paths_are_found_before_torch_is_imported(
    sequence: Callable[..., Path], tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").touch()
    lines = WRONG.format(source=sequence(), taken=taken).strip().splitlines()
    done = run_python(
        "import sys\nfrom typer.testing import CliRunner\nfrom pcseg_core.cli import app\n"
        f"for line in {lines!r}:\n"
        "    result = CliRunner().invoke(app, line.split())\n"
        "    known = result.exit_code == 2 and result.output.startswith('error: ')\n"
        "    print(line, known and 'torch' not in sys.modules, result.output)\n"
    )
    wrong = [line for line in lines if f"{line} True error: " not in done.stdout]
    assert not wrong, done.stdout + done.stderr


def plugin(monkeypatch: pytest.MonkeyPatch, value: str, name: str = "bag-play") -> None:
    entry = EntryPoint(name, value, cli.PLUGIN_GROUP)
    monkeypatch.setattr(cli, "entry_points", lambda group: [entry] * (group == cli.PLUGIN_GROUP))


def played(bag: str, rate: float = 1.0) -> None:
    """Play a bag."""
    typer.echo(f"playing {bag} at {rate}")


def test_a_plugin_adds_a_command_to_bag(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(monkeypatch, f"{__name__}:played")
    result = runner.invoke(cli.app, ["bag", "play", "drive", "--rate", "2"])
    assert result.output.strip() == "playing drive at 2.0"
    assert "play" in runner.invoke(cli.app, ["bag", "--help"]).output


def test_a_plugin_that_does_not_load_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(monkeypatch, "module_that_is_not_there:play")
    assert runner.invoke(cli.app, ["bag", "--help"]).exit_code == 0  # only using it needs it
    result = runner.invoke(cli.app, ["bag", "play", "drive"])
    assert result.exit_code == 2
    assert "module_that_is_not_there" in result.output
    assert "pip install" in result.output


def test_without_the_plugin_play_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "entry_points", lambda group: [])
    result = runner.invoke(cli.app, ["bag", "play", "drive"])
    assert result.exit_code == 2
    assert "pcseg_ros" in result.output


def test_version() -> None:
    from pcseg_core import __version__

    assert runner.invoke(cli.app, ["--version"]).output.strip() == f"pcseg {__version__}"
