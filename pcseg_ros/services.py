# SPDX-License-Identifier: Apache-2.0
"""Services of the node: `~/reset` and `~/enable`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from std_srvs.srv import SetBool, Trigger

from pcseg_ros import topics


class NodeServices:
    """Answers both services for the life of the node, in whatever lifecycle state.

    Args:
        node: owner.
        reset: forgets all sweeps and transforms.

    Attributes:
        enabled: whether sweeps are to be labeled.
    """

    def __init__(self, node: Node, reset: Callable[[], None]) -> None:
        self.enabled = True
        self._reset = reset
        node.create_service(Trigger, topics.RESET, self._on_reset)
        node.create_service(SetBool, topics.ENABLE, self._on_enable)

    def _on_reset(self, request: Any, response: Any) -> Any:
        self._reset()
        response.success, response.message = True, "past sweeps and transforms are forgotten"
        return response

    def _on_enable(self, request: Any, response: Any) -> Any:
        self.enabled = bool(request.data)
        response.success = True
        response.message = "sweeps are labeled" if self.enabled else "sweeps are ignored"
        return response
