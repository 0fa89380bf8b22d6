# SPDX-License-Identifier: Apache-2.0
"""Tells other nodes what the numbers in the field `label` mean."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import Header

from pcseg_core.labels import LabelSpace
from pcseg_ros import conversions, qos, topics

PARAMETERS = {
    "class_names": "Class names; the position is the value of the field label",
    "class_colors": "Class colors (#rrggbb) in the order of class_names",
}


class ClassAnnouncer:
    """Shows the classes of a checkpoint as parameters and, with vision_msgs, as a latched topic."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publisher: Any = None
        node.add_on_set_parameters_callback(self._refuse)

    def announce(self, space: LabelSpace) -> None:
        """Declare the parameters and publish LabelInfo."""
        values = (conversions.class_names(space), conversions.class_colors(space))
        self.withdraw()
        for (name, description), value in zip(PARAMETERS.items(), values):
            # Not `read_only`: such a parameter could not be taken back with the checkpoint.
            constraint = "read-only: it belongs to the checkpoint"
            descriptor = ParameterDescriptor(
                description=description, additional_constraints=constraint
            )
            self._node.declare_parameter(name, value, descriptor, ignore_override=True)
        if find_spec("vision_msgs") is not None:
            header = Header(stamp=self._node.get_clock().now().to_msg())
            message = conversions.label_info(space, header)
            self._publisher = self._node.create_publisher(
                type(message), topics.LABEL_INFO, qos.latched()
            )
            self._publisher.publish(message)

    def withdraw(self) -> None:
        """Take back parameters and topic."""
        for name in PARAMETERS:
            if self._node.has_parameter(name):
                self._node.undeclare_parameter(name)
        if self._publisher is not None:
            self._node.destroy_publisher(self._publisher)
            self._publisher = None

    def _refuse(self, parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name in PARAMETERS and self._node.has_parameter(parameter.name):
                reason = f"'{parameter.name}' is read-only: it belongs to the checkpoint"
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)
