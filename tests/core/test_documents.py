# SPDX-License-Identifier: Apache-2.0
"""The documents agree with the code: links, commands, options, recipes and modules exist."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import typer
from pydantic.fields import FieldInfo
from typer.main import get_command

from pcseg_core.cli import app
from pcseg_core.config import Section, parse_section, yaml_mapping
from pcseg_core.learning.recipe import Recipe
from pcseg_core.recipes import available_recipes
from pcseg_core.vision.pixel_classes import TEACHERS
from pcseg_core.vision.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def commands(path: Path, start: str) -> Iterator[list[str]]:
    """Words of the command lines that begin with `start`, in code blocks and in code spans."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = "\n".join(re.findall(r"^ *```(?:bash)?\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE))
    spans = "\n".join(re.findall(r"`([^`\n]+)`", text))
    for line in f"{blocks}\n{spans}".splitlines():
        words = line.partition(" #")[0].split()
        if words[: len(start.split())] == start.split():
            yield words[len(start.split()) :]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", path.read_text("utf-8")):
        if target.startswith(("http:", "https:")):
            continue
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{name(path)}: no {target}"
        assert not anchor or anchor in anchors(file), f"{name(path)}: no heading #{anchor}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_commands_and_their_options_exist(path: Path) -> None:
    for words in commands(path, "pcseg"):
        command = get_command(app)
        while hasattr(command, "get_command") and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
            found = command.get_command(typer.Context(command), words[0])
            assert found is not None, f"{name(path)}: pcseg {' '.join(words)}: no such command"
            command, words = found, words[1:]
        parameters = command.get_params(typer.Context(command))
        known = {option for p in parameters for option in (*p.opts, *p.secondary_opts)}
        used = {word.strip("[]").partition("=")[0] for word in words if "--" in word[:3]}
        assert used <= known, f"{name(path)}: {command.name} has no {sorted(used - known)}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_recipes_exist(path: Path) -> None:
    for words in commands(path, "pcseg"):
        for option, value in pairwise(words):
            if option == "--recipe" and re.fullmatch(r"[a-z-]+", value):
                assert value in available_recipes(), f"{name(path)}: no recipe {value}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_modules_and_their_options_exist(path: Path) -> None:
    for words in commands(path, "python -m"):
        if not words[0].startswith(("pcseg", "benchmarks")):
            continue
        spec = importlib.util.find_spec(words[0])
        assert spec is not None and spec.origin, f"{name(path)}: no module {words[0]}"
        source = Path(spec.origin).read_text(encoding="utf-8")
        for option in (word.strip("[]").partition("=")[0] for word in words if "--" in word[:3]):
            written = option in source or re.search(rf"\b{option[2:].replace('-', '_')}: ", source)
            assert written, f"{name(path)}: {words[0]} has no {option}"


def test_every_kind_of_teacher_has_a_section_and_valid_recipes() -> None:
    path = ROOT / "docs" / "teachers.md"
    headings = " ".join(anchors(path))
    assert all(kind in headings for kind in TEACHERS.names())
    blocks = re.findall(r"^```yaml\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    recipes = [block for block in blocks if not block.startswith("/segment_node")]
    assert len(recipes) >= 12
    for block in recipes:
        parse_section(yaml_mapping(block, "docs/teachers.md"), Recipe, block)


def test_the_recipe_of_the_papers_is_valid() -> None:
    text = (ROOT / "docs" / "tutorials" / "pretraining.md").read_text("utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    recipe = parse_section(yaml_mapping(block, "pretraining.md"), Recipe, "pretraining.md")
    assert recipe.encoder is not None and recipe.across_sweeps


def test_keys_of_recipes_exist() -> None:
    text = (ROOT / "docs" / "training.md").read_text("utf-8")
    keys = re.findall(rf"`((?:{'|'.join(Recipe.model_fields)})(?:\.[a-z_]+)+)`", text)
    assert len(keys) > 10
    for key in keys:
        section: object = Recipe
        for part in key.split("."):
            fields = fields_of(section)
            assert part in fields, f"docs/training.md: recipes have no key {key}"
            section = fields[part].annotation


def fields_of(annotation: object) -> dict[str, FieldInfo]:
    """Fields of a section, of the section in an optional annotation, or of all kinds by name."""
    options = (annotation, *get_args(annotation))
    for option in options:
        for entry in getattr(option, "__metadata__", ()):
            registry = getattr(getattr(entry, "func", None), "__self__", None)
            if isinstance(registry, Registry):
                kinds = [registry.kind(kind).options for kind in registry.names()]
                return {key: field for kind in kinds for key, field in kind.model_fields.items()}
    return next((o.model_fields for o in options if isinstance(o, type(Section))), {})
