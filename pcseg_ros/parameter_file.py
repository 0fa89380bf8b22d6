# SPDX-License-Identifier: Apache-2.0
"""ROS parameters of a configuration section, and files that hold them. No ROS imports."""

from __future__ import annotations

import inspect
import os
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from pcseg_core.config import Section, parse_section, read_yaml
from pcseg_core.errors import InputError
from pcseg_ros.config import NodeConfig, node_section

NODE_NAME = "segment_node"
# Parameters that the node sets: they announce the classes. Files of `ros2 param dump` hold them.
ANNOUNCED = ("class_names", "class_colors")
_VALUES = "ros__parameters"


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter: its dotted name and the field of the section that declares it."""

    name: str
    field: FieldInfo

    @property
    def live(self) -> bool:
        """It may change while the node runs."""
        extra = self.field.json_schema_extra
        return isinstance(extra, dict) and bool(extra.get("live"))

    @property
    def kind(self) -> Any:
        """Python type of the value, without the `None` of an optional."""
        options = [a for a in get_args(self.field.annotation) if a is not type(None)]
        return options[0] if self.optional else self.field.annotation

    @property
    def optional(self) -> bool:
        """The value may be None, which is a parameter that is not set."""
        is_union = get_origin(self.field.annotation) in (Union, types.UnionType)
        return is_union and type(None) in get_args(self.field.annotation)

    @property
    def type_name(self) -> str:
        """Name of the parameter's type as ROS tools print it."""
        kind, suffix = self.kind, ""
        if self.is_array:
            kind, suffix = get_args(kind)[0], " array"
        return {bool: "bool", int: "integer", float: "double"}.get(kind, "string") + suffix

    @property
    def is_array(self) -> bool:
        """The value is a list or tuple."""
        return get_origin(self.kind) in (list, tuple)

    @property
    def description(self) -> str:
        """What the parameter does."""
        return self.field.description or ""

    @property
    def constraints(self) -> str:
        """Choices and open ends of ranges, which a descriptor's range cannot express."""
        words = []
        if get_origin(self.kind) is Literal:
            words.append("one of: " + ", ".join(str(v) for v in get_args(self.kind)))
        for bound in self.field.metadata:
            for key, text in (("gt", "greater than"), ("lt", "less than")):
                if getattr(bound, key, None) is not None:
                    words.append(f"{text} {getattr(bound, key)}")
        return "; ".join(words)

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """Lower and upper end of the range; None is no limit."""
        low, high = None, None
        for bound in self.field.metadata:
            for key in ("ge", "gt"):
                low = getattr(bound, key, None) if low is None else low
            for key in ("le", "lt"):
                high = getattr(bound, key, None) if high is None else high
        return low, high


def parameter_specs(section: type[Section], prefix: str = "") -> dict[str, ParameterSpec]:
    """Parameters of a section by name; fields of nested sections get dotted names.

    Order: values before nested sections; in both, the fields that a class adds before those that
    it inherits.
    """
    specs: dict[str, ParameterSpec] = {}
    nested: dict[str, ParameterSpec] = {}
    for key in _own_first(section):
        field = section.model_fields[key]
        if _is_section(field.annotation):
            nested |= parameter_specs(field.annotation, f"{prefix}{key}.")
        else:
            specs[prefix + key] = ParameterSpec(prefix + key, field)
    return specs | nested


def renamed_parameters(section: type[Section], prefix: str = "") -> set[str]:
    """Former dotted names of a section's parameters; `parse_section` refuses them."""
    names = {prefix + old for old in section.renamed}
    for key, field in section.model_fields.items():
        if _is_section(field.annotation):
            names |= renamed_parameters(field.annotation, f"{prefix}{key}.")
    return names


def is_no_setting(name: str) -> bool:
    """The parameter is one that rclpy declares for every node, or one that the node sets."""
    common = ("use_sim_time", "start_type_description_service", *ANNOUNCED)
    return name in common or name.startswith("qos_overrides.")


def nested(values: Mapping[str, Any], source: str = "parameters") -> dict[str, Any]:
    """{"a.b": 1} as {"a": {"b": 1}}; `source` names the values in the error message.

    Raises:
        InputError: a name is both a value and a section.
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        *parents, key = name.split(".")
        inner = result
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise InputError(f"{source}: '{parent}' of '{name}' is also given as a value")
        inner[key] = value
    return result


def read(path: str | os.PathLike[str]) -> NodeConfig:
    """Read the parameters of `segment_node` from a ROS parameter file.

    Values come from the entries of `/**` and of nodes called `segment_node`, in any namespace;
    later entries override earlier ones.

    Raises:
        InputError: the file is missing, has no parameters for `segment_node`, or has unknown or
            renamed names or invalid values.
    """
    entries = list(_entries(read_yaml(path), ""))
    for node, values in entries:
        if not isinstance(values, Mapping):
            raise InputError(
                f"{path}: '{_VALUES}' of {node or 'no node'} must hold names and values"
            )
    chosen = [v for node, v in entries if node.rpartition("/")[2] in ("**", "*", NODE_NAME)]
    if not chosen:
        found = ", ".join(node for node, _ in entries) or "none"
        raise InputError(
            f"{path}: no parameters for {NODE_NAME} (nodes: {found}); expected '/**:' or "
            f"'{NODE_NAME}:' with '{_VALUES}:' below it"
        )
    given: dict[str, Any] = {}
    for values in chosen:
        given |= _flat(values)
    own = {name: value for name, value in given.items() if not is_no_setting(name)}
    return parse_section(nested(own, str(path)), node_section(own, str(path)), source=str(path))


def _own_first(section: type[Section]) -> list[str]:
    """Names of the fields, those that a class declares itself before those of its bases."""
    declared = [key for kind in section.__mro__ for key in inspect.get_annotations(kind)]
    return [key for key in dict.fromkeys(declared) if key in section.model_fields]


def _is_section(kind: object) -> TypeGuard[type[Section]]:
    return isinstance(kind, type) and issubclass(kind, Section)


def _entries(content: Mapping[str, Any], node: str) -> Iterator[tuple[str, Any]]:
    """(full name of a node, its values) of all entries of a parameter file."""
    for key, value in content.items():
        if key == _VALUES:
            yield node, value or {}
        elif isinstance(value, Mapping):
            yield from _entries(value, f"{node}/{str(key).strip('/')}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
