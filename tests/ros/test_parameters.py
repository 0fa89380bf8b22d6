# SPDX-License-Identifier: Apache-2.0
"""Parameters made from a section, and the section made from parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import Field

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

import rclpy
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter

from pcseg_core.config import LIVE, Section
from pcseg_core.errors import InputError
from pcseg_ros.config import NodeConfig
from pcseg_ros.parameter_file import parameter_specs
from pcseg_ros.parameters import SectionParameters, descriptor_of


class Inner(Section):
    sigma: float = Field(0.5, gt=0.0, lt=2.0, description="Width, m", json_schema_extra=LIVE)
    mode: Literal["near", "far"] = Field("near", description="Which", json_schema_extra=LIVE)


class Outer(Section):
    name: str = Field("a", description="Name")
    count: int = Field(3, ge=1, description="How many", json_schema_extra=LIVE)
    words: tuple[str, ...] = Field((), description="Words", json_schema_extra=LIVE)
    scale: float | None = Field(None, ge=0.0, description="Scale", json_schema_extra=LIVE)
    inner: Inner = Field(Inner(), description="Nested")


@pytest.fixture
def context() -> Iterator[Context]:
    made = Context()
    rclpy.init(context=made)
    yield made
    rclpy.try_shutdown(context=made)


def make(context: Context, **overrides: Any) -> tuple[Node, SectionParameters[Outer]]:
    given = [Parameter(name.replace("__", "."), value=value) for name, value in overrides.items()]
    node = Node(
        "probe",
        context=context,
        parameter_overrides=given,
        automatically_declare_parameters_from_overrides=True,
    )
    return node, SectionParameters(node, Outer)


def change(node: Node, **values: Any) -> Any:
    given = [Parameter(name.replace("__", "."), value=value) for name, value in values.items()]
    return node.set_parameters_atomically(given)


def test_names_and_live_marks() -> None:
    specs = parameter_specs(Outer)
    assert list(specs) == ["name", "count", "words", "scale", "inner.sigma", "inner.mode"]
    assert [spec.live for spec in specs.values()] == [False, True, True, True, True, True]


def test_descriptors() -> None:
    specs = parameter_specs(Outer)
    count = descriptor_of(specs["count"])
    assert (count.integer_range[0].from_value, count.integer_range[0].to_value) == (1, 2**63 - 1)
    assert not count.read_only and descriptor_of(specs["name"]).read_only
    sigma = descriptor_of(specs["inner.sigma"])
    assert sigma.additional_constraints == "greater than 0.0; less than 2.0"
    assert sigma.floating_point_range[0].to_value == 2.0
    assert sigma.description == "Width, m"
    assert descriptor_of(specs["inner.mode"]).additional_constraints == "one of: near, far"


def test_every_node_parameter_has_a_description() -> None:
    for spec in parameter_specs(NodeConfig).values():
        assert descriptor_of(spec).description


def test_defaults_and_overrides(context: Context) -> None:
    _, settings = make(context)
    assert settings.current() == Outer()
    _, settings = make(context, count=7, words=["x", "y"], scale=2.0, inner__mode="far")
    expected = Outer(count=7, words=("x", "y"), scale=2.0, inner=Inner(mode="far"))
    assert settings.current() == expected


def test_whole_number_for_a_float_at_start(context: Context) -> None:
    node, settings = make(context, inner__sigma=1, scale=3)
    assert settings.current().inner.sigma == 1.0
    assert node.get_parameter("inner.sigma").type_ == Parameter.Type.DOUBLE


def test_all_wrong_overrides_are_named(context: Context) -> None:
    with pytest.raises(InputError, match=r"'count' is 0.*'inner\.mode' is 'middle'"):
        make(context, count=0, inner__mode="middle")


def test_changes_are_seen_and_unchanged_sections_are_not_built_again(context: Context) -> None:
    node, settings = make(context)
    before = settings.current()
    assert settings.current() is before
    assert change(node, inner__sigma=1.5).successful
    assert settings.current().inner.sigma == 1.5
    assert change(node, words=["a", "b"]).successful
    assert settings.current().words == ("a", "b")
    assert change(node, words=[]).successful
    assert settings.current().words == ()
    assert change(node, scale=4.0).successful
    assert settings.current().scale == 4.0


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"inner__sigma": 2.0}, "less than 2"),  # the descriptor's range includes its ends
        ({"inner__sigma": 3.0}, "range"),
        ({"inner__mode": "middle"}, "'near' or 'far'"),
        ({"words": [1, 2]}, "words"),
        ({"scale": "big"}, "scale"),
        ({"name": "b"}, "read-only"),
        ({"count": 2.5}, "type"),
        ({"count": 5, "inner__mode": "middle"}, "'near' or 'far'"),
    ],
)
def test_refused_changes_leave_everything_as_it_was(
    context: Context, values: dict[str, Any], reason: str
) -> None:
    node, settings = make(context)
    result = change(node, **values)
    assert not result.successful
    assert reason in result.reason
    assert settings.current() == Outer()
