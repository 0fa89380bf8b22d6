# SPDX-License-Identifier: Apache-2.0
"""`pcseg evaluate RECORDING --checkpoint C`: judge a checkpoint by the replay of a drive."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcseg_core.cli.progress import note, progress_bar
from pcseg_core.config import read_yaml
from pcseg_core.errors import InputError

if TYPE_CHECKING:
    from pcseg_core.data import Recording
    from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
    from pcseg_core.evaluation.contenders import Contender
    from pcseg_core.evaluation.replay import Judges
    from pcseg_core.evaluation.replay_report import ReplayReport
    from pcseg_core.vision.pixel_classes import PixelClasses


@dataclass(frozen=True)
class ReplayOptions:
    """What `pcseg evaluate` was asked for; see its options."""

    checkpoint: str
    compare: str | None
    live: bool
    params: Path | None
    temporal: bool
    cameras: bool
    labels: Path | None
    teacher: Path | None
    label_space: str
    device: str
    backend: str

    def check(self) -> None:
        """Refuse what does not go together, before the long part."""
        if self.cameras and not self.teacher:
            raise InputError("--cameras needs a teacher for the images: give --teacher too")
        if self.live and (self.temporal or self.cameras):
            raise InputError(
                "--live plays the bag to the node; set temporal.enabled, cameras and the like in a "
                "parameter file and give it by --params. --temporal and --cameras are for the "
                "evaluation without --live"
            )
        if self.params:
            self._check_params(self.params)
        if self.labels and not self.labels.is_dir():
            raise InputError(f"--labels {self.labels}: no such folder")

    def _check_params(self, params: Path) -> None:
        if not self.live:
            raise InputError("--params are those of the node: give --live too")
        if not params.is_file():
            raise InputError(f"--params {params}: no such file")
        if any(_prompts_of(read_yaml(params))):
            raise InputError(
                f"--params {params}: prompts change what labels mean; leave them out to be "
                "measured in the checkpoint's classes"
            )


def _prompts_of(node: Any) -> Iterator[str]:
    """Prompts that a parameter file sets, at whatever depth of names of nodes."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if key == "prompts" and isinstance(value, list):
            yield from (str(word) for word in value if word)
        else:
            yield from _prompts_of(value)


def evaluate_recording(
    source: str, options: ReplayOptions, json_: Path | None, picture: Path | None
) -> ReplayReport:
    """Measure, print the table and write what was asked for."""
    from rich.console import Console

    from pcseg_core.evaluation.replay import evaluate_replay
    from pcseg_core.evaluation.replay_picture import render_replay

    options.check()
    recording = _open(source, options)
    teacher, teaching = _teacher(options)
    judges = _judges(recording, options, teacher, teaching)
    contenders = _live(source, options) if options.live else _offline(recording, options, teacher)
    with progress_bar("measuring sweeps") as progress:
        report = evaluate_replay(recording, contenders, judges, progress)
    for remark in report.notes:
        note(remark)
    for reason, count in report.skipped.items():
        note(f"skipped: {reason} ({count})")
    Console().print(report.table())
    if json_:
        report.write_json(json_)
    if picture:
        render_replay(report, picture)
    return report


def _open(source: str, options: ReplayOptions) -> Recording:
    from pcseg_core.data import open_recording

    recording = open_recording(source)
    if options.temporal and recording.pose_source == "none":
        raise InputError(
            f"--temporal: {source} has no poses; record /tf or Odometry, or install kiss-icp"
        )
    return recording


def _judges(
    recording: Recording,
    options: ReplayOptions,
    teacher: PixelClasses | None,
    teaching: PseudoLabelConfig | None,
) -> Judges:
    from dataclasses import replace

    from pcseg_core.evaluation.replay import own_labels
    from pcseg_core.evaluation.side_labels import SideLabels
    from pcseg_core.labels import LabelSpace

    space = LabelSpace.load(options.label_space)
    if options.labels:
        judges = SideLabels(options.labels, len(recording)).judges(space)
    else:
        judges = own_labels(recording, space)
    if teacher is None or teaching is None:
        return judges
    return replace(judges, teacher=teacher, teaching=teaching)


def _teacher(options: ReplayOptions) -> tuple[PixelClasses | None, PseudoLabelConfig | None]:
    if options.teacher is None:
        return None, None
    from pcseg_core.learning.recipe import load_recipe
    from pcseg_core.recipes import recipe_file
    from pcseg_core.vision.pixel_classes import load_teacher

    recipe = load_recipe(recipe_file(options.teacher))
    return load_teacher(recipe.teacher), recipe.labels


def _offline(
    recording: Recording, options: ReplayOptions, teacher: PixelClasses | None
) -> list[Contender]:
    """The contenders of each checkpoint: all that was asked for first, then with less of it."""
    from pcseg_core.evaluation.contenders import Network, Smoothed, WithCameras
    from pcseg_core.online.segmenter import Segmenter

    chains: list[list[Contender]] = []
    for name, checkpoint in _named(options).items():
        segmenter = Segmenter.load(checkpoint, device=options.device, backend=options.backend)
        more = options.temporal or options.cameras
        network = Network(name, checkpoint, segmenter, probabilities=more)
        inner: Network | WithCameras = network
        chain: list[Contender] = [network]
        if options.cameras:
            assert teacher is not None
            inner = WithCameras(f"{name} + cameras", network, teacher)
            chain.insert(0, inner)
        if options.temporal:
            chain.insert(0, Smoothed(f"{inner.name}, smoothed", inner))
        chains.append(chain)
    return [chain[0] for chain in chains] + [c for chain in chains for c in chain[1:]]


def _live(source: str, options: ReplayOptions) -> list[Contender]:
    from pcseg_core.checkpoint import load_checkpoint
    from pcseg_core.data import READERS, detect
    from pcseg_core.demo.live import find_replay
    from pcseg_core.evaluation.contenders import Live
    from pcseg_core.labels import LabelSpace

    reader, colon, place = source.partition(":")
    bag = Path(place if colon and reader in READERS else source)
    if (reader if colon and reader in READERS else detect(bag)) != "bag":
        raise InputError(f"--live plays bags; {source} is none")
    play, problem = find_replay()
    if problem:
        raise InputError(f"--live needs the ROS 2 node: {problem}; pip install 'pcseg_ros[ros]'")
    contenders: list[Contender] = []
    for name, checkpoint in _named(options).items():
        _, meta = load_checkpoint(Path(checkpoint))
        space = LabelSpace.from_dict(meta.label_space)
        note(f"playing {bag} to the node with {checkpoint}")
        with tempfile.TemporaryDirectory(prefix="pcseg-replay-") as logs:
            result = play(bag, Path(checkpoint), Path(logs), options.params)
        contenders.append(Live(name, checkpoint, space, result))
    return contenders


def _named(options: ReplayOptions) -> dict[str, str]:
    """Name in the report -> checkpoint."""
    named = {_name(options.checkpoint): options.checkpoint}
    if options.compare:
        name = _name(options.compare)
        named[name if name not in named else f"{name} (2)"] = options.compare
    return named


def _name(checkpoint: str) -> str:
    path = Path(checkpoint)
    return path.resolve().parent.name if path.is_file() else path.name
