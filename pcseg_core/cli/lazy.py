# SPDX-License-Identifier: Apache-2.0
"""Commands whose module is imported only when they run, so that `pcseg --help` is quick."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class LazyCommand(TyperCommand):
    """Stands for a command in listings; the first use loads the real one and hands over to it."""

    def __init__(self, name: str, summary: str, load: Callable[[], Any]) -> None:
        super().__init__(name=name, help=summary, short_help=summary)
        self._load = load

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse arguments with the real command; its context carries on without this one."""
        return self._load().make_context(*args, **kwargs)


def from_module(module: str, attribute: str, name: str) -> Callable[[], Any]:
    """Loader of a command that is a function, or a typer application, inside a module."""

    def load() -> Any:
        return as_command(getattr(importlib.import_module(module), attribute), name)

    return load


def as_command(target: Any, name: str) -> Any:
    """Turn a function with typer annotations, or a typer application, into a command."""
    if isinstance(target, typer.Typer):
        command = typer.main.get_command(target)
    else:
        application = typer.Typer(add_completion=False, rich_markup_mode=None)
        application.command(name=name)(target)
        command = typer.main.get_command(application)
    command.name = name
    return command


def as_group(target: typer.Typer, name: str) -> TyperGroup:
    """Turn a typer application into a group of commands, also when it has just one."""
    group = typer.main.get_group(target)
    group.name = name
    return group
