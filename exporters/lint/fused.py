"""Layers that engines run as one: stored alike, and with one divisor where they must have it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from qdeploy.exporters.base import Finding
from qdeploy.exporters.layers import Layer, expert_sets, fused_sets
from qdeploy.exporters.lint.rule import rule
from qdeploy.exporters.lint.subject import Subject
from qdeploy.schemes import Scheme

MIXED = rule(
    "QD501",
    "error",
    "Layers that run as one matrix are stored differently",
    """q, k and v, and gate and up, are one matrix in every engine. All of them have one scheme or none has:
    vLLM says "Detected some but not all shards" and stops.""",
)
MIXED_EXPERTS = rule(
    "QD502",
    "error",
    "Experts of one block are stored differently",
    "Engines run all experts of a block with one kernel. vLLM looks at the first expert only.",
)
DIVISORS = rule(
    "QD503",
    "error",
    "Global scales of NVFP4 or W4A8_AWQ differ within layers that run as one",
    """NVFP4's scales are E4M3 over one divisor for a matrix, as are W4A8_AWQ's weights before the product;
    activations have one scale. vLLM takes the largest for all and warns, so that the others' weights are off;
    TensorRT-LLM stops.""",
)

TOGETHER = "Give all of them one scheme in the recipe, or ignore all of them"
GLOBALS = ("weight_global_scale", "weight_scale_2", "input_global_scale", "input_scale")


def check_fused(subject: Subject) -> Iterator[Finding]:
    """What the engine multiplies as one matrix is stored in one way."""
    for name, members in fused_sets(subject.layers):
        if len({member.scheme for member in members}) > 1:
            told = ", ".join(f"{member.leaf} {_describe(member.scheme)}" for member in members)
            yield MIXED(f"run as one matrix, but their schemes differ: {told}", TOGETHER, name)


def check_experts(subject: Subject) -> Iterator[Finding]:
    """All experts of a block are stored in one way."""
    for name, members in expert_sets(subject.layers).items():
        first: dict[Scheme | None, str] = {}
        for member in members:
            first.setdefault(member.scheme, member.name.removeprefix(f"{name}."))
        if len(first) > 1:
            told = ", ".join(f"{expert} {_describe(scheme)}" for scheme, expert in first.items())
            yield MIXED_EXPERTS(
                f"vLLM runs these experts at once, but their schemes differ: {told}", TOGETHER, name
            )


def _describe(scheme: Scheme | None) -> str:
    return "16-bit" if scheme is None else scheme.describe()


def check_divisors(subject: Subject) -> Iterator[Finding]:
    """Layers with a divisor that run as one have one global scale of weights, and one of inputs."""
    for name, members in fused_sets(subject.layers):
        if all(member.scheme is not None and member.scheme.has_divisor for member in members):
            yield from chain.from_iterable(_unequal(subject, name, members, suffix) for suffix in GLOBALS)


def _unequal(subject: Subject, name: str, members: list[Layer], suffix: str) -> Iterator[Finding]:
    found = {
        member.leaf: f"{float(subject.reader.get(f'{member.name}.{suffix}').reshape(-1)[0]):.9g}"
        for member in members
        if f"{member.name}.{suffix}" in subject.reader
    }
    if len(set(found.values())) > 1:
        told = ", ".join(f"{leaf} {value}" for leaf, value in found.items())
        yield DIVISORS(f"run as one matrix, but {suffix} differs: {told}", "Quantize the model again", name)
