# SPDX-License-Identifier: Apache-2.0
"""A training as a command: told apart by its inputs, run once or resumed, and logged."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pcseg_core.bundled import FILE_NAME, bundled_file
from pcseg_core.errors import InputError

if TYPE_CHECKING:
    from pcseg_core.cluster.run import RayOptions
    from pcseg_core.cluster.train import Work

_RUNS = ("start", "teacher_3d")  # options that take the URL of a run


def trained(work: Work, out: Path, fresh: bool, options: RayOptions | None) -> dict[str, Any]:
    """The figures of a training: here, or by the processes of a cluster."""
    if options is None:
        return work(fresh=fresh)
    from pcseg_core.cluster.train import train_on_ray

    return train_on_ray(work, out, fresh, options)


def described(
    recipe: str | Path | None,
    sources: Sequence[str],
    out: Path,
    cache: Path | None,
    *,
    tested: Sequence[str] = (),
    **others: Any,
) -> dict[str, Any]:
    """What identifies a training command, after a check of its paths. Does not import torch.

    Args:
        recipe: name or file of the recipe (a Path is a file); None for the defaults.
        sources: recordings to train on.
        out, cache: folders of the run, which may be inside a recording.
        tested: recordings to measure on.
        others: further options; paths are identified by their files.

    Raises:
        InputError: a recipe or path does not exist, the recipe is not YAML, or known weights that
            it names are not on this machine.
    """
    from hashlib import sha256

    from pcseg_core.config import read_yaml
    from pcseg_core.copies import shown, url_of
    from pcseg_core.data import find_source
    from pcseg_core.known_weights import check_named
    from pcseg_core.learning.run_folder import identity, named
    from pcseg_core.recipes import recipe_file
    from pcseg_core.storage import as_url

    file = recipe_file(recipe) if isinstance(recipe, str) else recipe
    content = {} if file is None else read_yaml(file)
    for source in (*sources, *tested):
        find_source(source)
    check_named(content, str(recipe))
    for name, value in others.items():
        if isinstance(value, Path):
            url = as_url(value) if name in _RUNS else None
            if url is None and not value.exists() and not bundled_file(value):
                raise InputError(f"{value}: no such file or folder")
            if value.resolve() == out.resolve() or (url and url == url_of(out)):
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"--out {shown(out)} is the run of {option}; choose another --out")
            others[name] = named(name, value)
    return {
        "recipe": None if file is None else sha256(file.read_bytes()).hexdigest(),
        "sources": [identity(source, (out, cache or out)) for source in sources],
        **({"tested": [identity(source) for source in tested]} if tested else {}),
        **others,
    }


def run_once(
    out: Path, resume: bool, command: dict[str, Any], train: Callable[[bool], dict[str, Any]]
) -> dict[str, Any]:
    """The figures of a training, or at once those of a finished one by the same command.

    Args:
        out: run directory.
        resume: False starts over.
        command: see `described`.
        train: imports torch and trains; its argument says whether to delete an earlier run.

    Raises:
        InputError: `out` holds something else than a run.
        KeyboardInterrupt: a signal ended the work; the message says how to resume.

    The command, its duration and its outcome are added to logs/pcseg.log of a run that had not
    finished. Where torchrun starts the processes again, they resume. A run at a URL is held and
    mirrored, see `run_mirror`.
    """
    import os

    from pcseg_core.learning.run_folder import RUN, is_first_process
    from pcseg_core.learning.run_mirror import held

    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if not is_first_process():
        _run_once(out, resume, command, train)
        raise typer.Exit  # the first process tells the figures
    with held(out, RUN, fresh=not resume):
        return _run_once(out, resume, command, train)


def _run_once(
    out: Path, resume: bool, command: dict[str, Any], train: Callable[[bool], dict[str, Any]]
) -> dict[str, Any]:
    """See `run_once`."""
    import os

    import yaml

    from pcseg_core.config import read_yaml
    from pcseg_core.copies import url_of
    from pcseg_core.files import check_new_folder, claim_folder, write_atomic
    from pcseg_core.learning.run_folder import COMMAND, RECIPE, RUN, finished, is_first_process

    # Another machine under torchrun may have an older copy: all look once they are joined.
    known = url_of(out) is None or int(os.environ.get("WORLD_SIZE", "1")) == 1
    if not resume:
        check_new_folder(out, RUN, force=True)
    elif claim_folder(out, RUN) and (out / COMMAND).is_file() and known:
        same = read_yaml(out / COMMAND) == command
        if same and (figures := finished(out)) is not None:
            return figures
    start, outcome = time.monotonic(), "failed"
    unchanged = resume and (out / FILE_NAME).is_file()  # a finished run stays as it is
    try:
        figures = train(not resume)
        outcome = "done"
    except KeyboardInterrupt as error:
        outcome = "interrupted"
        if error.args:
            raise  # of the training, with the step
        raise type(error)("interrupted; run the same command again to resume") from None
    except Exception as error:
        outcome = f"failed: {' '.join(str(error).split())}"
        raise
    finally:
        if (out / RECIPE).is_file() and is_first_process() and not unchanged:
            _log(out / "logs" / "pcseg.log", time.monotonic() - start, outcome)
    if (out / RECIPE).is_file() and is_first_process():
        write_atomic(out / COMMAND, yaml.safe_dump(command, sort_keys=False))
    return figures


def _log(file: Path, seconds: float, outcome: str) -> None:
    """Add a line about this command to a log file."""
    from pcseg_core import __version__

    file.parent.mkdir(exist_ok=True)
    with file.open("a", encoding="utf-8") as log:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        words = shlex.join(sys.argv[1:])
        log.write(f"{now} pcseg {__version__} after {seconds:.0f} s: {words}: {outcome}\n")
