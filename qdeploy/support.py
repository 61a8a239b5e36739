"""What a number format is on an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["native", "converted", "reference"]


@dataclass(frozen=True, slots=True)
class Support:
    """How an engine runs a layer.

    Attributes:
        kind: "native": packed, by a kernel for it; "converted": stored in another format without loss;
            "reference": dequantized to 16 bits, for studies of accuracy alone.
        reason: the kernel, or why there is none.
    """

    kind: Kind
    reason: str
