# SPDX-License-Identifier: Apache-2.0
"""Pages of the documentation that are made of the code: commands, recipes and the Python API.

`python -m pcseg_core.cli.reference commands` prints a page in Markdown, `recipes` and `python` the
others.
"""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from pcseg_core.config import Section

_BY_NAME = "Options of one of the kinds below, which `name` selects"
_SHORT = {int: "integer", float: "number", str: "text", bool: "yes or no"}


def command_page() -> str:
    """All commands with their arguments and options, from the command line itself."""
    from typer import Context
    from typer.main import get_command

    from pcseg_core.cli import app

    root = get_command(app)
    lines = ["# Command line", "", "The same as `pcseg COMMAND --help`."]
    for name, command in _commands("pcseg", root):
        context = Context(command, info_name=name)
        usage = command.get_usage(context).removeprefix("Usage: ")
        lines += ["", f"## {name}", "", "```", " ".join(usage.split()), "```", ""]
        lines += [_escaped(line) for line in (command.help or "").splitlines()]
        records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
        rows = [(_code(r[0]), _escaped(r[1])) for r in records if r and not r[0].endswith("--help")]
        if rows:
            lines += ["", "| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
    return "\n".join(lines) + "\n"


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Each command below a group with its words, in the order of the help."""
    from typer import Context

    for name in command.list_commands(Context(command)):
        found = command.get_command(Context(command), name)
        if hasattr(found, "list_commands"):
            yield from _commands(f"{path} {name}", found)
        else:
            yield f"{path} {name}", found


def recipe_page() -> str:
    """The recipes of the package, and every key of a recipe from its model."""
    from pcseg_core.learning.finetune import FinetuneRecipe
    from pcseg_core.learning.recipe import Recipe
    from pcseg_core.recipes import available_recipes, recipe_file, recipe_kind, recipe_summary

    lines = ["# Recipes", "", "| recipe | kind | summary |", "|---|---|---|"]
    for name in available_recipes():
        file = recipe_file(name)
        lines.append(f"| `{name}` | {recipe_kind(file)} | {_escaped(recipe_summary(file))} |")
    lines += ["", "A section that is not given has the defaults below. Unknown keys are errors."]
    lines += _table("Keys of `pcseg distill`, `pretrain` and `zero-shot`", Recipe)
    lines += _table("Keys of `pcseg finetune`", FinetuneRecipe)
    return "\n".join([*lines, *_kinds()]) + "\n"


def _table(title: str, section: type[Section]) -> Iterator[str]:
    """The keys of a section below a heading."""
    yield from (
        "",
        f"## {title}",
        "",
        "| key | type | default | description |",
        "|---|---|---|---|",
    )
    for key, field in _keys(section):
        cells = (f"`{key}`", _type(field), _default(field), _escaped(_describe(field)))
        yield "| " + " | ".join(cells) + " |"


def _kinds() -> Iterator[str]:
    """Keys of every kind of teacher, encoder and superpixels."""
    from pcseg_core.vision.encoder_kinds import ENCODERS
    from pcseg_core.vision.pixel_classes import TEACHERS
    from pcseg_core.vision.registry import OWN
    from pcseg_core.vision.superpixel_kinds import SUPERPIXELS

    for role, registry in (
        ("teacher", TEACHERS),
        ("encoder", ENCODERS),
        ("superpixels", SUPERPIXELS),
    ):
        for name in (name for name, of in registry.names().items() if of == OWN):
            yield from _table(f"{role}: {name}", registry.kind(name).options)


def _keys(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted keys of a section and of the sections in it, without those of kinds."""
    from pcseg_core.vision.registry import KindConfig

    for key, field in section.model_fields.items():
        if key == "name" and issubclass(section, KindConfig):
            continue
        inner = _section(field.annotation)
        if inner is None:
            yield prefix + key, field
        else:
            yield from _keys(inner, f"{prefix}{key}.")


def _section(annotation: Any) -> type[Section] | None:
    """The section of a field, also of an optional one; None for values and for kinds."""
    from pcseg_core.config import Section
    from pcseg_core.vision.registry import KindConfig

    for option in (annotation, *get_args(annotation)):
        if isinstance(option, type(Section)) and issubclass(option, Section):
            return None if issubclass(option, KindConfig) else option
    return None


def _type(field: FieldInfo) -> str:
    return _escaped(f"{_type_name(field.annotation)}{_range(field)}")


def _type_name(annotation: Any) -> str:
    """The type of a value in words."""
    arguments = [a for a in get_args(annotation) if a is not type(None)]
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(argument) for argument in arguments)
    if origin is Literal:
        return ", ".join(str(argument) for argument in arguments)
    if origin in (list, tuple):
        return f"list of {_type_name(arguments[0])}"
    if origin is not None and origin.__name__ == "Annotated":
        return _type_name(arguments[0])
    if origin is dict:
        return "mapping"
    known = _SHORT.get(annotation)
    return known or {"Path": "path"}.get(getattr(annotation, "__name__", ""), "section")


def _range(field: FieldInfo) -> str:
    signs = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
    found = [
        f"{sign} {getattr(bound, key):g}"
        for bound in field.metadata
        for key, sign in signs
        if isinstance(getattr(bound, key, None), (int, float))
    ]
    return f", {', '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    from pcseg_core.config import Section

    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, Section):
        return ""
    return _code(json.dumps(value, default=str))


def _describe(field: FieldInfo) -> str:
    from pcseg_core.vision.registry import KindConfig

    default = field.default_factory and field.get_default(call_default_factory=True)
    return field.description or (_BY_NAME if isinstance(default, KindConfig) else "")


def python_page() -> str:
    """The public API: a directive per name, which the site fills from the docstrings."""
    import pcseg_core

    lines = ["# Python API", "", "`import pcseg_core as pcseg` gives these names."]
    for name in pcseg_core.__all__:
        if name != "__version__":
            lines += ["", f"::: {pcseg_core._MODULE_OF[name]}.{name}"]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return f"`{text}`"


def _escaped(text: str) -> str:
    """Text in a cell of a table; code in backticks stays as it is."""
    parts = text.split("`")
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = re.sub(r"([|*_\[])", r"\\\1", part).replace("<", "&lt;")
    return "`".join(parts)


PAGES = {"commands": command_page, "recipes": recipe_page, "python": python_page}

if __name__ == "__main__":
    if sys.argv[1:] not in [[name] for name in PAGES]:
        sys.exit(f"usage: python -m pcseg_core.cli.reference {' | '.join(PAGES)}")
    print(PAGES[sys.argv[1]](), end="")
