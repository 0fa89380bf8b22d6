# SPDX-License-Identifier: Apache-2.0
"""A teacher of the user's own Python code."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue

from pcseg_core.errors import InputError, PcsegError
from pcseg_core.labels import LabelSpace
from pcseg_core.vision.class_names import NameMatch
from pcseg_core.vision.named_classes import NamedClasses, NetworkConfig, named_classes
from pcseg_core.vision.pixel_classes import PixelClasses
from pcseg_core.vision.registry import Kind, checksum


class PythonConfig(NetworkConfig):
    """A factory of a package that is installed or on PYTHONPATH."""

    name: Literal["python"] = "python"
    factory: str = Field(
        pattern=r"^[\w.]+:\w+$",
        description="package.module:function; it returns an object with `probabilities(image)` and "
        "`names` of the classes, or a `label_space`",
    )
    options: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Arguments of the factory, which also gets `device` if it takes it",
    )

    @property
    def identity(self) -> dict[str, Any]:
        """See `KindConfig`; the file of the factory counts too."""
        module = self.factory.partition(":")[0]
        try:
            spec = find_spec(module)
        except (ImportError, ValueError):
            spec = None
        origin = spec.origin if spec else None
        code = checksum(Path(origin)) if origin and Path(origin).is_file() else None
        return {**super().identity, "code": code}


def find_factory(name: str) -> Callable[..., Any]:
    """The function "package.module:function".

    Raises:
        InputError: the module cannot be imported or has no such function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except Exception as error:  # code of the user
        raise InputError(
            f"teacher factory {name}: {type(error).__name__}: {error}; expected a function of a "
            "package that is installed or on PYTHONPATH"
        ) from error
    if not callable(found):
        raise InputError(f"teacher factory {name}: a {type(found).__name__}, not a function")
    result: Callable[..., Any] = found
    return result


def call_factory(name: str, make: Callable[..., Any], options: dict[str, Any], device: str) -> Any:
    """What a factory returns.

    Raises:
        InputError: it raises.
    """
    try:
        parameters = inspect.signature(make).parameters
        extra = {"device": device} if "device" in parameters else {}
        return make(**{**extra, **options})
    except PcsegError:
        raise
    except Exception as error:  # code of the user
        raise InputError(f"{name} failed: {type(error).__name__}: {error}") from error


def as_teacher(made: Any, config: NetworkConfig, name: str) -> PixelClasses:
    """A teacher of an object with `probabilities`, and `label_space` or `names`.

    Raises:
        InputError: it lacks them.
    """
    if not callable(getattr(made, "probabilities", None)):
        raise InputError(
            f"{name}: a {type(made).__name__} without probabilities(image); expected a teacher, "
            "see docs/teachers.md"
        )
    space = getattr(made, "label_space", None)
    if isinstance(space, LabelSpace):
        match = NameMatch.of(space)
        return NamedClasses(made, match, name, config.scales, config.flip)
    names = getattr(made, "names", None)
    if not names or not all(isinstance(entry, str) for entry in names):
        raise InputError(
            f"{name}: a {type(made).__name__} without class names; expected 'names', a sequence of "
            "words, or 'label_space', a LabelSpace"
        )
    return named_classes(made, config, name)


def _load(config: PythonConfig, device: str) -> PixelClasses:
    made = call_factory(config.factory, find_factory(config.factory), config.options, device)
    return as_teacher(made, config, config.factory)


KIND = Kind(PythonConfig, _load, "a Python factory of your own")
