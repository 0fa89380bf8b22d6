# SPDX-License-Identifier: Apache-2.0
"""Images, compose file, devcontainer, workflows and citation name what exists in the repository."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import pcseg_core

ROOT = Path(__file__).resolve().parents[2]
IMAGES = sorted(ROOT.glob("docker/Dockerfile*"))


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_images_copy_what_exists_and_install_extras_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for source in re.findall(r"^COPY (\S+) ", text, re.MULTILINE):
        assert (ROOT / source).exists(), source
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extras in re.findall(r"(?:pcseg_ros|source)\[([\w,]+)\]", text):
        assert set(extras.split(",")) <= set(setup["options.extras_require"])
    linter = shutil.which("hadolint")
    if linter:
        subprocess.run([linter, path], check=True, timeout=60)


def test_images_skip_keys_that_package_xml_has() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    skipped = re.findall(r"python3-[\w-]+", text.partition("--skip-keys")[2].partition("&&")[0])
    assert skipped
    manifest = (ROOT / "package.xml").read_text(encoding="utf-8")
    assert all(f">{key}<" in manifest for key in skipped)


def test_the_compose_file_launches_the_node_with_arguments_that_exist() -> None:
    services = read("compose.yaml")["services"]
    assert (ROOT / services["node"]["build"]["dockerfile"]).is_file()
    launch = "".join(
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("launch/segment.launch.py", "pcseg_ros/launching.py")
    )
    arguments = [word.partition(":=")[0] for word in services["node"]["command"] if ":=" in word]
    assert len(arguments) == 3
    assert all(f'"{argument}"' in launch for argument in arguments)
    layout = services["rviz"]["command"][-1]
    assert (ROOT / layout.lstrip("/")).is_file()
    developed = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert (ROOT / ".devcontainer" / developed["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("name", ["ci", "ros", "release"])
def test_workflows_run_targets_that_exist(name: str) -> None:
    jobs = read(f".github/workflows/{name}.yml")["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = [target for run in commands for target in re.findall(r"^make (\w+)$", run)]
    assert commands and set(made) <= set(targets)
    assert name != "ci" or {"lint", "docs", "test"} <= set(made)


def test_supported_pythons_are_the_same_everywhere() -> None:
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    classified = re.findall(r"Python :: (3\.\d+)$", setup, re.MULTILINE)
    tested = read(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert classified == tested == ["3.10", "3.11", "3.12", "3.13"]


def test_the_citation_is_of_this_version() -> None:
    assert read("CITATION.cff")["version"] == pcseg_core.__version__


def test_hooks_run_the_linters_of_make_lint() -> None:
    hooks = read(".pre-commit-config.yaml")["repos"][0]["hooks"]
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2]
    linted = set(re.findall(r"\$\(BIN\)/([\w-]+)", lint))
    entries = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks}
    assert entries <= linted and {"ruff", "mypy", "lint-imports", "codespell"} <= entries
