# SPDX-License-Identifier: Apache-2.0
"""Reader of simulated drives: "simulated:seed=3,sweeps=20,beams=32"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.config import Section, parse_section
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.simulation.cameras import CameraSpec, Picture, rig
from pcseg_core.simulation.faults import Faults
from pcseg_core.simulation.lidar import LidarSpec, Sweep, further_lidars
from pcseg_core.simulation.route import EPOCH_NS
from pcseg_core.simulation.variety import draw_lidar, style_of
from pcseg_core.simulation.world import Course, World, town_of
from pcseg_core.uniting import Part, unite

Array = npt.NDArray[Any]


class DriveOptions(Section):
    """Options of a simulated drive."""

    seed: int = Field(default=0, ge=0, le=2**31, description="Seed of everything random.")
    sweeps: int = Field(default=20, ge=1, le=100_000, description="Number of samples.")
    stride: int = Field(default=1, ge=1, le=100, description="LiDAR sweeps per sample.")
    beams: int = Field(default=64, ge=1, le=256, description="Beams of the LiDAR.")
    columns: int = Field(
        default=2048, ge=16, le=8192, description="Firings of all beams per sweep."
    )
    pattern: Literal["spinning", "solid-state"] = Field(
        default="spinning", description="Scan pattern of the LiDAR."
    )
    range_noise_m: float = Field(
        default=0.02, ge=0, le=1, description="Standard deviation of the range [m]."
    )
    lidar_height_m: float = Field(
        default=1.85, ge=0.2, le=5, description="Height of a plain LiDAR above the road [m]."
    )
    lidar_pitch_deg: float = Field(
        default=0.0, ge=-45, le=45, description="Pitch of a plain LiDAR, nose down [deg]."
    )
    organized: bool = Field(
        default=False, description="Keep a point for every firing, NaN without a return."
    )
    returns: int = Field(
        default=1,
        ge=1,
        le=2,
        description="Returns of a beam. 2: the strongest and the last one, if an edge cuts the "
        "footprint of the beam; field `return_type`. Takes seven times as many rays.",
    )
    lidars: int = Field(
        default=1,
        ge=1,
        le=3,
        description="LiDARs, united: one on the roof, and one or two smaller ones at the bumper.",
    )
    rate_hz: float = Field(default=10.0, ge=1, le=50, description="Sweeps per second [Hz].")
    cameras: int = Field(default=2, ge=0, le=12, description="Cameras, evenly around the vehicle.")
    width: int = Field(default=640, ge=16, le=4096, description="Image width [px].")
    height: int = Field(default=384, ge=16, le=4096, description="Image height [px].")
    lens: Literal["pinhole", "fisheye"] = Field(
        default="pinhole", description="Lens of the cameras."
    )
    speed_mps: float = Field(default=8.0, ge=0, le=30, description="Speed on straight roads [m/s].")
    turns: float = Field(
        default=0.6, ge=0, le=1, description="Probability of turning at a crossing."
    )
    town: str | None = Field(
        default=None,
        description="Style of the town; 'varied' draws one by the seed. Default: one of the named "
        "ones, by the seed.",
    )
    sensor: Literal["plain", "varied"] = Field(
        default="plain",
        description="The LiDAR of the other options, or one drawn by the seed: beams, elevations, "
        "mounting, intensities and losses.",
    )


class SimulatedDrive:
    """A drive through a simulated town; samples and pixels are rendered on access.

    Samples do not depend on the order of access. Attributes are those of
    `pcseg_core.data.Recording`, and `options`, `faults` and `world`.
    """

    pose_source = "exact"

    def __init__(
        self,
        seed: int = 0,
        *,
        faults: Faults | None = None,
        lidar: LidarSpec | None = None,
        rig: Sequence[CameraSpec] | None = None,
        **options: Any,
    ) -> None:
        """Set up the drive; the scene is built on first use.

        Args:
            seed: drives with different seeds have different streets, traffic and light.
            faults: errors of reported calibration and stamps; rendering stays exact.
            lidar: complete LiDAR, instead of `beams`, `columns`, `pattern` and so on.
            rig: complete cameras, instead of `cameras`, `width`, `height`, `lens`.
            options: fields of `DriveOptions`.

        Raises:
            InputError: an unknown option or a value out of range.
        """
        self.options = parse_section({"seed": seed, **options}, DriveOptions, "simulated drive")
        self.faults = faults or Faults()
        self.label_space = LabelSpace.load("simulation")
        town = self.options.town or town_of(seed)
        style_of(town, seed)
        self.name = f"simulated-{town}-{seed}"
        self.scenes: Sequence[str] = [self.name] * self.options.sweeps
        self.skipped: Counter[str] = Counter()
        main = lidar or self._lidar()
        self.world = World(
            seed,
            town,
            self._course(),
            main,
            tuple(rig or self._rig()),
            further_lidars(main, self.options.lidars - 1),
        )

    @classmethod
    def from_text(cls, text: str) -> SimulatedDrive:
        """Parse "seed=3,sweeps=20,camera_rotation_deg=1": drive options and faults.

        Raises:
            InputError: not key=value, an unknown key or a bad value.
        """
        values: dict[str, str] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = (part.strip() for part in item.partition("="))
            if not equals or not value:
                raise InputError(
                    f"simulated:{text}: expected key=value, found '{item}'; for example "
                    "simulated:seed=3,sweeps=20,town=suburb"
                )
            values[key] = value
        faults = {key: values.pop(key) for key in list(values) if key in Faults.model_fields}
        source = f"simulated:{text}"
        options = parse_section(values, DriveOptions, source).model_dump(exclude_unset=True)
        return cls(options.pop("seed", 0), faults=parse_section(faults, Faults, source), **options)

    def __len__(self) -> int:
        return self.options.sweeps

    def __getitem__(self, index: int) -> Sample:
        """Measure sweep `index`; images are rendered on access."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, asked for {index}")
        number = (index % len(self)) * self.options.stride
        stamp_ns = self.stamp_ns(number)
        sweep, moving = self._united(stamp_ns, number)
        return Sample(
            cloud=sweep.cloud,
            cameras=self._paired(stamp_ns),
            trajectory=self.world.trajectory,
            labels=sweep.label,
            label_space=self.label_space,
            instances=sweep.instance,
            moving=moving,
            name=f"{self.name}/{number:06d}",
            scene=self.name,
        )

    def sweep_of(self, lidar: int, number: int) -> Sweep:
        """Sweep `number` of one LiDAR, in its own frame, at its own stamp."""
        spec = self.world.lidars[lidar]
        stamp_ns = self.stamp_ns(number) + round(1e9 * spec.phase * spec.sweep_s)
        return self.world.sweep(stamp_ns, number, lidar=lidar)

    def _united(self, stamp_ns: int, number: int) -> tuple[Sweep, Array]:
        """A sweep of all LiDARs, as a reader of several topics unites them, and what moves."""
        sweeps = [self.sweep_of(k, number) for k in range(len(self.world.lidars))]
        moving = [self.world.moving(sweep.cloud.stamp_ns, sweep) for sweep in sweeps]
        if len(sweeps) == 1:
            return sweeps[0], moving[0]
        parts = [
            Part(sweep.cloud, self.world.T_lidar_other(k), k) for k, sweep in enumerate(sweeps)
        ]
        united = Sweep(
            unite(parts, stamp_ns, self.world.lidar_frame),
            np.concatenate([sweep.label for sweep in sweeps]),
            np.concatenate([sweep.instance for sweep in sweeps]),
            np.concatenate([sweep.exact_range for sweep in sweeps]),
        )
        return united, np.concatenate(moving)

    def stamp_ns(self, number: int) -> int:
        """Start of LiDAR sweep `number` [ns]; a sample takes `stride` of them."""
        return EPOCH_NS + round(number / self.options.rate_hz * 1e9)

    def _course(self) -> Course:
        o = self.options
        return Course(o.sweeps * o.stride / o.rate_hz, o.speed_mps, o.turns)

    def _lidar(self) -> LidarSpec:
        o = self.options
        values: dict[str, Any] = {
            "sweep_s": 1 / o.rate_hz,
            "organized": o.organized,
            "returns": o.returns,
        }
        if o.sensor == "varied":
            return parse_section({**dict(draw_lidar(o.seed)), **values}, LidarSpec, self.name)
        values |= {
            "pattern": o.pattern,
            "beams": o.beams,
            "columns": o.columns,
            "range_noise_m": o.range_noise_m,
            "height_m": o.lidar_height_m,
            "tilt_deg": (0.0, o.lidar_pitch_deg),
        }
        return parse_section(values, LidarSpec, self.name)

    def _rig(self) -> tuple[CameraSpec, ...]:
        o = self.options
        cameras = rig(o.cameras, o.width, o.height, o.lens)
        timing = {"rate_hz": o.rate_hz, "offset_s": 0.3 / o.rate_hz}
        return tuple(camera.model_copy(update=timing) for camera in cameras)

    def images_between(self, start_ns: int, end_ns: int) -> list[CameraFrame]:
        """All images that were taken in [start_ns, end_ns) and not dropped."""
        frames = []
        for camera in range(len(self.world.cameras)):
            first, period = self._timing(camera)
            low = max(int(np.ceil((start_ns - first) / period)), 0)
            for image in range(low, int(np.ceil((end_ns - first) / period))):
                if not self.faults.drops(self.options.seed, camera, image):
                    frames.append(self._frame(camera, image))
        return frames

    def _paired(self, stamp_ns: int) -> list[CameraFrame]:
        """The image of each camera nearest to the middle of a sweep, by reported stamps."""
        middle = stamp_ns + round(self.world.lidar.sweep_s * 0.5e9)
        pairs = [self._nearest(k, middle) for k in range(len(self.world.cameras))]
        for spec, image in zip(self.world.cameras, pairs):
            if image is None:
                self.skipped[f"no image of {spec.name} near a sweep"] += 1
        return [self._frame(k, image) for k, image in enumerate(pairs) if image is not None]

    def _nearest(self, camera: int, wanted_ns: int) -> int | None:
        """Number of the image nearest to a stamp; None if none is near enough."""
        first, period = self._timing(camera)
        seed, faults = self.options.seed, self.faults
        guess = round((wanted_ns - faults.stamp_offset_s * 1e9 - first) / period)
        gaps = {
            image: abs(self._stamps(camera, image)[1] - wanted_ns)
            for image in range(max(guess - 1, 0), max(guess + 2, 0))
            if not faults.drops(seed, camera, image)
        }
        nearest = min(gaps, key=lambda image: gaps[image], default=None)
        return nearest if nearest is not None and gaps[nearest] <= 0.6 * period else None

    def _timing(self, camera: int) -> tuple[int, float]:
        """Time of the first image of a camera, and period of its images [ns]."""
        spec = self.world.cameras[camera]
        return EPOCH_NS + round(spec.offset_s * 1e9), 1e9 / spec.rate_hz

    def _stamps(self, camera: int, image: int) -> tuple[int, int]:
        """True and reported stamp of an image [ns]."""
        first, period = self._timing(camera)
        taken = first + round(image * period)
        return taken, taken + self.faults.stamp_error_ns(self.options.seed, camera, image)

    def _frame(self, camera: int, image: int) -> CameraFrame:
        taken, reported = self._stamps(camera, image)
        shot = Shot(self.world, camera, taken)
        exact = self.world.T_cam_lidar(camera)
        return CameraFrame(
            self.world.cameras[camera].name,
            reported,
            self.world.camera_model(camera),
            self.faults.T_cam_lidar(exact, self.options.seed, camera),
            shot.image,
            shot.labels,
            shot.depth,
            shot.instances,
        )


@dataclass(frozen=True)
class Shot:
    """An image that is rendered once, on first access."""

    world: World
    camera: int
    taken_ns: int

    @cached_property
    def _picture(self) -> Picture:
        return self.world.picture(self.camera, self.taken_ns)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the parameters without the rendered image."""
        return {"world": self.world, "camera": self.camera, "taken_ns": self.taken_ns}

    def image(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB."""
        return self._picture.image

    def labels(self) -> npt.NDArray[np.int16]:
        """(H, W) int16 class ids, -1 outside the lens."""
        return self._picture.labels

    def depth(self) -> npt.NDArray[np.float32]:
        """(H, W) float32 exact z in the camera frame [m], infinity for the sky."""
        return self._picture.depth

    def instances(self) -> npt.NDArray[np.int32]:
        """(H, W) int32 instance ids, -1 for none."""
        return self._picture.instances


def open_simulated(text: str) -> SimulatedDrive:
    """Reader "simulated:TEXT"; see `SimulatedDrive.from_text`."""
    return SimulatedDrive.from_text(text)
