# SPDX-License-Identifier: Apache-2.0
"""package.xml, setup.cfg and the files that they name agree."""

from __future__ import annotations

import configparser
import importlib.util
import runpy
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from pcseg_core import __version__

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def manifest() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


def test_name_and_version_are_the_same_everywhere(
    setup: configparser.ConfigParser, manifest: ElementTree.Element
) -> None:
    assert manifest.get("format") == "3"
    assert manifest.findtext("name") == setup["metadata"]["name"]
    assert manifest.findtext("version") == __version__
    assert manifest.findtext("license") == setup["metadata"]["license"]
    assert manifest.findtext("export/build_type") == "ament_python"
    assert (ROOT / "resource" / setup["metadata"]["name"]).is_file()


def test_every_launch_and_config_file_is_installed(setup: configparser.ConfigParser) -> None:
    listed = set(" ".join(setup["options.data_files"].values()).split())
    assert all((ROOT / name).is_file() for name in listed)
    present = {
        *ROOT.glob("launch/*.launch.py"),
        *(p for p in ROOT.glob("config/**/*") if p.is_file()),
    }
    assert {str(path.relative_to(ROOT)) for path in present} <= listed


def test_ros2_run_finds_the_executable(setup: configparser.ConfigParser) -> None:
    scripts = setup["options.entry_points"]["console_scripts"].split("\n")
    targets = dict(line.replace(" ", "").split("=") for line in scripts if line)
    assert targets["segment_node"] == targets["pcseg-segment-node"]
    for target in targets.values():
        assert importlib.util.find_spec(target.partition(":")[0]) is not None
    assert setup["develop"]["script_dir"] == setup["install"]["install_scripts"]


def test_nodes_run_in_the_active_environment(tmp_path: Path) -> None:
    """As colcon installs them, with the Python that runs colcon."""
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path]
    command += ["install_scripts", "--skip-build", "--install-dir", tmp_path / "lib"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    first = (tmp_path / "lib" / "segment_node").read_text().partition("\n")[0]
    assert first == "#!/usr/bin/env python3"


def test_the_workspace_holds_this_repository() -> None:
    assert (ROOT / "ros2_ws" / "src" / "pcseg_ros").resolve() == ROOT


def test_folders_of_ros_files_do_not_shadow_ros_packages() -> None:
    assert not (ROOT / "launch" / "__init__.py").exists()
    assert not (ROOT / "config" / "__init__.py").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("current", [True, False])
def test_develop_builds_the_native_library_unless_it_is_current(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, current: bool
) -> None:
    """As `colcon build --symlink-install` installs the package."""
    pytest.importorskip("setuptools")
    from setuptools import Distribution
    from setuptools.command.develop import develop

    native = runpy.run_path(str(ROOT / "pcseg_core" / "native" / "build.py"))
    command = native["setup_arguments"]()["cmdclass"]["develop"]
    built: list[Path] = []
    monkeypatch.setitem(native["build"].__globals__, "build", built.append)
    monkeypatch.setitem(native["build"].__globals__, "SOURCES", tmp_path)
    library = tmp_path / native["LIBRARY"]
    library.write_text(native["source_hash"]() if current else "of other sources")
    monkeypatch.setattr(develop, "run", lambda self: None)
    command(Distribution()).run()
    assert built == ([] if current else [tmp_path])


@pytest.mark.filterwarnings("ignore")
def test_develop_writes_nodes_that_run_in_the_active_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `colcon build --symlink-install` installs them, with the Python that runs colcon."""
    pytest.importorskip("setuptools")
    from setuptools import Distribution
    from setuptools.command.develop import develop

    native = runpy.run_path(str(ROOT / "pcseg_core" / "native" / "build.py"))
    command = native["setup_arguments"]()["cmdclass"]["develop"]
    written: list[str] = []
    monkeypatch.setattr(
        develop, "write_script", lambda self, name, text, mode: written.append(text), raising=False
    )
    distribution = Distribution()
    distribution.parse_config_files([str(ROOT / "setup.cfg")])
    command(distribution).write_script("segment_node", "#!/usr/bin/python3\nimport sys\n", "")
    assert written == ["#!/usr/bin/env python3\nimport sys\n"]


def test_colcon_reads_the_setup_cfg() -> None:
    # colcon-core takes setup.cfg alone only where this text stands in setup.py; otherwise it runs
    # setup.py and parses the repr of what it finds, which fails on version specifiers.
    assert "setup()" in (ROOT / "setup.py").read_text()


def test_the_node_is_on_the_graph_before_torch_is_loaded() -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
    code = "import sys, pcseg_ros.segment_node; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_the_parameter_file_is_one_that_rcl_reads() -> None:
    rclpy = pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
    from pcseg_ros.config import NodeConfig
    from pcseg_ros.parameters import SectionParameters

    context = rclpy.context.Context()
    file = str(ROOT / "config" / "segment.yaml")
    rclpy.init(context=context, args=["--ros-args", "--params-file", file])
    node = rclpy.create_node(
        "probe", context=context, automatically_declare_parameters_from_overrides=True
    )
    assert SectionParameters(node, NodeConfig).current() == NodeConfig()
    node.destroy_node()
    context.try_shutdown()


def test_a_parameter_file_with_a_renamed_parameter_is_refused(tmp_path: Path) -> None:
    rclpy = pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
    from pcseg_core.errors import InputError
    from pcseg_ros.config import NodeConfig
    from pcseg_ros.parameters import SectionParameters

    file = tmp_path / "params.yaml"
    file.write_text("/**: {ros__parameters: {motion: {stamp_is: end}}}")
    context = rclpy.context.Context()
    rclpy.init(context=context, args=["--ros-args", "--params-file", str(file)])
    node = rclpy.create_node(
        "probe", context=context, automatically_declare_parameters_from_overrides=True
    )
    with pytest.raises(InputError, match=r"'motion\.stamp_is' is now called 'stamp_reference'"):
        SectionParameters(node, NodeConfig)
    node.destroy_node()
    context.try_shutdown()
