# SPDX-License-Identifier: Apache-2.0
"""Parameters of the node's outputs. No ROS imports."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, create_model, field_validator, model_validator

from pcseg_core.config import LIVE, Section
from pcseg_core.online.output_clouds import Profile
from pcseg_ros import topics

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
# Names of the node's other topics, and of the parameter with the names.
_TAKEN = (
    "names",
    topics.POINTS,
    topics.ODOMETRY,
    topics.LABELED,
    topics.TEACHER,
    topics.STATIC,
    topics.MOVING,
    topics.TRACKS,
    topics.TRACK_BOXES,
    topics.TRACK_MARKERS,
    topics.LABEL_INFO,
    topics.LABEL_IMAGE,
    topics.CONFIDENCE_IMAGE,
    topics.LABEL_IMAGE_INFO,
    topics.GRID,
    topics.LEGEND,
    topics.LEGEND_SCENE,
)


def _without_empty(values: Any) -> Any:
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"expected a list, such as {[values]}")
    return [value for value in values if value != ""]


# ROS parameter files cannot hold an empty array because its type is unknown; [""] stands for it.
Words: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_without_empty)]
Numbers: TypeAlias = Annotated[tuple[float, ...], BeforeValidator(_without_empty)]


class OutputParameters(Section):
    """Fields of the published clouds."""

    profile: Profile = Field(
        "append",
        description="Fields of the clouds: append keeps those of the sweep and adds label and "
        "confidence; minimal has x, y, z, label and confidence; autoware is PointXYZCPE (x, y, z, "
        "class_id, probability, entropy: 24 bytes)",
        json_schema_extra=LIVE,
    )
    class_map: str = Field(
        "",
        description="File (YAML) with a class of Autoware's PointCloudClassification for each "
        "class, for the profile autoware; empty takes that of the package for the classes road, "
        "sidewalk, structure, vegetation, terrain, vehicle, person and pole",
    )
    entropy: bool = Field(
        False,
        description="Add the field entropy (float32): that of the class probabilities, 0 for a "
        "sure class to 1 for equal probabilities",
        json_schema_extra=LIVE,
    )
    probabilities: Words = Field(
        (),
        description="Classes whose probability is added as a field (float32) called p_ and the "
        "name of the class, for example p_road",
        json_schema_extra=LIVE,
    )


class CloudParameters(Section):
    """The points of one named cloud."""

    classes: Words = Field(
        (),
        description="Classes of the points; '*' stands for every class that no earlier cloud of "
        "clouds.names has, 'unlabeled' for returns without a class; empty takes all labeled points",
        json_schema_extra=LIVE,
    )
    min_confidence: Numbers = Field(
        (),
        description="Least confidence of the points, one for all or one for each entry of "
        "classes, 0 to 1; empty is 0",
        json_schema_extra=LIVE,
    )
    max_range_m: float = Field(
        0.0,
        ge=0.0,
        description="Largest distance of the points from the sensor, m; 0 is no limit",
        json_schema_extra=LIVE,
    )

    @field_validator("min_confidence")
    @classmethod
    def _check_range(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0.0 <= value <= 1.0 for value in values):
            raise ValueError("expected numbers from 0 to 1")
        return values

    @model_validator(mode="after")
    def _check_lengths(self) -> CloudParameters:
        if len(self.min_confidence) not in (0, 1, len(self.classes)):
            raise ValueError(
                f"min_confidence has {len(self.min_confidence)} numbers for {len(self.classes)} "
                "classes; expected one for all or one for each"
            )
        return self


class MovingParameters(Section):
    """What moves."""

    enabled: bool = Field(
        False,
        description="Find which vehicles and persons move: adds the field moving (0 unknown, 1 "
        "static, 2 moving) and the topics static_points and moving_points, and leaves no trails "
        "in grids from the buffer; needs the motion of the platform",
    )


class TrackParameters(Section):
    """Tracks of things."""

    enabled: bool = Field(
        False,
        description="Track the things of instance_classes: adds the field instance, with ids that "
        "stay over sweeps, and the topics tracks, track_boxes and track_markers; needs the motion "
        "of the platform",
    )
    coast_s: float = Field(
        1.0,
        ge=0.0,
        le=10.0,
        description="Maximum time that a track is predicted without being seen, s; five times that "
        "for a standing vehicle that is hidden",
        json_schema_extra=LIVE,
    )


class CloudsParameters(Section):
    """Named clouds; `clouds_section` adds the parameters of each."""

    names: Words = Field(
        ("filtered_points",),
        description="Topics of clouds with a part of the points; the parameters of each are "
        "below its name, for example clouds.ground_points.classes",
    )

    @field_validator("names")
    @classmethod
    def _check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not _NAME.fullmatch(name) or name in _TAKEN:
                raise ValueError(
                    f"'{name:.80}' cannot be the name of a cloud; expected lower case letters, "
                    f"digits and underscores, and none of {', '.join(_TAKEN)}"
                )
        if len(set(names)) != len(names):
            raise ValueError("expected different names")
        return names

    @property
    def rules(self) -> Mapping[str, CloudParameters]:
        """The parameters of each cloud by its name, in the order of `names`."""
        return {name: getattr(self, name) for name in self.names}


@functools.cache
def clouds_section(names: tuple[str, ...]) -> type[CloudsParameters]:
    """The section with the parameters of these clouds."""
    fields: dict[str, Any] = {
        name: (CloudParameters, Field(CloudParameters(), description=f"Points of {name}"))
        for name in names
    }
    own = Field(names, description=CloudsParameters.model_fields["names"].description)
    return create_model("Clouds", __base__=CloudsParameters, names=(Words, own), **fields)


class DefaultClouds(CloudsParameters):
    """The one cloud that there is without other names."""

    filtered_points: CloudParameters = Field(CloudParameters(), description="Points of the cloud")
