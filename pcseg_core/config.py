# SPDX-License-Identifier: Apache-2.0
"""Configuration: typed sections with defaults, units and ranges; unknown keys are errors."""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pcseg_core.errors import InputError

# Marks a field that may change while the node runs; all others become read-only parameters.
LIVE: dict[str, Any] = {"live": True}


class Section(BaseModel):
    """Base of all configuration sections: frozen, unknown keys refused, defaults checked.

    A subclass declares its values with `pydantic.Field(default, description=..., ge=..., le=...)`;
    descriptions state the unit. Command line options, ROS parameters and the tables in the
    documentation are generated from these fields.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    renamed: ClassVar[dict[str, str]] = {}
    """Former names of fields: refused, with the new name in the message."""


AnySection = TypeVar("AnySection", bound=Section)

MAX_YAML_BYTES = 16 << 20
MAX_YAML_DEPTH = 64
MAX_YAML_VALUES = 1_000_000
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(path: str | os.PathLike[str], section: type[AnySection]) -> AnySection:
    """Read a YAML file into a section.

    Raises:
        InputError: the file is missing, is not YAML, or has unknown keys or invalid values; the
            message lists every one of them with its dotted path.
    """
    return parse_section(read_yaml(path), section, source=str(path))


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping; an empty file is an empty mapping.

    Raises:
        InputError: the file is missing, is not YAML, is larger than 16 MiB, is nested deeper than
            64 levels, or its aliases expand it to more than a million values.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_YAML_BYTES + 1)
        if len(data) > MAX_YAML_BYTES:
            raise InputError(f"{path}: larger than {MAX_YAML_BYTES} bytes; give a YAML file")
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; give the path of a YAML file") from error
    return yaml_mapping(text, str(path))


def yaml_mapping(text: str, source: str) -> dict[str, Any]:
    """The mapping in a YAML text; `source` names it in messages, see `read_yaml`."""
    try:
        content = _parse_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(f"{source} is not valid YAML: {_cut(error, 400)}") from error
    except Exception as error:  # the kind depends on the tag of the wrong value
        raise InputError(f"{source}: a value cannot be read: {_cut(error, 400)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise InputError(f"{source}: expected keys with values at the top level, found a {kind}")
    return content


def _parse_yaml(text: str) -> Any:
    """The first document, after a check of its size."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_YAML_DEPTH:
            raise ValueError(f"nested deeper than {MAX_YAML_DEPTH} levels")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded_size(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded_size(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values of a node with all aliases expanded.

    Raises:
        ValueError: a node contains itself, or the number is above the limit.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("an alias is inside of what it names")
        return known[id(node)]
    if node.tag.endswith(":int") and len(node.value) > 100:
        raise ValueError(f"an integer of {len(node.value)} digits")
    known[id(node)] = 0  # not complete yet
    size = 1
    if isinstance(node, yaml.CollectionNode):
        for entry in node.value:
            for child in entry if isinstance(entry, tuple) else (entry,):
                size += _expanded_size(child, known)
    if size > MAX_YAML_VALUES:
        raise ValueError(f"its aliases expand to more than {MAX_YAML_VALUES} values")
    known[id(node)] = size
    return size


def _cut(value: object, length: int) -> str:
    """The text of a value, cut to a length that fits a message."""
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}..."


def parse_section(
    values: Mapping[str, Any], section: type[AnySection], source: str = "configuration"
) -> AnySection:
    """Check plain values against a section; `source` names them in the error message."""
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        problems = [_describe(dict(problem), section, values) for problem in error.errors()]
        raise InputError(f"{source}: " + "; ".join(problems)) from error


def _describe(problem: Mapping[str, Any], section: type[Section], values: object) -> str:
    location = problem["loc"]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        parent = _section_at(section, location[:-1], values)
        new_name = getattr(parent, "renamed", {}).get(location[-1])
        if new_name is not None:
            return f"'{key}' is now called '{new_name}'"
        known = list(getattr(parent, "model_fields", {}))
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
        return f"unknown key '{key}' ({hint})"
    if problem["type"] == "missing":
        return f"'{key}' is required and missing"
    reason = _cut(str(problem["msg"]).removeprefix("Value error, "), 800)
    if problem["type"] == "value_error" and isinstance(problem["input"], Mapping):
        return f"{key}: {reason}" if key else reason  # of several values: the reason names them
    return f"'{key}' is {_short(problem['input'])}: {reason}"


def _short(value: object) -> str:
    """A value as in Python, cut to a length that fits a message."""
    try:
        return _cut(reprlib.repr(value) if isinstance(value, (dict, list)) else repr(value), 120)
    except ValueError:  # an integer of thousands of digits
        return f"a {type(value).__name__} that is too long to show"


def _section_at(section: type[Section], location: tuple[Any, ...], values: object) -> Any:
    """The (nested) section at a location of the values, best effort."""
    current: Any = section
    for part in location:
        try:
            values = values[part]  # type: ignore[index]
        except (LookupError, TypeError):
            values = {}
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            continue  # an index, or the tag of a union
        kinds = (field.annotation, *get_args(field.annotation))  # the members of an optional one
        current = next((k for k in kinds if hasattr(k, "model_fields")), field.annotation)
        for entry in (*field.metadata, *getattr(current, "__metadata__", ())):
            choice = getattr(getattr(entry, "func", None), "__self__", None)
            if choice is not None and hasattr(choice, "section") and isinstance(values, Mapping):
                current = choice.section(values)  # a registry, whose section depends on the values
    return current
