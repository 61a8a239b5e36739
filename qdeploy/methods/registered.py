"""The methods that are installed: what each is, which knobs it has, and which cannot be used and why."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.fields import FieldInfo

from qdeploy import registry
from qdeploy.errors import EntryPointError
from qdeploy.methods.base import ROUNDERS, Registered
from qdeploy.methods.basis import BASES, WITHOUT_KERNEL
from qdeploy.methods.rotation import Rotation
from qdeploy.methods.scaling import SCALINGS
from qdeploy.methods.tuning import TUNERS

Kind = Literal["rounder", "transform"]
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
"""pydantic's names of bounds → signs."""


@dataclass(frozen=True)
class Knob:
    """A field of a method's config.

    Attributes:
        type: as it is written, e.g. "float | None".
        required: whether it has no default.
        default: None if it has none.
        bounds: of "ge", "gt", "le" and "lt" those that there are.
        description: empty if there is none.
    """

    name: str
    type: str
    required: bool
    default: Any
    bounds: dict[str, float]
    description: str


@dataclass(frozen=True)
class Method:
    """An installed method.

    Attributes:
        kind: a rounder makes codes, a transform goes before one.
        needs_calibration: whether it looks at what layers read.
        without_kernel: why its layers are stored dequantized, if they are.
        summary: first line of what its module, or else its config, says of itself.
        origin: the package that brings it, and its version.
        knobs: in the order of the config.
    """

    name: str
    kind: Kind
    needs_calibration: bool
    without_kernel: str | None
    summary: str
    origin: str
    knobs: tuple[Knob, ...]


def config_of(name: str) -> type:
    """The config dataclass of the method registered as `name`.

    Raises:
        UnknownNameError: there is none.
        EntryPointError: its module cannot be imported, or what is registered is not a method.
    """
    config, origin = registry.load("methods", name), registry.origin("methods", name)
    if not isinstance(config, type) or not is_pydantic_dataclass(config):
        raise EntryPointError("method", name, origin, f"it is no pydantic dataclass but {config!r}")
    if not any(config in known for known in (ROUNDERS, SCALINGS, BASES, {Rotation})):
        reason = (
            f"no function beside {config.__qualname__} is decorated with @rounder, @scaling or @basis for it"
        )
        raise EntryPointError("method", name, origin, reason)
    return config


def find(name: str) -> Method:
    """The method registered as `name`; raises as `config_of`."""
    config, origin = config_of(name), registry.origin("methods", name)
    rounder, said, knobs = ROUNDERS.get(config), _summary(config), tuple(_knobs(config))
    if rounder is None:
        why = WITHOUT_KERNEL if config in BASES else None
        return Method(name, "transform", config in SCALINGS, why, said, origin, knobs)
    looks = rounder.needs_hessian or config in TUNERS
    return Method(name, "rounder", looks, _by_default(config, rounder), said, origin, knobs)


def find_all() -> tuple[list[Method], list[EntryPointError]]:
    """All methods by name, and what keeps those that are left out from being used."""
    found, broken = [], []
    for name in registry.names("methods"):
        try:
            found.append(find(name))
        except EntryPointError as error:
            broken.append(error)
    return found, broken


def _by_default(config: type, rounder: Registered) -> str | None:
    """Why no engine runs what the method makes with its default knobs; None where it cannot be known."""
    try:
        return rounder.without_kernel(config())
    except ValidationError:
        return None


def _summary(config: type) -> str:
    written = inspect.getdoc(sys.modules[config.__module__]) or inspect.getdoc(config) or ""
    return written.partition("\n")[0]


def _knobs(config: type) -> Iterator[Knob]:
    fields: dict[str, FieldInfo] = config.__pydantic_fields__  # type: ignore[attr-defined]
    for name, field in fields.items():
        required = field.is_required()
        default = None if required else field.get_default(call_default_factory=True)
        yield Knob(
            name, _written(field.annotation), required, default, _bounds(field), field.description or ""
        )


def _written(annotation: Any) -> str:
    """A type as one writes it, without what is annotated to its parts."""
    if get_origin(annotation) is Annotated:
        return _written(get_args(annotation)[0])
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _bounds(field: FieldInfo) -> dict[str, float]:
    """Those of the field, and of a part of it such as `Annotated[float, Field(gt=0)] | None`."""
    found = list(field.metadata)
    for part in get_args(field.annotation):
        if get_origin(part) is Annotated:
            found += FieldInfo.from_annotation(part).metadata
    return {
        bound: getattr(item, bound)
        for item in found
        for bound in BOUNDS
        if getattr(item, bound, None) is not None
    }
