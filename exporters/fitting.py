"""Whether a model fits on its devices: what is refused, how long a sequence is served, how many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from qdeploy.exporters import parallel
from qdeploy.exporters.base import Finding, Memory
from qdeploy.exporters.cache_size import BLOCK, UnknownCacheError, model_length
from qdeploy.exporters.layers import Layer
from qdeploy.exporters.lint.rule import rule
from qdeploy.exporters.memory import Engine, Fit
from qdeploy.exporters.targets import GIB, Target
from qdeploy.modeling.checkpoint import CheckpointReader

TOO_LARGE = rule(
    "QD617",
    "error",
    "Weights do not fit into the devices' memory",
    "Take fewer bits, or more devices (`--tensor-parallel`): the finding names the least split that does.",
)
NO_ROOM = rule(
    "QD618",
    "warning",
    "Weights leave no memory for a cache",
    """By an estimate of what the engine takes beside weights: CUDA's context, buffers, activations of the
    largest batch. The engine is not likely to start.""",
)
SHORTENED = rule(
    "QD619",
    "warning",
    "The cache has no room for one sequence of the model's full length",
    """Engines refuse to start then. Launch files of an export set the length that fits
    (`--max-model-len`, `--max_seq_len`).""",
)
NOT_COUNTED = rule(
    "QD620",
    "info",
    "What a sequence takes of the cache is not known",
    "The model keeps something else than keys and values of every layer, or no length is in its config.",
)

USEFUL = 4096
"""Tokens that a split which is advised has room for, if the model takes as many."""

SMALLER = "Quantize to fewer bits, or export for a GPU with more memory"


@dataclass(frozen=True, slots=True)
class Fitting:
    """What came of it.

    Attributes:
        memory: None if the weights alone do not fit.
        arguments: for the engine, where it would not serve sequences as long as the model's own.
    """

    memory: Memory | None
    arguments: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def fit_model(
    reader: CheckpointReader, layers: Sequence[Layer], engine: Engine, target: Target, devices: int
) -> Fitting:
    """Put a model on devices, and see what is left.

    Args:
        layers: of the model, which limit how it can be split.
        devices: that it is split over.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(reader.folder, trust_remote_code=False).get_text_config()
    fit = Fit(reader, config, engine, target, devices)
    if target.memory is not None and fit.weights > engine.share * target.memory:
        return Fitting(None, findings=[_too_large(fit, layers, target.memory)])
    if not fit.cache:
        return Fitting(_memory(fit), findings=[_nothing_left(fit, layers)])
    length = model_length(config)
    try:
        longest = None if length is None else fit.size.longest(length, fit.cache, fit.in_flight)
    except UnknownCacheError as error:
        told = f"what a token of {config.model_type} takes of the cache is not known, since {error}"
        return Fitting(_memory(fit), findings=[NOT_COUNTED(f"{told}: sequences are not counted")])
    if length is None or longest is None:
        told = "config.json does not say how long a sequence can be: none are counted"
        return Fitting(_memory(fit), findings=[NOT_COUNTED(told)])
    if longest == length:
        return Fitting(_count(fit, length))
    if longest < BLOCK:
        return Fitting(_memory(fit), findings=[_nothing_left(fit, layers)])
    shorter = [engine.length_option, str(longest)]
    return Fitting(_count(fit, longest), shorter, [_shortened(fit, layers, length, longest)])


def _memory(fit: Fit) -> Memory:
    return Memory(fit.target.memory, fit.weights, fit.overhead, fit.cache)


def _count(fit: Fit, length: int) -> Memory:
    """With sequences of the greatest length."""
    sequences = fit.cache / fit.size.of_sequence(length, fit.in_flight)
    return replace(
        _memory(fit),
        cache_bytes_per_token=fit.size.per_token,
        max_model_len=length,
        cache_tokens=int(sequences * length),
        sequences=round(sequences, 1),
    )


def _too_large(fit: Fit, layers: Sequence[Layer], memory: int) -> Finding:
    share = f", of which {fit.engine.name} takes {fit.engine.share:.0%}" if fit.engine.share < 1 else ""
    return TOO_LARGE(
        f"weights take {gib(fit.weights)} of each {fit.target.name}'s {gib(memory)}{share}",
        _useful_split(fit, layers) or SMALLER,
    )


def _nothing_left(fit: Fit, layers: Sequence[Layer]) -> Finding:
    return NO_ROOM(
        f"weights take {gib(fit.weights)} of each {fit.target.name}'s {gib(fit.target.memory or 0)}; with an "
        f"estimated {gib(fit.overhead)} for {fit.engine.name} itself nothing is left for a cache, and it "
        "is not likely to start",
        _useful_split(fit, layers) or SMALLER,
    )


def _shortened(fit: Fit, layers: Sequence[Layer], length: int, longest: int) -> Finding:
    size = fit.size.of_sequence(length, fit.in_flight)
    takes = f"a sequence of {length:,} tokens takes {gib(size)} of cache"
    served = f"sequences of up to {longest:,} are served ({fit.engine.length_option})"
    if fit.target.memory is None:
        room = f"of which there are {gib(fit.cache)} (VLLM_CPU_KVCACHE_SPACE)"
        return SHORTENED(f"{takes}, {room}: {served}", "Raise both where there is more memory")
    room = f"for which each {fit.target.name} has an estimated {gib(fit.cache)}"
    more = _split(fit, layers, lambda other: other.holds(length))
    return SHORTENED(f"{takes}, {room}: {served}", more or "Nothing to do if that is long enough")


def _useful_split(fit: Fit, layers: Sequence[Layer]) -> str | None:
    tokens = min(USEFUL, model_length(fit.config) or USEFUL)
    return _split(fit, layers, lambda other: other.holds(tokens))


def _split(fit: Fit, layers: Sequence[Layer], enough: Callable[[Fit], bool]) -> str | None:
    """The smallest split over more devices that is enough; None if there is none."""
    kv_heads = parallel.heads(fit.reader.config)[1]
    for devices in parallel.splits(fit.reader.config):
        whole = not any(parallel.check_partition(layers, devices, kv_heads))
        if devices > fit.devices and whole and enough(replace(fit, devices=devices)):
            return f"Use --tensor-parallel {devices}"
    return None


def gib(size: int) -> str:
    """E.g. "79.1 GiB"; MiB below one."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"
