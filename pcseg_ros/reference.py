# SPDX-License-Identifier: Apache-2.0
"""Generator of the parameter table, the topic table and config/segment.yaml.

`python -m pcseg_ros.reference table` prints the parameters for the documentation, `topics` the
topics and services, `file` the parameter file.
"""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Any

from pcseg_core.config import Section
from pcseg_ros.config import NodeConfig
from pcseg_ros.parameter_file import ParameterSpec, parameter_specs
from pcseg_ros.topics import TOPICS

_HEADER = """\
# Parameters of segment_node with their defaults. Launch arguments override this file.
# "live" parameters may be changed while the node runs (ros2 param set); the others are read-only.
# [""] is an empty list: ROS parameter files cannot hold an empty one.
/**:
  ros__parameters:
"""


def parameter_table(section: type[Section] = NodeConfig) -> str:
    """Markdown table of a section: name, type, default, range, live, description."""
    rows = [
        "| parameter | type | default | range | live | description |",
        "|---|---|---|---|---|---|",
    ]
    for spec in parameter_specs(section).values():
        cells = (f"`{spec.name}`", spec.type_name, f"`{_literal(spec.field.default)}`")
        live = "yes" if spec.live else ""
        rows.append("| " + " | ".join((*cells, _range(spec), live, spec.description)) + " |")
    return "\n".join(rows) + "\n"


def topic_table() -> str:
    """Markdown table of the topics and services."""
    rows = ["| topic or service | type | | delivery | |", "|---|---|---|---|---|"]
    for topic in TOPICS:
        name = topic.name if topic.name.startswith("(") else f"`{topic.name}`"
        cells = (name, topic.kind, topic.direction, topic.qos, topic.text)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def parameter_file(section: type[Section] = NodeConfig) -> str:
    """Parameter file (YAML) with all defaults, and the descriptions as comments."""
    text = _HEADER
    printed: tuple[str, ...] = ()
    for spec in parameter_specs(section).values():
        *parents, key = spec.name.split(".")
        text += _open_parents(tuple(parents), printed)
        printed = tuple(parents)
        indent = "    " + "  " * len(parents)
        notes = ", ".join(note for note in ("live" if spec.live else "", _range(spec)) if note)
        comment = spec.description + (f" ({notes})" if notes else "")
        text += textwrap.fill(
            comment, 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )
        text += f"\n{indent}{key}: {_literal(spec.field.default)}\n"
    return text


def _open_parents(parents: tuple[str, ...], printed: tuple[str, ...]) -> str:
    """Lines that open the sections of a parameter that its predecessor is not in."""
    common = 0
    while common < min(len(parents), len(printed)) and parents[common] == printed[common]:
        common += 1
    return "".join(
        "    " + "  " * depth + f"{name}:\n"
        for depth, name in enumerate(parents)
        if depth >= common
    )


def _range(spec: ParameterSpec) -> str:
    low, high = spec.bounds
    if "greater than" in spec.constraints:
        low = None  # an open end is among the constraints
    if "less than" in spec.constraints:
        high = None
    parts = [spec.constraints] if spec.constraints else []
    if low is not None and high is not None:
        parts.insert(0, f"{low} to {high}")
    elif low is not None or high is not None:
        parts.insert(0, f"at least {low}" if high is None else f"at most {high}")
    return "; ".join(parts)


def _literal(value: Any) -> str:
    """A default in YAML, which is JSON for these types; [""] is an empty array."""
    return json.dumps((list(value) or [""]) if isinstance(value, tuple) else value)


if __name__ == "__main__":
    documents = {"table": parameter_table, "file": parameter_file, "topics": topic_table}
    print(documents[sys.argv[1]](), end="")
