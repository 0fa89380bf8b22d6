# SPDX-License-Identifier: Apache-2.0
"""Parameters of the node, read from a ROS parameter file without ROS."""

from __future__ import annotations

import configparser
import importlib
from pathlib import Path

import pytest

from pcseg_core.errors import InputError
from pcseg_core.online.pipeline_config import PipelineConfig
from pcseg_ros.config import NodeConfig
from pcseg_ros.parameter_file import parameter_specs, read, renamed_parameters

ROOT = Path(__file__).resolve().parents[2]
RENAMED = {
    "motion.stamp_is": "stamp_reference",
    "temporal.new_evidence": "correlation",
    "teacher.trust": "camera_weight",
    "filter_classes": "clouds.filtered_points.classes",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


@pytest.mark.parametrize(
    "node",
    ["/**", "/segment_node", "segment_node", "/robot/front/segment_node", "/**/segment_node"],
)
def test_names_of_the_node(file: Path, node: str) -> None:
    file.write_text(f"{node}:\n  ros__parameters: {{min_confidence: 0.5}}\n")
    assert read(file) == NodeConfig(min_confidence=0.5)


def test_nested_and_dotted_names_and_namespaces(file: Path) -> None:
    file.write_text(
        """
        other_node: {ros__parameters: {speed: 3}}
        robot:
          segment_node:
            ros__parameters:
              use_sim_time: true
              qos_overrides: {/points: {subscription: {depth: 3}}}
              temporal: {enabled: true, voxel_m: 1}
              motion.deskew: true
              cameras.topics: ['']
              teacher: {fuse: true}
              instance_classes: [person]
        """
    )
    config = read(file)
    assert isinstance(config, PipelineConfig)
    assert (config.temporal.enabled, config.temporal.voxel_m) == (True, 1.0)
    assert config.motion.deskew and config.teacher.fuse
    assert config.cameras.topics == () and config.instance_classes == ("person",)


def test_later_entries_override_earlier_ones(file: Path) -> None:
    file.write_text(
        "/**: {ros__parameters: {min_confidence: 0.2, device: cpu}}\n"
        "segment_node: {ros__parameters: {min_confidence: 0.4}}\n"
    )
    assert read(file) == NodeConfig(min_confidence=0.4, device="cpu")


def test_the_file_of_the_package_holds_the_defaults() -> None:
    assert read(ROOT / "config" / "segment.yaml") == NodeConfig()


@pytest.mark.parametrize(
    "content, words",
    [
        ("/**: {ros__parameters: {min_confidense: 0.5}}", "did you mean 'min_confidence'"),
        ("/**: {ros__parameters: {motion: {sorce: tf}}}", r"unknown key 'motion\.sorce'"),
        ("/**: {ros__parameters: {min_confidence: 2}}", "'min_confidence' is 2"),
        ("/**: {ros__parameters: {motion: 1, motion.source: tf}}", "also given as a value"),
        ("other: {ros__parameters: {a: 1}}", "no parameters for segment_node.*/other"),
        ("min_confidence: 0.5", "ros__parameters"),
        ("/**: {ros__parameters: 5}", "'ros__parameters' of /.* must hold names and values"),
    ],
)
def test_mistakes_are_named(file: Path, content: str, words: str) -> None:
    file.write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        read(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("old, new", RENAMED.items())
def test_renamed_parameters_are_refused_with_the_new_name(file: Path, old: str, new: str) -> None:
    file.write_text(f"/**: {{ros__parameters: {{{old}: auto}}}}")
    with pytest.raises(InputError, match=f"'{old}' is now called '{new}"):
        read(file)


def test_every_named_cloud_has_its_parameters(file: Path) -> None:
    rules = "ground_points: {classes: [road], min_confidence: [0.5]}, obstacles: {max_range_m: 20}"
    names = "names: [ground_points, obstacles]"
    file.write_text(f"/**: {{ros__parameters: {{clouds: {{{names}, {rules}}}}}}}")
    config = read(file)
    assert isinstance(config, NodeConfig)
    assert list(config.clouds.rules) == ["ground_points", "obstacles"]
    ground, obstacles = config.clouds.rules.values()
    assert (ground.classes, ground.min_confidence) == (("road",), (0.5,))
    assert (obstacles.classes, obstacles.max_range_m) == ((), 20.0)
    file.write_text("/**: {ros__parameters: {clouds: {names: [a], b: {classes: [road]}}}}")
    with pytest.raises(InputError, match=r"unknown key 'clouds\.b'"):
        read(file)
    file.write_text("/**: {ros__parameters: {clouds: {names: [a, a]}}}")
    with pytest.raises(InputError, match=r"'clouds\.names' is .*: expected different names"):
        read(file)


def test_every_renamed_parameter_is_known() -> None:
    assert renamed_parameters(NodeConfig) == set(RENAMED)
    assert not renamed_parameters(NodeConfig) & set(parameter_specs(NodeConfig))


def test_the_plugin_is_registered() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    plugins = parser["options.entry_points"]["pcseg.plugins"].replace(" ", "").split("\n")
    module, _, name = dict(p.split("=") for p in plugins if p)["parameters"].partition(":")
    assert getattr(importlib.import_module(module), name) is read


def test_a_recording_is_opened_with_the_inputs_of_the_node() -> None:
    config = NodeConfig.model_validate(
        {
            "intensity_scale": 0.5,
            "cameras": {"topics": ["front/image", "/rear/image"], "tolerance_s": 0.02},
            "motion": {"source": "tf", "fixed_frame": "map", "stamp_reference": "end"},
        }
    )
    options = config.recording_options()
    assert options["camera_topics"] == ["/front/image", "/rear/image"]
    assert (options["poses"], options["fixed_frame"]) == ("tf", "map")
    assert (options["max_image_offset_s"], options["intensity_scale"]) == (0.02, 0.5)
    assert options["stamp_reference"] == "end"
    assert NodeConfig().recording_options()["poses"] == "recorded"


def test_the_teacher_of_the_node_is_a_block_of_any_kind(file: Path) -> None:
    block = file.parent / "teacher.yaml"
    block.write_text("teacher: {name: python, factory: 'pkg.mod:make', label_space: street}\n")
    for text in (f"'{block}'", "\"{name: python, factory: 'pkg.mod:make', label_space: street}\""):
        file.write_text(f"/**: {{ros__parameters: {{teacher: {{config: {text}}}}}}}\n")
        config = read(file).teacher.teacher_config()
        assert config is not None and (config.name, config.label_space) == ("python", "street")
    old = {"weights": "bundled:simulation_teacher", "label_space": "simulation", "scale": 2.0}
    found = NodeConfig.model_validate({"teacher": old}).teacher.teacher_config()
    assert found is not None and found.identity["scales"] == [2.0] and not found.identity["flip"]
    both = NodeConfig.model_validate({"teacher": {**old, "config": str(block)}})
    with pytest.raises(InputError, match="teacher.config or teacher.weights, not both"):
        both.teacher.teacher_config()
    assert NodeConfig().teacher.teacher_config() is None
