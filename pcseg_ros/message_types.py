# SPDX-License-Identifier: Apache-2.0
"""Classes of message types by name, of registered packages alone. No ROS imports."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from pcseg_ros.topics import TOPICS

_INTERFACES = "share/ament_index/resource_index/rosidl_interfaces"


def message_class(msgtype: str) -> type | None:
    """Class of a type like "sensor_msgs/msg/PointCloud2"; None if it is not installed.

    A bag or a publisher may name any package, and importing one runs its code. So the package must
    be registered in the ament index of a prefix, and lie in that prefix.
    """
    package, _, name = msgtype.partition("/msg/")
    if not (package.isidentifier() and name.isidentifier() and _is_registered(package)):
        return None
    try:
        found: type | None = getattr(importlib.import_module(f"{package}.msg"), name, None)
        return found
    except ImportError:
        return None


def absent_outputs() -> dict[str, list[str]]:
    """Outputs of the node whose message package is not installed, by the package."""
    absent: dict[str, list[str]] = {}
    for topic in TOPICS:
        package, _, name = topic.kind.partition("/")
        if topic.direction == "out" and message_class(f"{package}/msg/{name}") is None:
            absent.setdefault(package, []).append(topic.name)
    return absent


def _is_registered(package: str) -> bool:
    """The package that would be imported is one with messages, of a ROS installation."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return False
    named = [sys.prefix, *os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)]
    prefixes = [prefix for prefix in map(Path, named) if prefix.is_absolute()]
    holders = [prefix for prefix in prefixes if (prefix / _INTERFACES / package).is_file()]
    return any(Path(spec.origin).is_relative_to(prefix) for prefix in holders)
