# SPDX-License-Identifier: Apache-2.0
"""The reference of the documentation: every command, option and key of a recipe, described."""

from __future__ import annotations

import re

import pcseg_core
from pcseg_core.cli.reference import command_page, python_page, recipe_page
from pcseg_core.recipes import available_recipes

HAS_NO_TEXT = re.compile(r"^\| (`[^`]+`)(?: \|[^|]*){0,2} \|  \|$", re.MULTILINE)


def test_every_command_and_option_is_described() -> None:
    text = command_page()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert {"pcseg distill", "pcseg bag info", "pcseg weights get"} <= {
        section.partition("\n")[0] for section in sections
    }
    for section in sections:
        name, _, rest = section.partition("\n")
        assert re.match(r"\n```\n" + name + r".*\n```\n\n\w+", rest), name
    assert "| `--out FOLDER|URL` | Run directory, new or to resume;" in text
    assert not HAS_NO_TEXT.findall(text)


def test_every_key_of_a_recipe_is_described() -> None:
    text = recipe_page()
    assert all(f"| `{name}` |" in text for name in available_recipes())
    assert "| `loss.class_quota` | number, >= 0, &lt;= 1 | `0.0` | Least share of the" in text
    for title in ("teacher: espnetv2", "encoder: resnet50", "superpixels: slic"):
        assert f"## {title}\n" in text
    assert not HAS_NO_TEXT.findall(text)


def test_the_page_of_the_api_names_every_public_name() -> None:
    found = re.findall(r"^::: (\S+)\.(\w+)$", python_page(), re.MULTILINE)
    assert {name for _, name in found} == {*pcseg_core.__all__} - {"__version__"}
