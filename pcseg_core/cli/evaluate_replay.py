# SPDX-License-Identifier: Apache-2.0
"""`pcseg evaluate RECORDING --checkpoint C`: measure a checkpoint by the replay of a recording."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from pcseg_core.cli.outputs import text_console
from pcseg_core.errors import InputError
from pcseg_core.progress import bar, note

if TYPE_CHECKING:
    from pcseg_core.data import Recording
    from pcseg_core.evaluation.live import NodeSetup
    from pcseg_core.evaluation.methods import Method, PipelineMethod
    from pcseg_core.evaluation.replay import GroundTruth
    from pcseg_core.evaluation.replay_report import ReplayReport
    from pcseg_core.learning.recipe import Recipe
    from pcseg_core.online.segmenter import Precision
    from pcseg_core.vision.pixel_classes import PixelClasses, TeacherConfig


@dataclass(frozen=True)
class ReplayOptions:
    """The options of `pcseg evaluate` for a replay."""

    checkpoint: str | None
    compare: str | None
    live: bool
    params: Path | None
    temporal: bool
    deskew: bool
    cameras: bool
    labels: Path | None
    teacher: str | None
    label_space: str
    device: str
    backend: str
    precision: Precision = "auto"

    def check(self) -> None:
        """Refuse options that exclude each other, before the long work."""
        short_forms = self.temporal or self.deskew or self.cameras
        if self.cameras and not self.teacher:
            raise InputError("--cameras needs a teacher for the images: give --teacher too")
        if short_forms and self.live:
            raise InputError(
                "--live plays the bag to the node; set temporal.enabled, motion.deskew and "
                "teacher.fuse in a parameter file and give it by --params. --temporal, --deskew "
                "and --cameras are for the evaluation without --live"
            )
        if short_forms and self.params:
            raise InputError(
                f"--params {self.params} decides the pipeline: set temporal.enabled, "
                "motion.deskew and teacher.fuse there instead of giving --temporal, --deskew or "
                "--cameras"
            )
        if self.labels and not self.labels.is_dir():
            raise InputError(f"--labels {self.labels}: no such folder")

    def check_inputs(self, source: str) -> None:
        """Check the paths, before the slow imports."""
        from pcseg_core.bundled import checkpoint_file
        from pcseg_core.data import find_source
        from pcseg_core.recipes import recipe_file

        find_source(source)
        for checkpoint in filter(None, (self.checkpoint, self.compare)):
            checkpoint_file(checkpoint)
        if self.teacher:
            recipe_file(self.teacher)


def evaluate_recording(
    source: str, options: ReplayOptions, json_: Path | None, picture: Path | None
) -> ReplayReport:
    """Replay a recording, print the figures and write report and picture."""
    options.check()
    options.check_inputs(source)
    from pcseg_core.evaluation.replay import evaluate_replay
    from pcseg_core.evaluation.replay_picture import render_replay

    recipe = _recipe(options)
    setup = _setup(options, recipe)
    if options.live:
        _check_bag(source)
    recording = _open(source, setup)
    if not options.live:
        _check_poses(recording, source, setup)
    teacher = _load_teacher(recipe.teacher, setup) if recipe else None
    truth = _ground_truth(recording, options, recipe, teacher)
    if options.live:
        methods = _live(source, options, setup)
    else:
        same = recipe is not None and recipe.teacher == setup.teacher
        fused = teacher if same else _load_teacher(setup.teacher, setup)
        methods = _offline(options, setup, fused)
    with bar("measuring sweeps") as progress:
        report = evaluate_replay(recording, methods, truth, progress)
    for remark in report.notes:
        note(remark)
    for reason, count in report.skipped.items():
        note(f"skipped: {reason} ({count})")
    for kind, entry in report.account.items():
        note(entry.line(kind))
    text_console(json_).print(report.table())
    if json_:
        report.write_json(json_)
    if picture:
        render_replay(report, picture)
    return report


def _setup(options: ReplayOptions, recipe: Recipe | None) -> NodeSetup:
    """The settings of the node whose labels are measured."""
    from pcseg_core.evaluation.live import NodeSetup, read_parameters
    from pcseg_core.online.pipeline_config import (
        CameraUseConfig,
        MotionConfig,
        PipelineConfig,
        SmoothingConfig,
    )

    if options.params:
        setup = read_parameters(options.params)
        if setup.prompts:
            raise InputError(
                f"--params {options.params}: prompts change the meaning of the labels; leave them "
                "out to be measured in the checkpoint's classes"
            )
    else:
        pipeline = PipelineConfig(
            motion=MotionConfig(deskew=options.deskew),
            temporal=SmoothingConfig(enabled=options.temporal),
            teacher=CameraUseConfig(fuse=options.cameras),
        )
        setup = NodeSetup(pipeline, teacher=recipe.teacher if recipe and options.cameras else None)
    return replace(
        setup,
        checkpoint=options.checkpoint or setup.checkpoint,
        device=setup.device if options.device == "auto" else options.device,
        backend=setup.backend if options.backend == "auto" else options.backend,
        precision=setup.precision if options.precision == "auto" else options.precision,
    )


def _recipe(options: ReplayOptions) -> Recipe | None:
    from pcseg_core.learning.recipe import load_recipe
    from pcseg_core.recipes import recipe_file

    if not options.teacher:
        return None
    recipe = load_recipe(recipe_file(options.teacher))
    recipe.required_teacher()
    return recipe


def _open(source: str, setup: NodeSetup) -> Recording:
    """The recording, read as the node decodes it."""
    from pcseg_core.data import find_source, open_recording

    wanted = setup.reader_options() if find_source(source)[0] == "bag" else {}
    given = _given(source)
    return open_recording(source, **{k: v for k, v in wanted.items() if k not in given})


def _given(source: str) -> dict[str, str]:
    """Options of the reader in a source."""
    from pcseg_core.data import find_source, split_query

    return dict(parse_qsl(split_query(find_source(source)[1])[1]))


def _check_poses(recording: Recording, source: str, setup: NodeSetup) -> None:
    """Refuse to smooth or deskew without poses."""
    if not (setup.pipeline.temporal.enabled or setup.pipeline.motion.deskew):
        return
    if recording.pose_source == "none":
        raise InputError(
            f"smoothing and deskewing need poses, and {source} has no poses; record /tf or "
            "Odometry, or install kiss-icp"
        )
    if recording.pose_source == "kiss-icp":
        note("kiss-icp estimates the poses; the node takes them from /tf or Odometry")


def _load_teacher(config: TeacherConfig | None, setup: NodeSetup) -> PixelClasses | None:
    from pcseg_core.models.inference import choose_device
    from pcseg_core.vision.pixel_classes import load_teacher

    return load_teacher(config, str(choose_device(setup.device))) if config else None


def _ground_truth(
    recording: Recording,
    options: ReplayOptions,
    recipe: Recipe | None,
    teacher: PixelClasses | None,
) -> GroundTruth:
    from pcseg_core.evaluation.external_labels import ExternalLabels
    from pcseg_core.evaluation.replay import recorded_labels
    from pcseg_core.labels import LabelSpace

    space = LabelSpace.load(options.label_space)
    if options.labels:
        truth = ExternalLabels(options.labels, recording).ground_truth(space)
    else:
        truth = recorded_labels(recording, space)
    return replace(truth, teacher=teacher, projection=recipe.labels) if recipe else truth


def _offline(
    options: ReplayOptions, setup: NodeSetup, teacher: PixelClasses | None
) -> list[Method]:
    """The variants of each checkpoint, the fully configured ones first."""
    from pcseg_core.evaluation.methods import variants
    from pcseg_core.online.segmenter import Segmenter

    chains: list[list[PipelineMethod]] = []
    for name, checkpoint in _named(setup.checkpoint, options.compare).items():
        segmenter = Segmenter.load(checkpoint, setup.device, setup.precision, setup.backend)
        chains.append(variants(name, checkpoint, segmenter, setup.pipeline, teacher))
    return [*(chain[0] for chain in chains), *(m for chain in chains for m in chain[1:])]


def _check_bag(source: str) -> Path:
    """The bag for --live, or an error."""
    from pcseg_core.data import find_source, split_query

    reader, place = find_source(source)
    if reader != "bag":
        raise InputError(f"--live needs a rosbag2, got {source}")
    return Path(split_query(place)[0])


def _live(source: str, options: ReplayOptions, setup: NodeSetup) -> list[Method]:
    from pcseg_core.checkpoint import load_checkpoint
    from pcseg_core.evaluation.live import LIDAR_OPTIONS, LiveMethod, find_replay
    from pcseg_core.labels import LabelSpace

    bag = _check_bag(source)
    play, problem = find_replay()
    if problem:
        raise InputError(f"--live needs the ROS 2 node: {problem}; pip install 'pcseg_ros[ros]'")
    reading = {**setup.bag_options, **_given(source)}
    lidars = {option: reading[option] for option in LIDAR_OPTIONS if option in reading}
    methods: list[Method] = []
    for name, checkpoint in _named(setup.checkpoint, options.compare).items():
        _, meta = load_checkpoint(Path(checkpoint))
        space = LabelSpace.from_dict(meta.label_space)
        note(f"playing {bag} to the node with {checkpoint}")
        playing = bar("playing", transient=True)  # at the speed of the recording
        with tempfile.TemporaryDirectory(prefix="pcseg-replay-") as logs, playing:
            result = play(bag, Path(checkpoint), Path(logs), options.params, lidars)
        methods.append(LiveMethod(name, checkpoint, space, result))
    return methods


def _named(checkpoint: str, compare: str | None) -> dict[str, str]:
    """Name in the report -> checkpoint."""
    named = {_name(checkpoint): checkpoint}
    if compare:
        name = _name(compare)
        named[name if name not in named else f"{name} (2)"] = compare
    return named


def _name(checkpoint: str) -> str:
    path = Path(checkpoint)
    return path.resolve().parent.name if path.is_file() else path.name
