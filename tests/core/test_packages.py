# SPDX-License-Identifier: Apache-2.0
"""Source distribution and wheel: built offline, complete, and usable without the repository."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pcseg_core.native.build import LIBRARY, SOURCES

ROOT = Path(__file__).resolve().parents[2]
BUILT = ("build", "dist", "ros2_ws", "demo", "runs")
USE = """
import sys
from pathlib import Path
import numpy as np
import pcseg_core as pcseg
from pcseg_core import recipes
from pcseg_core.cli.doctor import findings
from pcseg_core.config import read_yaml

site = Path(sys.argv[1])
assert Path(pcseg.__file__).is_relative_to(site), pcseg.__file__
for name in recipes.available_recipes():
    read_yaml(recipes.recipe_file(name))
xyz = np.random.default_rng(0).uniform(-20, 20, (500, 3)).astype(np.float32)
cloud = pcseg.PointCloud(xyz, np.full(500, 0.5, np.float32))
labels = pcseg.Segmenter.load("bundled").segment(cloud).labels
assert labels.min() >= 0
print(next(f.detail for f in findings() if f.subject == "sparse backend native"))
"""


def build(folder: Path, *commands: str, source: Path = ROOT, compiler: str = "none") -> Path:
    """Run setup.py in a folder of sources and return the file that it makes."""
    setup = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder]
    subprocess.run(
        [*setup, *commands, "--dist-dir", folder / "dist"],
        cwd=source,
        env={**os.environ, "CXX": compiler},
        check=True,
        capture_output=True,
        timeout=120,
    )
    (made,) = (folder / "dist").iterdir()
    return made


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    pytest.importorskip("setuptools", "70.1", reason="needs a setuptools that builds wheels")
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(folder, "sdist")) as file:
        file.extractall(folder)
    return next(path for path in folder.glob("pcseg_ros-*") if path.is_dir())


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel from the source distribution, built without a compiler."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps"]
    subprocess.run(
        [*pip, "--no-index", "-w", folder, sources],
        env={**os.environ, "CXX": "none"},
        check=True,
        timeout=120,
    )
    return next(folder.glob("*.whl"))


def test_the_source_distribution_holds_the_repository_and_nothing_built(sources: Path) -> None:
    packed = {str(path.relative_to(sources)) for path in sources.rglob("*") if path.is_file()}
    assert not [name for name in packed if name.endswith((".so", ".pyc"))]
    for pattern in ("docs/*.md", "launch/*", "config/*", "pcseg_core/native/*.cpp", "tests/*.py"):
        assert {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)} <= packed
    assert {"LICENSE", "CHANGELOG.rst", "package.xml", "resource/pcseg_ros"} <= packed


def test_the_description_on_an_index_has_no_relative_link(sources: Path) -> None:
    about = (sources / "PKG-INFO").read_text(encoding="utf-8")
    head, _, text = about.partition("\n\n")
    links = re.findall(r"\]\(([^)]*)\)", text)
    url = re.findall(r"^Project-URL: Source, (.*)", head, re.MULTILINE)[0]
    version = re.findall(r"^Version: (.*)", head, re.MULTILINE)[0]
    assert len(links) > 20 and all(link.startswith(f"{url}/") for link in links)
    assert f"![Labels from cameras, then labels from LiDAR alone]({url}/raw/v{version}/" in text
    named = {link.partition(f"/v{version}/")[2].partition("#")[0] for link in links}
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_wheel_holds_what_commands_find_by_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        packed = set(file.namelist())
    assert wheel.name.startswith("pcseg_ros-") and "-py3-none-linux_" in wheel.name
    for folder in ("recipes", "label_spaces", "class_maps", "splits", "checkpoints", "native"):
        files = [p for p in (ROOT / "pcseg_core" / folder).iterdir() if p.is_file()]
        names = {f"pcseg_core/{folder}/{p.name}" for p in files if p.suffix != ".so"}
        assert names and names <= packed
    data = {name.partition(".data/data/")[2] for name in packed}
    for path in [*ROOT.glob("config/*"), *ROOT.glob("launch/*.py")]:
        assert f"share/pcseg_ros/{path.relative_to(ROOT)}" in data
    assert not [name for name in packed if name.startswith(("tests/", "benchmarks/"))]


def test_an_installed_wheel_works_without_repository_and_compiler(
    wheel: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    found = subprocess.run(
        [sys.executable, "-c", USE, site],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "a C++ compiler is needed" in found.stdout
    assert "2 to 3 times as long" in found.stdout


def test_the_wheel_holds_the_library_that_the_compiler_made(sources: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"  # writes its arguments to the file after -o
    compiler.write_text(
        '#!/bin/sh\nall="$*"\nwhile [ "$1" != -o ]; do shift; done\necho "$all" > "$2"\n'
    )
    compiler.chmod(0o755)
    made = build(
        tmp_path,
        *("build", "--build-base", str(tmp_path / "build")),
        "bdist_wheel",
        source=sources,
        compiler=str(compiler),
    )
    with zipfile.ZipFile(made) as file:
        linked = file.read(f"pcseg_core/native/{LIBRARY}").decode()
    assert "-shared" in linked and linked.count(".o ") >= len(list(SOURCES.glob("*.cpp")))


def test_linters_before_a_commit_are_those_of_make_lint() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    linters = set(re.findall(r"\$\(BIN\)/([\w-]+)", recipe))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert len(linters) >= 6
    assert linters == set(re.findall(r"entry: \.venv/bin/([\w-]+)", hooks))


# --- one name ---------------------------------------------------------------------------------


def texts() -> Iterator[tuple[str, str]]:
    for pattern in ("*.py", "*.md", "*.yaml", "*.yml", "*.xml", "*.rst", "Dockerfile*", "Makefile"):
        for path in ROOT.rglob(pattern):
            name = path.relative_to(ROOT)
            if not {*name.parts[:-1]} & {*BUILT, ".venv", ".git"}:
                yield str(name), path.read_text(encoding="utf-8")


def extras() -> set[str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return set(parser["options.extras_require"])


def test_pip_lines_call_the_package_by_its_one_name_and_extras_that_exist() -> None:
    lines = [
        (name, line)
        for name, text in texts()
        for line in re.findall(r"pip install ([^\n`]*)", text)
        if name != "tests/core/test_packages.py"
    ]
    assert len(lines) > 20
    for name, line in lines:
        for package in re.findall(r"""(?<![\w/.-])pcseg[\w-]*""", line.partition(" #")[0]):
            assert package == "pcseg_ros", f"{name}: pip install {line}"
        for listed in re.findall(r"(?:pcseg_ros|\.)\\?\[([\w,-]+)\\?\]", line):
            unknown = set(listed.split(",")) - extras()
            assert not unknown, f"{name}: pip install {line}"


def test_errors_of_missing_packages_name_extras_that_exist() -> None:
    named = {
        extra
        for name, text in texts()
        if name.startswith("pcseg_")
        for extra in re.findall(r'require\(\s*"[\w.]+",\s*"(\w+)"\s*\)', text)
    }
    assert len(named) >= 4 and named <= extras()
