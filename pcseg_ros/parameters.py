# SPDX-License-Identifier: Apache-2.0
"""ROS parameters generated from a configuration section, and the section read back from them."""

from __future__ import annotations

import difflib
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from pcseg_core.config import Section, parse_section
from pcseg_core.errors import InputError

AnySection = TypeVar("AnySection", bound=Section)

_INT_LIMIT = 2**63 - 1
_OF_EVERY_NODE = ("use_sim_time", "start_type_description_service")


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter: its dotted name and the field of the section it comes from."""

    name: str
    field: FieldInfo

    @property
    def live(self) -> bool:
        """It may change while the node runs."""
        extra = self.field.json_schema_extra
        return isinstance(extra, dict) and bool(extra.get("live"))

    @property
    def kind(self) -> Any:
        """Python type of the value, `None` of an optional taken away."""
        options = [a for a in get_args(self.field.annotation) if a is not type(None)]
        return options[0] if self.optional else self.field.annotation

    @property
    def optional(self) -> bool:
        """The value may be absent (None, a parameter that is not set)."""
        is_union = get_origin(self.field.annotation) in (Union, types.UnionType)
        return is_union and type(None) in get_args(self.field.annotation)

    @property
    def constraints(self) -> str:
        """What the ranges of a descriptor cannot say, in words."""
        words = []
        if get_origin(self.kind) is Literal:
            words.append("one of: " + ", ".join(str(v) for v in get_args(self.kind)))
        for bound in self.field.metadata:
            for key, text in (("gt", "greater than"), ("lt", "less than"), ("pattern", "matches")):
                if getattr(bound, key, None) is not None:
                    words.append(f"{text} {getattr(bound, key)}")
        return "; ".join(words)

    def bounds(self) -> tuple[float | None, float | None]:
        """Lower and upper end of the range, None where it is open."""
        low, high = None, None
        for bound in self.field.metadata:
            for key in ("ge", "gt"):
                low = getattr(bound, key, None) if low is None else low
            for key in ("le", "lt"):
                high = getattr(bound, key, None) if high is None else high
        return low, high

    def descriptor(self) -> ParameterDescriptor:
        """Descriptor with description, range and read_only, as `ros2 param describe` shows it."""
        descriptor = ParameterDescriptor(
            name=self.name,
            description=self.field.description or "",
            additional_constraints=self.constraints,
            read_only=not self.live,
            # rclpy cannot type an empty array or an absent value; the section checks them.
            dynamic_typing=self.optional or get_origin(self.kind) in (list, tuple),
        )
        low, high = self.bounds()
        if self.kind is int and (low, high) != (None, None):
            ends = (-_INT_LIMIT if low is None else low, _INT_LIMIT if high is None else high)
            descriptor.integer_range = [
                IntegerRange(from_value=int(ends[0]), to_value=int(ends[1]))
            ]
        elif self.kind is float and (low, high) != (None, None):
            limit = sys.float_info.max
            start, end = -limit if low is None else low, limit if high is None else high
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(start), to_value=float(end))
            ]
        return descriptor


def parameter_specs(section: type[Section], prefix: str = "") -> dict[str, ParameterSpec]:
    """Parameters of a section by name; fields of nested sections get dotted names."""
    specs: dict[str, ParameterSpec] = {}
    for key, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            specs |= parameter_specs(kind, f"{prefix}{key}.")
        else:
            specs[prefix + key] = ParameterSpec(prefix + key, field)
    return specs


class SectionParameters(Generic[AnySection]):
    """The parameters of a node that hold a section.

    The node must be made with `automatically_declare_parameters_from_overrides=True`; that is how
    the given values are known before the parameters exist. They are then declared anew with their
    descriptors. Whole numbers are accepted for float parameters at start.

    Raises:
        InputError: given values do not fit the section; the message lists all of them.
    """

    def __init__(self, node: Node, section: type[AnySection]) -> None:
        self._node = node
        self._section = section
        self._specs = parameter_specs(section)
        self._cache: tuple[tuple[Any, ...], AnySection] | None = None
        given = node.get_parameters_by_prefix("")
        self._declare({name: p.value for name, p in given.items() if name in self._specs})
        self._warn_unknown(given)
        node.add_on_set_parameters_callback(self._check)

    def current(self) -> AnySection:
        """The section with the present values. May be called from any thread."""
        values = tuple(_plain(self._node.get_parameter(name).value) for name in self._specs)
        if self._cache is None or self._cache[0] != values:
            self._cache = values, self._parse(dict(zip(self._specs, values)))
        return self._cache[1]

    def _declare(self, given: Mapping[str, Any]) -> None:
        section = self._parse(given)
        for name, spec in self._specs.items():
            if name in given:
                self._node.undeclare_parameter(name)
            value = _value_at(section, name)
            self._node.declare_parameter(
                name,
                list(value) if isinstance(value, tuple) else value,
                spec.descriptor(),
                ignore_override=True,
            )

    def _parse(self, values: Mapping[str, Any]) -> AnySection:
        return parse_section(_nested(values), self._section, source="parameters")

    def _check(self, parameters: list[Parameter]) -> SetParametersResult:
        """Accept a change of live parameters only if the section as a whole accepts it."""
        changed = {p.name: _plain(p.value) for p in parameters if p.name in self._specs}
        if not changed:
            return SetParametersResult(successful=True)
        present = {name: _plain(self._node.get_parameter(name).value) for name in self._specs}
        try:
            self._parse({**present, **changed})
        except InputError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _warn_unknown(self, given: Iterable[str]) -> None:
        for name in given:
            known = name in self._specs or name in _OF_EVERY_NODE
            if known or name.startswith("qos_overrides."):
                continue
            close = difflib.get_close_matches(name, self._specs, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            self._node.get_logger().warning(f"parameter '{name}' is unknown and ignored{hint}")


def _plain(value: Any) -> Any:
    """Arrays as tuples, so that they compare by value."""
    return value if value is None or isinstance(value, (str, bool, int, float)) else tuple(value)


def _value_at(section: Section, name: str) -> Any:
    value: Any = section
    for key in name.split("."):
        value = getattr(value, key)
    return value


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} as {"a": {"b": 1}}."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        *parents, key = name.split(".")
        inner = result
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[key] = value
    return result
