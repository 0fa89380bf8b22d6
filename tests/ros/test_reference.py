# SPDX-License-Identifier: Apache-2.0
"""Files that are generated from the configuration are up to date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import Field

from pcseg_core.config import Section, parse_section
from pcseg_ros.config import NodeConfig
from pcseg_ros.parameter_file import parameter_specs
from pcseg_ros.reference import BLOCKS, DOCUMENTS, block, parameter_file, parameter_table, update
from pcseg_ros.topics import TOPICS

ROOT = Path(__file__).resolve().parents[2]


class Camera(Section):
    rate: float = Field(10.0, gt=0.0, description="Hz")
    names: tuple[str, ...] = Field(("a", "b"), description="Names")


class Nested(Section):
    enabled: bool = Field(True, description="On")
    camera: Camera = Field(Camera(), description="Camera")
    depth: int = Field(2, ge=1, le=5, description="Depth")


def parse(text: str) -> dict:
    return yaml.safe_load(text)["/**"]["ros__parameters"]


def test_parameter_file_is_the_generated_one() -> None:
    text = (ROOT / "config" / "segment.yaml").read_text()
    assert text == parameter_file(), "run: python -m pcseg_ros.reference file > config/segment.yaml"


def test_parameter_file_holds_the_defaults() -> None:
    assert parse_section(parse(parameter_file()), NodeConfig) == NodeConfig()
    assert parse_section(parse(parameter_file(Nested)), Nested) == Nested()
    assert all(len(line) <= 100 for line in parameter_file().splitlines())


def test_table_has_a_row_for_every_parameter() -> None:
    rows = parameter_table().splitlines()[2:]
    names = [row.split("|")[1].strip(" `") for row in rows]
    assert names == list(parameter_specs(NodeConfig))
    assert all(row.count("|") == 7 for row in rows)
    assert "| `camera.rate` | double | `10.0` | greater than 0.0" in parameter_table(Nested)
    assert "| `depth` | integer | `2` | 1 to 5 |" in parameter_table(Nested)
    assert '| `camera.names` | string array | `["a", "b"]` |' in parameter_table(Nested)


@pytest.mark.parametrize("file, name, key", BLOCKS)
def test_tables_of_the_documents_are_the_generated_ones(file: str, name: str, key: str) -> None:
    text = (ROOT / file).read_text()
    start, end = block(text, name)
    assert text[start:end] == DOCUMENTS[key](), "run: python -m pcseg_ros.reference update"


def test_update_repairs_every_generated_file(tmp_path: Path) -> None:
    files = {"config/segment.yaml", *(file for file, _, _ in BLOCKS)}
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        text = (ROOT / file).read_text()
        for of, name, _ in BLOCKS:
            if of == file:
                start, end = block(text, name)
                text = text[:start] + "old\n" + text[end:]
        (tmp_path / file).write_text("old" if file.endswith(".yaml") else text)
    update(tmp_path)
    assert all((tmp_path / file).read_text() == (ROOT / file).read_text() for file in files)


def test_topics_of_the_readme_exist() -> None:
    rows = re.findall(
        r"^\| `([\w/]+)` \| (\S+) \| (in|out) \|", (ROOT / "README.md").read_text(), re.M
    )
    known = {(topic.name, topic.kind, topic.direction) for topic in TOPICS}
    assert len(rows) == 6 and set(rows) <= known
