"""Tiny models ready to be measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from qdeploy.memory import Budget
from qdeploy.methods.rtn import RTN
from qdeploy.modeling.blocks import find_blocks
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.skeleton import build_skeleton
from qdeploy.pipeline import shapes
from qdeploy.progress import Task
from qdeploy.schemes import INT8_PER_TOKEN, Scheme
from qdeploy.sensitivity.subject import Subject
from qdeploy.sensitivity.units import Unit, find_units
from tests.conftest import VOCABULARY

W4, W4_ASYM = Scheme("W4A16", 4, 32), Scheme("W4A16_ASYM", 4, 32, symmetric=False)
W6, W8, W8A8 = (
    Scheme("W6A16", 6, 32),
    Scheme("W8A16", 8, 32),
    Scheme("W8A8", 8, None, activations=INT8_PER_TOKEN),
)


NEAREST = RTN(grid=True)


def subject(
    folder: Path,
    schemes: Sequence[Scheme],
    spill: Path,
    *,
    samples: int = 4,
    length: int = 24,
    fitted: int = 0,
    rounder: Any = NEAREST,
) -> Subject:
    """The model in `folder` on random tokens, every unit to be tried in every scheme, in float32."""
    reader = CheckpointReader(folder)
    model = build_skeleton(reader)
    blocks = find_blocks(model)
    units = find_units({block.name: shapes([block]) for block in blocks})
    tokens = torch.randint(VOCABULARY, (samples + fitted, length), generator=torch.Generator().manual_seed(0))
    return Subject(
        reader=reader,
        model=model,
        blocks=blocks,
        units=units,
        schemes={unit.name: schemes for unit in units},
        tokens=tokens,
        scored=samples,
        rounder=rounder,
        device=torch.device("cpu"),
        limits=Budget(1 << 28),
        spill=spill,
        exact=True,
    )


def units_of(folder: Path) -> list[Unit]:
    """The units of the model in `folder`."""
    blocks = find_blocks(build_skeleton(CheckpointReader(folder)))
    return find_units({block.name: shapes([block]) for block in blocks})


def unseen() -> Task:
    """Progress that nobody looks at."""
    return Task("", 10**6, None)
