# SPDX-License-Identifier: Apache-2.0
"""Parameters that name classes and change while the node runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from pcseg_core.errors import PcsegError
from pcseg_core.labels import LabelSpace

_ACCEPTED = SetParametersResult(successful=True)


class Classes(Protocol):
    """What has the classes: the node."""

    @property
    def label_space(self) -> LabelSpace | None:
        """The classes in force; None without a checkpoint."""

    @property
    def prompted(self) -> bool:
        """The classes come from `prompts`."""

    def set_prompts(self, prompts: Sequence[str]) -> LabelSpace:
        """Change the classes, or raise PcsegError and leave them."""


class LiveClasses:
    """Answers changes of `prompts` and `filter_classes`.

    Made before all others that check parameters, since the last one made is asked first: a change
    that anybody refuses must not reach the segmenter.

    Args:
        node: owner of the parameters.
        classes: what has the classes.
        announce: called when they have changed, after the change has been answered.
    """

    def __init__(
        self, node: Node, classes: Classes, announce: Callable[[LabelSpace], None]
    ) -> None:
        self._node = node
        self._classes = classes
        self._announce = announce
        node.add_on_set_parameters_callback(self._check)

    def _check(self, parameters: list[Parameter]) -> SetParametersResult:
        before = self._classes.label_space
        if before is None:
            return _ACCEPTED  # checked when the node is configured
        given = {p.name: _words(p) for p in parameters if p.name in _CHECKED}
        try:
            if "prompts" in given:
                self._set_prompts(given["prompts"])
            elif "filter_classes" in given:
                _check_known(given["filter_classes"], before)
        except PcsegError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return _ACCEPTED

    def _set_prompts(self, prompts: list[str]) -> None:
        if not prompts:
            if not self._classes.prompted:
                return
            raise PcsegError(
                "prompts is empty: name at least one class. For the classes of the checkpoint, "
                "clean the node up, empty prompts and configure it again"
            )
        space = self._classes.set_prompts(prompts)
        # Not here: the parameters with the class names cannot change inside this change.
        assert self._node.executor is not None
        self._node.executor.create_task(self._announce, space)


_CHECKED = ("prompts", "filter_classes")


def _words(parameter: Parameter) -> list[str]:
    return [word for word in parameter.value or () if word != ""]


def _check_known(names: Sequence[str], space: LabelSpace) -> None:
    unknown = [name for name in names if name not in space.names]
    if unknown:
        raise PcsegError(
            f"filter_classes names '{unknown[0]}', which is no class; they are "
            f"{', '.join(space.names)}"
        )
