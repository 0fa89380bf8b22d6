# SPDX-License-Identifier: Apache-2.0
"""Progress on stderr, so that stdout holds results alone.

Terminals show bars. Anywhere else, such as in a log file, long work prints a line every
`LINE_EVERY_S` seconds, also while a single step takes longer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.table import Column

T = TypeVar("T")

LINE_EVERY_S = 20.0
"""Time between two lines of a bar where there is no terminal [s]."""
_DESCRIPTION_WIDTH, _BAR_WIDTH = 28, 16  # leave room for count and time on 80 columns


@cache
def console() -> Console:
    """The console on stderr. Imports rich, which takes longer than the help of a command."""
    from rich.console import Console

    return Console(stderr=True)


class Bar:
    """Progress of one task; see `bar`.

    Use it as a context manager, or call `start` and `stop`. Bars may be nested.
    """

    _display: Progress | None = None  # a terminal has one, with a row for each running bar
    _running = 0

    def __init__(
        self,
        description: str,
        total: int | None = None,
        transient: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.description, self.total, self.done = description, total, 0
        self._transient, self._clock = transient, clock
        self._row: TaskID | None = None
        self._printed_s, self._has_printed = clock(), False
        self._figures = ""
        self._ended = threading.Event()

    def start(self) -> None:
        """Show the bar."""
        self._printed_s = self._clock()
        if not console().is_terminal:
            self._ended.clear()
            threading.Thread(target=self._repeat, daemon=True).start()
            return
        if Bar._display is None:
            Bar._display = _new_display()
            Bar._display.start()
        self._row = Bar._display.add_task(self.description, total=self.total, figures="")
        Bar._running += 1

    def stop(self) -> None:
        """Close the bar; a transient one disappears."""
        self._ended.set()
        if self._has_printed:
            self._print()
        if self._row is None or Bar._display is None:
            return
        if self._transient:
            Bar._display.remove_task(self._row)
        self._row = None
        Bar._running -= 1
        if not Bar._running:
            Bar._display.stop()
            Bar._display = None

    def __enter__(self) -> Bar:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __call__(
        self, done: int, total: int | None = None, figures: str = "", description: str | None = None
    ) -> None:
        """Update the bar.

        Args:
            done: steps done.
            total: steps in all; None leaves it as it is.
            figures: text behind the bar, such as losses.
            description: text in front of the bar; None leaves it as it is.
        """
        self.done, self._figures = done, figures
        self.total = self.total if total is None else total
        self.description = self.description if description is None else description
        if self._row is not None and Bar._display is not None:
            Bar._display.update(
                self._row,
                completed=done,
                total=self.total,
                description=self.description,
                figures=figures,
            )
        elif not console().is_terminal:
            self._print_if_due()

    def advance(self, steps: int = 1) -> None:
        """Add steps to those that are done."""
        self(self.done + steps, figures=self._figures)

    def _repeat(self) -> None:
        """Print lines until the bar is closed, whether it is updated or not."""
        while not self._ended.wait(LINE_EVERY_S - (self._clock() - self._printed_s)):
            self._print_if_due()

    def _print_if_due(self) -> None:
        if self._clock() - self._printed_s >= LINE_EVERY_S:
            self._print()

    def _print(self) -> None:
        self._printed_s, self._has_printed = self._clock(), True
        total = "?" if self.total is None else self.total
        line = f"{self.description}: {self.done}/{total} {self._figures}".rstrip()
        console().print(line, highlight=False, markup=False, soft_wrap=True)


def _new_display() -> Progress:
    """Rows of description, bar, count, remaining time and figures; the last are cut off."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", table_column=_column(max_width=_DESCRIPTION_WIDTH)),
        BarColumn(_BAR_WIDTH),
        MofNCompleteColumn(table_column=_column()),
        TimeRemainingColumn(table_column=_column()),
        TextColumn("{task.fields[figures]}", table_column=_column(ratio=1)),
        console=console(),
        refresh_per_second=4,
        expand=True,
    )


def _column(max_width: int | None = None, ratio: int | None = None) -> Column:
    from rich.table import Column

    return Column(max_width=max_width, ratio=ratio, no_wrap=True, overflow="ellipsis")


def bar(description: str, total: int | None = None, transient: bool = False) -> Bar:
    """A bar for a `with` block, whose target is called with (steps done, steps in all).

    Args:
        description: the task, in front of the bar.
        total: steps in all, if they are known.
        transient: remove the bar when the task is done.
    """
    return Bar(description, total, transient)


def tracked(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` with a bar that disappears at the end."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(description, total, transient=True) as progress:
        for item in items:
            yield item
            progress.advance()


def note(message: str) -> None:
    """Print a remark, such as what was skipped."""
    console().print(message, style="yellow", highlight=False, markup=False, soft_wrap=True)
