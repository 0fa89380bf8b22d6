# SPDX-License-Identifier: Apache-2.0
"""Bars on terminals, lines elsewhere."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import termios
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from pcseg_core import progress
from pcseg_core.progress import Bar, bar, note, tracked

Screen = Callable[[bool], io.StringIO]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """What is printed from now on, on a terminal or not."""

    def replace(terminal: bool) -> io.StringIO:
        output = io.StringIO()
        console = Console(file=output, force_terminal=terminal, width=100)
        monkeypatch.setattr(progress, "console", lambda: console)
        return output

    return replace


def test_a_terminal_shows_nested_bars(screen: Screen) -> None:
    output = screen(True)
    with bar("labeling") as outer:
        outer(1, 4, figures="loss 0.5")
        assert list(tracked([7, 8, 9], "reading")) == [7, 8, 9]
        outer(4, 4, description="labeled")
    text = output.getvalue()
    assert "labeling" in text and "loss 0.5" in text and "4/4" in text
    assert "reading" in text and "reading" not in text.splitlines()[-1]
    assert Bar._display is None
    with bar("again") as once_more:
        once_more(2, 2)
    assert "2/2" in output.getvalue()


def test_a_log_gets_a_line_now_and_then(screen: Screen) -> None:
    output, now_s = screen(False), [0.0]
    with Bar("training", 100, clock=lambda: now_s[0]) as training:
        for step in range(101):
            now_s[0] = step * progress.LINE_EVERY_S / 40
            training(step, figures=f"loss [{step}]")
    assert output.getvalue().splitlines() == [
        "training: 40/100 loss [40]",
        "training: 80/100 loss [80]",
        "training: 100/100 loss [100]",
    ]


def test_a_log_gets_lines_while_a_step_takes_long(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = screen(False)
    assert progress.LINE_EVERY_S <= 20
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.01)
    with bar("labeling", 3) as labeling:
        labeling(1)
        deadline = time.monotonic() + 60
        while len(output.getvalue().splitlines()) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    lines = output.getvalue().splitlines()
    assert len(lines) >= 3 and set(lines[1:]) == {"labeling: 1/3"}
    after = output.getvalue()
    time.sleep(0.1)
    assert output.getvalue() == after  # the thread has ended


@pytest.mark.parametrize("columns", [80, 60])
def test_bar_count_and_time_come_before_the_figures(columns: int) -> None:
    """On a pseudo terminal, whose size rich asks for."""
    child, terminal = pty.fork()
    if child == 0:
        try:
            for name in ("COLUMNS", "LINES", "NO_COLOR", "TERM"):
                os.environ.pop(name, None)
            os.environ["TERM"] = "xterm"
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            stream = Console(file=os.fdopen(2, "w", closefd=False))
            progress.console = lambda: stream
            clock = iter(range(1000))
            with bar("labeling the images of a very long recording", 1500) as long:
                display = Bar._display
                assert display is not None
                display.get_time = lambda: float(next(clock))
                for step in (300, 600):
                    long(step, figures=" ".join(f"loss{k} 0.123" for k in range(20)))
                display.refresh()
        finally:
            os._exit(0)
    written = b""
    with contextlib.suppress(OSError):  # the terminal is closed
        while block := os.read(terminal, 4096):
            written += block
    os.waitpid(child, 0)
    os.close(terminal)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode()).replace("\r", "\n")
    rows = [row for row in text.split("\n") if "600/1500" in row]
    assert rows and max(map(len, rows)) <= columns, text
    shown = re.search(r"labeling.*━.*600/1500 +\d:\d\d:\d\d( +loss0)?", rows[-1])
    assert shown, rows


def test_short_work_leaves_no_line_in_a_log(screen: Screen) -> None:
    output = screen(False)
    assert sum(tracked(iter([1, 2, 3]), "reading")) == 6
    assert output.getvalue() == ""
    note("skipped: [image] missing (2)")
    assert output.getvalue() == "skipped: [image] missing (2)\n"


def test_a_bar_closes_when_its_loop_ends_early(screen: Screen) -> None:
    screen(True)
    with pytest.raises(ValueError), bar("labeling"):
        for _ in tracked(range(3), "reading"):
            raise ValueError
    assert Bar._display is None and Bar._running == 0
