"""Formats whose config describes all quantized layers at once."""

from __future__ import annotations

from collections.abc import Mapping

from qdeploy.errors import ConversionError
from qdeploy.schemes import Scheme


def only_scheme(modules: Mapping[str, Scheme], name: str) -> Scheme:
    """The scheme of all modules.

    Args:
        modules: module → scheme.
        name: of the format, for the message.

    Raises:
        ConversionError: there are several.
    """
    first: dict[Scheme, str] = {}
    for module, scheme in modules.items():
        first.setdefault(scheme, module)
    if len(first) == 1:
        return next(iter(first))
    told = ", ".join(f"{module} {scheme.describe()}" for scheme, module in first.items())
    raise ConversionError(
        f"{name} folders have one scheme; this one has {len(first)}: {told}. compressed-tensors holds them "
        "side by side."
    )
