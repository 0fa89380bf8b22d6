# SPDX-License-Identifier: Apache-2.0
"""Progress of long work on the terminal, on stderr so that stdout holds results alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True)


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function that takes (steps done, steps in all) and shows them as a bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def note(message: str) -> None:
    """A remark that is no result: what was left out, what was skipped."""
    console.print(message, style="yellow", highlight=False, markup=False, soft_wrap=True)
