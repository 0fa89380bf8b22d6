# SPDX-License-Identifier: Apache-2.0
"""Classes of the node: announced to other nodes, and changed by parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import Header

from pcseg_core.errors import InputError, PcsegError
from pcseg_core.labels import WIRE_UNLABELED, LabelSpace
from pcseg_core.online.class_maps import autoware_ids, require_classes
from pcseg_core.online.grid import read_costs
from pcseg_core.online.label_images import unlabeled_pixel
from pcseg_core.online.moving import THINGS
from pcseg_core.online.output_clouds import check_clouds
from pcseg_ros import conversions, qos, topics
from pcseg_ros.config import NodeConfig
from pcseg_ros.message_types import message_class
from pcseg_ros.parameter_file import ANNOUNCED

_DESCRIPTIONS = (
    "Class names; the position is the value of the field label",
    "Class colors (#rrggbb) in the order of class_names",
)
_ACCEPTED = SetParametersResult(successful=True)


class ClassAnnouncer:
    """Announces the classes as parameters and, if vision_msgs is installed, as latched topics."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publishers: list[Any] = []
        node.add_on_set_parameters_callback(self._refuse)

    def announce(self, space: LabelSpace) -> None:
        """Declare the parameters and publish LabelInfo."""
        values = (conversions.class_names(space), conversions.class_colors(space))
        self.withdraw()
        for name, description, value in zip(ANNOUNCED, _DESCRIPTIONS, values):
            # Not `read_only`: such a parameter could not be undeclared with the checkpoint.
            constraint = "read-only: it belongs to the checkpoint"
            descriptor = ParameterDescriptor(
                description=description, additional_constraints=constraint
            )
            self._node.declare_parameter(name, value, descriptor, ignore_override=True)
        if message_class("vision_msgs/msg/LabelInfo") is not None:
            self._publish(topics.LABEL_INFO, space, WIRE_UNLABELED)
            self._publish(topics.LABEL_IMAGE_INFO, space, unlabeled_pixel(len(space)))

    def withdraw(self) -> None:
        """Remove the parameters and the topics."""
        for name in ANNOUNCED:
            if self._node.has_parameter(name):
                self._node.undeclare_parameter(name)
        while self._publishers:
            self._node.destroy_publisher(self._publishers.pop())

    def _publish(self, topic: str, space: LabelSpace, unlabeled: int) -> None:
        header = Header(stamp=self._node.get_clock().now().to_msg())
        message = conversions.label_info(space, header, unlabeled)
        publisher = self._node.create_publisher(type(message), topic, qos.latched())
        publisher.publish(message)
        self._publishers.append(publisher)

    def _refuse(self, parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name in ANNOUNCED and self._node.has_parameter(parameter.name):
                reason = f"'{parameter.name}' is read-only: it belongs to the checkpoint"
                return SetParametersResult(successful=False, reason=reason)
        return _ACCEPTED


class ClassOwner(Protocol):
    """Has the classes that the parameters change."""

    @property
    def label_space(self) -> LabelSpace | None:
        """The current classes; None without a checkpoint."""

    @property
    def prompted(self) -> bool:
        """The classes come from `prompts`."""

    def changed(self, parameters: Sequence[Parameter]) -> NodeConfig:
        """The parameters after a change; raises InputError if they do not fit."""

    def set_prompts(self, prompts: Sequence[str], config: NodeConfig) -> LabelSpace:
        """Change the classes; if this raises PcsegError, they stay."""


class ClassParameters:
    """Refuses changes of parameters that name classes which are not there, and applies `prompts`.

    Create it before all other parameter callbacks: rclpy asks the one that was added last first,
    and a change that any of them refuses must not reach the segmenter.

    Args:
        node: owner of the parameters.
        owner: owner of the classes.
        announce: called with new classes, after the answer to the change.
    """

    def __init__(
        self, node: Node, owner: ClassOwner, announce: Callable[[LabelSpace], None]
    ) -> None:
        self._node = node
        self._owner = owner
        self._announce = announce
        node.add_on_set_parameters_callback(self._check)

    def _check(self, parameters: list[Parameter]) -> SetParametersResult:
        before = self._owner.label_space
        if before is None:
            return _ACCEPTED  # checked when the node is configured
        try:
            config = self._owner.changed(parameters)
            if any(parameter.name == "prompts" for parameter in parameters):
                self._set_prompts(config)
            else:
                check_classes(config, before)
        except PcsegError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return _ACCEPTED

    def _set_prompts(self, config: NodeConfig) -> None:
        if not config.prompts:
            if not self._owner.prompted:
                return
            raise PcsegError(
                "prompts is empty: name at least one class. For the classes of the checkpoint, "
                "clean the node up, empty prompts and configure it again"
            )
        space = self._owner.set_prompts(config.prompts, config)
        # Not here: the parameters with the class names cannot change inside this change.
        assert self._node.executor is not None
        self._node.executor.create_task(self._announce, space)


def check_classes(config: NodeConfig, space: LabelSpace) -> None:
    """Raise InputError if a parameter or a file names a class that the space does not have."""
    check_clouds(config.clouds.rules, space)
    require_classes(config.output.probabilities, space, "output.probabilities")
    _check_instances(config, space)
    if config.output.profile == "autoware" or config.output.class_map:
        autoware_ids(config.output.class_map, space)
    if config.grid.costs:
        read_costs(config.grid.costs, space)


def _check_instances(config: NodeConfig, space: LabelSpace) -> None:
    """The default may name classes that the space lacks, as long as it finds something."""
    names = config.instance_classes
    wanted = config.tracks.enabled or config.publish_instances
    if names == NodeConfig.model_fields["instance_classes"].default:
        names = names if wanted and not set(names) & set(space.names) else ()
    require_classes(names, space, "instance_classes")
    if config.moving.enabled and not THINGS & set(space.names):
        raise InputError(
            f"moving.enabled: no class of {', '.join(space.names)} is one that moves; expected "
            f"one of {', '.join(sorted(THINGS))}"
        )
