# SPDX-License-Identifier: Apache-2.0
"""ROS parameters of a node that hold a configuration section."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

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
from pcseg_ros.parameter_file import (
    ParameterSpec,
    is_no_setting,
    nested,
    parameter_specs,
    renamed_parameters,
)

AnySection = TypeVar("AnySection", bound=Section)

_INT_LIMIT = 2**63 - 1
_FLOAT_LIMIT = sys.float_info.max


def descriptor_of(spec: ParameterSpec) -> ParameterDescriptor:
    """Descriptor with description, range and read_only, as `ros2 param describe` shows it."""
    descriptor = ParameterDescriptor(
        name=spec.name,
        description=spec.description,
        additional_constraints=spec.constraints,
        read_only=not spec.live,
        # rclpy cannot type an empty array or a value that is not set; the section checks them.
        dynamic_typing=spec.optional or spec.is_array,
    )
    low, high = spec.bounds
    if low is None and high is None:
        return descriptor
    if spec.kind is int:
        start, end = -_INT_LIMIT if low is None else low, _INT_LIMIT if high is None else high
        descriptor.integer_range = [IntegerRange(from_value=int(start), to_value=int(end))]
    elif spec.kind is float:
        start, end = -_FLOAT_LIMIT if low is None else low, _FLOAT_LIMIT if high is None else high
        ends = FloatingPointRange(from_value=float(start), to_value=float(end))
        descriptor.floating_point_range = [ends]
    return descriptor


class SectionParameters(Generic[AnySection]):
    """The parameters of a node that hold a section.

    The node must be created with `automatically_declare_parameters_from_overrides=True`, so that
    the given values are known before the parameters exist. They are then declared again with their
    descriptors. Integers are accepted for float parameters at start.

    Raises:
        InputError: given values do not fit the section, or are names that were renamed; the
            message lists all of them.
    """

    def __init__(self, node: Node, section: type[AnySection]) -> None:
        self._node = node
        self._section = section
        self._specs = parameter_specs(section)
        self._cache: tuple[tuple[Any, ...], AnySection] | None = None
        given = node.get_parameters_by_prefix("")
        refused = renamed_parameters(section)
        checked = {n: p.value for n, p in given.items() if n in self._specs or n in refused}
        self._declare(checked)
        self._warn_unknown(given)
        node.add_on_set_parameters_callback(self._check)

    def current(self) -> AnySection:
        """The section with the current values; any thread."""
        values = tuple(_plain(self._node.get_parameter(name).value) for name in self._specs)
        if self._cache is None or self._cache[0] != values:
            self._cache = values, self._parse(dict(zip(self._specs, values)))
        return self._cache[1]

    def changed(self, parameters: Iterable[Parameter]) -> AnySection:
        """The section after a change.

        Raises:
            InputError: it does not accept the change.
        """
        changed = {p.name: _plain(p.value) for p in parameters if p.name in self._specs}
        present = {name: _plain(self._node.get_parameter(name).value) for name in self._specs}
        return self._parse({**present, **changed})

    def _declare(self, given: Mapping[str, Any]) -> None:
        section = self._parse(given)
        for name, spec in self._specs.items():
            if name in given:
                self._node.undeclare_parameter(name)
            value = _value_at(section, name)
            self._node.declare_parameter(
                name,
                # [""] is an empty array: files that `ros2 param dump` writes can then be loaded.
                list(value) or [""] if isinstance(value, tuple) else value,
                descriptor_of(spec),
                ignore_override=True,
            )

    def _parse(self, values: Mapping[str, Any]) -> AnySection:
        return parse_section(nested(values), self._section, source="parameters")

    def _check(self, parameters: list[Parameter]) -> SetParametersResult:
        """Accept a change of live parameters only if the section as a whole accepts it."""
        if not any(parameter.name in self._specs for parameter in parameters):
            return SetParametersResult(successful=True)
        try:
            self.changed(parameters)
        except InputError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _warn_unknown(self, given: Iterable[str]) -> None:
        for name in given:
            if name in self._specs or is_no_setting(name):
                continue
            inside = [known for known in self._specs if known.startswith(f"{name}.")]
            close = inside or difflib.get_close_matches(name, self._specs, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            self._node.get_logger().warning(f"parameter '{name}' is unknown and ignored{hint}")


def _plain(value: Any) -> Any:
    """Arrays as tuples, so that they compare by value; [""] is an empty one."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return () if list(value) == [""] else tuple(value)


def _value_at(section: Section, name: str) -> Any:
    value: Any = section
    for key in name.split("."):
        value = getattr(value, key)
    return value
