# SPDX-License-Identifier: Apache-2.0
"""`pcseg doctor`: installed and missing packages, their purpose, and how to install them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from pcseg_core.children import code_command
from pcseg_core.cli.options import Json
from pcseg_core.cli.outputs import check_file, text_console, write_json


class Finding(NamedTuple):
    """One line: state is "ok", "missing", "info", or "optional" for what few need."""

    subject: str
    state: str
    detail: str


# module, its distribution, the extra of pcseg_ros that installs it, purpose
_OPTIONAL = (
    ("rosbags", "rosbags", "", "read and write bags"),
    ("kiss_icp", "kiss-icp", "odometry", "poses for recordings without poses"),
    ("rerun", "rerun-sdk", "viewer", "pcseg view: interactive 3D view"),
    ("huggingface_hub", "huggingface_hub", "hub", "pcseg hub with a hub; folders need nothing"),
    ("tensorboard", "tensorboard", "tracking", "--log tensorboard"),
    ("mlflow", "mlflow", "tracking", "--log mlflow"),
    ("wandb", "wandb", "tracking", "--log wandb"),
    ("onnx", "onnx", "export", "pcseg export"),
    ("onnxruntime", "onnxruntime", "export", "teachers: ONNX files; pcseg export: comparison"),
    ("ai_edge_litert", "ai-edge-litert", "teachers", "teachers: TensorFlow Lite files"),
    ("open_clip", "open_clip_torch", "vision", "CLIP teachers and text prompts"),
    ("segment_anything", "segment-anything", "vision", "SAM superpixels"),
    ("timm", "timm", "vision", "DINO and other image features"),
    ("transformers", "transformers", "teachers", "teachers: Mask2Former, SegFormer, SAM 3, ..."),
    ("hdbscan", "hdbscan", "segments", "clusters of points across frames"),
    ("pypatchworkpp", "pypatchworkpp", "segments", "ground removal"),
    ("ray", "ray", "cluster", "--ray: work on several machines"),
    ("s3fs", "s3fs", "cluster", "recordings on s3://"),
)
_OF_DISTRIBUTIONS = (
    ("tf2_ros", "poses from TF"),
    ("launch_ros", "launch files"),
    ("message_filters", "images synchronized by ROS"),
    ("vision_msgs", "classes and boxes for other nodes"),
)
_WITHOUT_NATIVE = (
    "without it plain torch computes the same labels, and networks take 2 to 3 times as long "
    "(Intel Xeon with AMX, float32)"
)
_STYLES = {"ok": "green", "missing": "yellow", "optional": "cyan", "info": "cyan"}


def doctor(json_: Json = None) -> None:
    """List installed and missing packages and their purpose."""
    check_file(json_)
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    found = list(findings())
    for finding in found:
        color = _STYLES[finding.state]
        table.add_row(
            escape(finding.subject), f"[{color}]{finding.state}[/]", escape(finding.detail)
        )
    text_console(json_).print(table)
    write_json(json_, {"findings": [finding._asdict() for finding in found]})


def findings() -> Iterator[Finding]:
    """Results of all checks; never raises."""
    yield from _base()
    yield from _requirements()
    yield from _torch()
    yield from _ros()
    yield from _optional()
    yield from _kinds()


def _base() -> Iterator[Finding]:
    import pcseg_core

    folder = Path(pcseg_core.__file__).parent
    yield Finding("pcseg", "ok", f"{pcseg_core.__version__} in {folder}")
    yield Finding("python", "ok", f"{platform.python_version()}, {sys.executable}")
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    yield Finding("cores", "info", f"{_cores()} usable; OMP_NUM_THREADS {threads}")
    bundled = sorted(path.name for path in (folder / "checkpoints").glob("*.safetensors"))
    state = "ok" if bundled else "missing"
    yield Finding("bundled checkpoint", state, ", ".join(bundled) or "none in the package")


def _requirements() -> Iterator[Finding]:
    """What the package needs, where it was installed without it or over older packages."""
    try:
        from packaging.requirements import Requirement

        needed = [Requirement(line) for line in requires("pcseg_ros") or ()]
    except (ImportError, PackageNotFoundError):  # a checkout that is not installed
        return
    wrong = []
    for one in needed:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            release = version(one.name)
        except PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
            continue
        if not one.specifier.contains(release, prereleases=True):
            wrong.append(f"{one.name} is {release}, not {one.specifier}")
    detail = f"{'; '.join(wrong)}; {_command('')}" if wrong else "all installed"
    yield Finding("requirements", "missing" if wrong else "ok", detail)


def _command(extra: str) -> str:
    """The command that installs what an extra of the package adds."""
    return f"pip install 'pcseg_ros[{extra}]'" if extra else "pip install pcseg_ros"


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("torch", "missing", f"{error}; {_command('')}")
        return
    yield Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("CUDA", "ok", f"{torch.version.cuda}: {', '.join(names)}")
    else:
        yield Finding("CUDA", "info", "torch finds no GPU; everything runs on the CPU")
    try:
        from pcseg_core.sparse import backends_report

        for backend in backends_report():
            state, note = "ok" if backend.available else "missing", backend.note
            if backend.name == "native" and not backend.available:
                note = f"{note}; {_WITHOUT_NATIVE}"
            yield Finding(f"sparse backend {backend.name}", state, note)
    except Exception as error:  # a broken native build must not hide the other findings
        yield Finding("sparse backends", "missing", f"{type(error).__name__}: {error}")


def _ros() -> Iterator[Finding]:
    """Import ROS in a child process: this package never imports it."""
    if find_spec("rclpy") is None:
        hint = f"source a ROS 2 distribution or: {_command('ros')}"
        yield Finding("ROS 2 (rclpy)", "missing", f"{hint}; needed by the node and `bag play`")
        return
    script = "import rclpy, rclpy.utilities as u; print(u.get_rmw_implementation_identifier())"
    try:
        done = subprocess.run(
            code_command(script), capture_output=True, text=True, timeout=60, check=False
        )
        failure = done.stderr.strip().splitlines()[-1:] or ["failed"]
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("ROS 2 (rclpy)", "missing", f"could not be tried: {error}")
        return
    if done.returncode:
        yield Finding("ROS 2 (rclpy)", "missing", f"found, but does not import: {failure[0]}")
        return
    source = os.environ.get("ROS_DISTRO") or "from pip"
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    yield Finding("ROS 2 (rclpy)", "ok", f"{source}, {done.stdout.strip()}, domain {domain}")
    for module, purpose in _OF_DISTRIBUTIONS:
        found = find_spec(module) is not None
        detail = purpose if found else f"{purpose}; part of ROS distributions only"
        yield Finding(module, "ok" if found else "info", detail)


def _optional() -> Iterator[Finding]:
    for module, distribution, extra, purpose in _OPTIONAL:
        if find_spec(module) is None:
            state = "optional" if extra else "missing"
            yield Finding(module, state, f"{purpose}: {_command(extra)}")
            continue
        try:
            release = version(distribution)
        except PackageNotFoundError:
            release = "of unknown version"
        yield Finding(module, "ok", f"{release}: {purpose}")


def _kinds() -> Iterator[Finding]:
    """The kinds of image networks, with the packages that add some."""
    try:
        from pcseg_core.vision.encoder_kinds import ENCODERS
        from pcseg_core.vision.pixel_classes import TEACHERS
        from pcseg_core.vision.registry import OWN
        from pcseg_core.vision.superpixel_kinds import SUPERPIXELS
        from pcseg_core.vision.text_space import OWN_SOURCES, TEXTS
    except Exception as error:  # a broken package must not hide the other findings
        yield Finding("teachers", "missing", f"{type(error).__name__}: {error}")
        return
    texts = dict.fromkeys(OWN_SOURCES, OWN) | TEXTS.names()
    for role, names in (
        ("teachers", TEACHERS.names()),
        ("encoders", ENCODERS.names()),
        ("superpixels", SUPERPIXELS.names()),
        ("texts", texts),
    ):
        shown = [name if of == OWN else f"{name} (of {of})" for name, of in names.items()]
        yield Finding(role, "ok", ", ".join(shown))
