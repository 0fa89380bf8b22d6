# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node of rclpy, with the same answers to bad requests on every distribution.

The warnings of `pcseg_core` appear in its log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lifecycle_msgs.srv import ChangeState
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.subscription import Subscription
from rclpy.timer import Timer


class NodeLog(logging.Handler):
    """Passes warnings and errors of the Python library to the log of a node."""

    def __init__(self, node: LifecycleNode) -> None:
        super().__init__(logging.WARNING)
        self._node = node

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record; rclpy wants a line of code for each severity."""
        if record.levelno >= logging.ERROR:
            self._node.get_logger().error(record.getMessage())
        else:
            self._node.get_logger().warning(record.getMessage())


class TolerantLifecycleNode(LifecycleNode):
    """Refuses transitions that the state does not allow, and accepts empty parameters.

    Args:
        arguments: of `rclpy.lifecycle.LifecycleNode`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        logging.getLogger("pcseg_core").addHandler(NodeLog(self))
        service = next(s for s in self.services if s.srv_type is ChangeState)
        change = service.callback

        def answer(
            request: ChangeState.Request, response: ChangeState.Response
        ) -> ChangeState.Response:
            try:
                return change(request, response)
            # RCLError: rclpy of Humble and Jazzy raises it in the executor, which would end the
            # process. Errors of the transitions themselves do not get here.
            except RuntimeError as error:
                wanted = request.transition.label or request.transition.id
                self.get_logger().warning(f"transition {wanted} refused: {error}")
                response.success = False
                return response

        service.callback = answer

    @contextmanager
    def undoing(self) -> Iterator[None]:
        """Destroy the topics and timers that a block creates if it fails."""
        before = self._entities()
        try:
            yield
        except Exception:
            for made in self._entities():
                if any(made is old for old in before):
                    continue
                if isinstance(made, LifecyclePublisher):
                    self.destroy_lifecycle_publisher(made)
                elif isinstance(made, Publisher):
                    self.destroy_publisher(made)
                elif isinstance(made, Subscription):
                    self.destroy_subscription(made)
                else:
                    self.destroy_timer(made)
            raise

    def _entities(self) -> list[Publisher[Any] | Subscription[Any] | Timer]:
        return [*self.subscriptions, *self.publishers, *self.timers]

    def declare_parameters(
        self, namespace: str, parameters: Sequence[Any], *arguments: Any, **options: Any
    ) -> list[Parameter]:
        """As rclpy, but leave out the empty values of parameter files.

        Their type is unknown, and rclpy refuses them without naming the parameter.
        """
        given = [p for p in parameters if len(p) == 1 or p[1] is not None]
        for name, *_ in (p for p in parameters if p not in given):
            self.get_logger().warning(
                f"parameter '{name}' is empty: its default is used; an empty list is ['']"
            )
        declared: list[Parameter] = super().declare_parameters(
            namespace, given, *arguments, **options
        )
        return declared
