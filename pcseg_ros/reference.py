# SPDX-License-Identifier: Apache-2.0
"""Generator of the tables of parameters, topics and limits, and of config/segment.yaml.

`python -m pcseg_ros.reference table` prints the parameters for the documentation, `topics` the
topics and services, `limits` the bounds of the inputs, `file` the parameter file. `update` writes
all of them into the files of the repository in the current folder.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
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


def limit_table() -> str:
    """Markdown table of the bounds of the inputs, from the constants that the code checks."""
    from pcseg_core import (
        checkpoint,
        cloud_layout,
        config,
        geometry,
        labels,
        point_time,
        text_table,
    )
    from pcseg_core.data import bag_reader, bag_storage, images, messages
    from pcseg_core.online import grid, prompts, synchronizer

    cloud = (
        f"{cloud_layout.MAX_POINTS:,} points of at most {cloud_layout.MAX_POINT_STEP:,} bytes and "
        f"{cloud_layout.MAX_FIELDS} fields; a byte belongs to at most {cloud_layout.MAX_OVERLAP} "
        "fields on average"
    )
    times, deskewing = f"{point_time.LONGEST_SWEEP_S:g} s", f"{geometry.MAX_DESKEW_NS / 1e9:g} s"
    yaml = (
        f"{config.MAX_YAML_BYTES >> 20} MiB, {config.MAX_YAML_DEPTH} levels, "
        f"{config.MAX_YAML_VALUES:,} values with aliases expanded"
    )
    weights = (
        f"{labels.MAX_CLASSES:,} classes; tensors that its description fits; finite weights "
        f"up to {checkpoint.MAX_MAGNITUDE:,.0f}"
    )
    chunk, infos = f"{bag_storage.MAX_BYTES >> 30} GiB", f"{bag_reader.MAX_INFOS:,} different ones"
    definition = f"{messages.MAX_DEFINITION_CHARACTERS:,} characters"
    rows = (
        ("cloud", cloud, "sweep dropped, counted as malformed"),
        ("times of the points", f"{times} from the first to the last", "left out, counted"),
        ("deskewing", f"{deskewing} from the stamp to a point", "sweep not deskewed, counted"),
        ("pose, transform", f"up to {geometry.MAX_TRANSLATION_M:,.0f} m", "refused, counted"),
        ("image", f"{images.MAX_PIXELS:,} pixels; the size of its CameraInfo", "left out, counted"),
        (
            "images that wait for a sweep",
            f"{synchronizer.MAX_IMAGES} per camera",
            "oldest left out",
        ),
        ("parameter, calibration or recipe file", yaml, "refused"),
        ("checkpoint", weights, "refused"),
        ("label space", f"{labels.MAX_CLASSES:,} classes", "refused"),
        ("file of words", f"{text_table.MAX_BYTES >> 30} GiB when unpacked", "refused"),
        ("occupancy grid", f"{grid.MAX_CELLS:,} cells", "refused"),
        ("prompts", f"{prompts.MAX_WORDS:,} words", "refused, the classes stay"),
        ("message or chunk of a bag", chunk, "left out, counted"),
        ("definition of a message type in a bag", definition, "topic left out, counted"),
        ("CameraInfo of a topic in a bag", infos, "later ones left out"),
    )
    lines = ["| input | limit | beyond |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


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


DOCUMENTS = {
    "table": parameter_table,
    "file": parameter_file,
    "topics": topic_table,
    "limits": limit_table,
}
BLOCKS = (
    ("docs/node.md", "topics", "topics"),
    ("docs/node.md", "parameters", "table"),
    ("docs/vehicle.md", "limits", "limits"),
)
"""File, name between its markers, and key of `DOCUMENTS` of each generated block."""


def block(text: str, name: str) -> tuple[int, int]:
    """Where a generated block of a document begins and ends."""
    return text.index("\n", text.index(f"<!-- {name}:")) + 1, text.index(f"<!-- /{name} -->")


def update(root: Path) -> None:
    """Write the parameter file and the generated blocks of the documents of a repository."""
    (root / "config" / "segment.yaml").write_text(parameter_file(), encoding="utf-8")
    for file, name, key in BLOCKS:
        text = (root / file).read_text(encoding="utf-8")
        start, end = block(text, name)
        (root / file).write_text(text[:start] + DOCUMENTS[key]() + text[end:], encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["update"]:
        update(Path.cwd())
    elif sys.argv[1:] in [[name] for name in DOCUMENTS]:
        print(DOCUMENTS[sys.argv[1]](), end="")
    else:
        sys.exit(f"usage: python -m pcseg_ros.reference update | {' | '.join(DOCUMENTS)}")
