# SPDX-License-Identifier: Apache-2.0
"""A configuration section seen as a flat list of parameters. No ROS imports."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from pcseg_core.config import Section


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
    def constraints(self) -> str:
        """What the ranges of a descriptor cannot say, in words."""
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
        """Lower and upper end of the range, None where it is open."""
        low, high = None, None
        for bound in self.field.metadata:
            for key in ("ge", "gt"):
                low = getattr(bound, key, None) if low is None else low
            for key in ("le", "lt"):
                high = getattr(bound, key, None) if high is None else high
        return low, high


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
