# SPDX-License-Identifier: Apache-2.0
"""The public API: `import pcseg_core as pcseg` gives every name of `__all__`, when it is used."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic.fields import FieldInfo

import pcseg_core as pcseg
from pcseg_core.config import Section

ROOT = Path(__file__).resolve().parents[2]


def test_import_brings_neither_torch_nor_numpy_until_a_name_is_used() -> None:
    script = """
import sys
import pcseg_core as pcseg
assert not {"torch", "numpy", "pydantic"} & set(sys.modules), "imported with the package"
pcseg.InputError
assert "torch" not in sys.modules, "imported with the errors"
pcseg.Segmenter
assert "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=120)


def test_every_public_name_resolves_and_is_listed() -> None:
    assert len(set(pcseg.__all__)) == len(pcseg.__all__)
    for name in pcseg.__all__:
        assert getattr(pcseg, name) is not None
    assert dir(pcseg) == sorted(pcseg.__all__)
    assert pcseg.PointCloud.__module__ == "pcseg_core.cloud"


def test_star_import_gives_the_public_names_alone() -> None:
    names: dict[str, object] = {}
    exec("from pcseg_core import *", names)
    assert set(names) - {"__builtins__"} == set(pcseg.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'pcseg_core' has no attribute 'Segmeter'"):
        pcseg.Segmeter  # noqa: B018
    with pytest.raises(ImportError, match="Segmeter"):
        exec("from pcseg_core import Segmeter", {})


def test_type_checkers_see_the_same_names_in_the_same_modules() -> None:
    tree = ast.parse(Path(pcseg.__file__).read_text(encoding="utf-8"))
    guard = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: statement.module
        for statement in guard.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen == pcseg._MODULE_OF
    assert {*seen, "__version__"} == set(pcseg.__all__)
    assert (Path(pcseg.__file__).parent / "py.typed").is_file()


def test_version_is_a_literal_that_setuptools_reads_without_importing() -> None:
    tree = ast.parse(Path(pcseg.__file__).read_text(encoding="utf-8"))
    values = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        if [target.id for target in node.targets if isinstance(target, ast.Name)] == ["__version__"]
    ]
    assert values == [pcseg.__version__]


def test_a_cloud_is_segmented_in_one_line() -> None:
    xyz = np.random.default_rng(0).uniform(-20, 20, (500, 3)).astype(np.float32)
    intensity = np.full(500, 0.5, np.float32)
    xyz[0] = np.nan
    result = pcseg.Segmenter.load("bundled").segment(pcseg.PointCloud(xyz, intensity))
    assert result.labels.shape == result.confidence.shape == (500,)
    assert result.labels[0] == -1 and result.confidence[0] == 0
    assert result.label_space is not None
    assert {result.label_space.names[label] for label in result.labels[1:]} <= set(
        pcseg.LabelSpace.load("street").names
    )


def test_python_of_the_readme_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks, "README.md has no Python"
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], cwd=ROOT, check=True, timeout=120)


def test_every_public_name_and_its_parts_are_documented() -> None:
    for name in set(pcseg.__all__) - {"__version__"}:
        value = getattr(pcseg, name)
        assert (value.__doc__ or "").strip(), name
        if not inspect.isclass(value):
            continue
        for part, member in vars(value).items():
            function = member.fget if isinstance(member, property) else member
            function = getattr(function, "__func__", function)
            if inspect.isfunction(function) and not part.startswith("_"):
                assert function.__doc__, f"{name}.{part}"
        fields = getattr(value, "model_fields", {})
        assert all(field.description or is_section(field) for field in fields.values()), name
        for field in getattr(value, "__dataclass_fields__", {}):
            assert re.search(rf"\b{field}\b", value.__doc__), f"{name}.{field}"


def is_section(field: FieldInfo) -> bool:
    return inspect.isclass(field.annotation) and issubclass(field.annotation, Section)
