"""Rotation, folded offline (QuaRot, Ashkboos et al., arXiv 2404.00456; SpinQuant, Liu et al., 2405.16406).

A model whose norms only divide by the root mean square computes the same in any orthogonal basis of its
residual stream, for RMS(xQ) = RMS(x)Q. With the norms' gains g moved into what reads the stream:

    embeddings E ← E·Q        readers W ← W·diag(g)·Q        writers W ← Qᵀ·W        head H ← H·diag(g)·Q

Q is R1 of SpinQuant. R2 turns the channels of every value head, which attention only adds up: rows of v_proj
by Rᵀ, columns of o_proj by R. In a random basis no channel of the stream is an outlier, and weights are near
to Gaussian. The online rotations R3 and R4, for 4-bit caches and inputs of down_proj, need kernels and are
not done; nor is the mean taken off the embeddings, as both papers' code does: that is for LayerNorm.

Where the model is turned: `qdeploy.rotated`. This file imports no torch, so that recipes can be read without.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Rotation:
    """Rotation of the residual stream and of value heads."""

    seed: Annotated[int, Field(ge=0, lt=2**63, description="Chooses the random signs of the matrices.")] = 0
    r2: Annotated[bool, Field(description="Turn value heads too.")] = True
