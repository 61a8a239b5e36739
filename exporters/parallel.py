"""Whether a model can be split over devices, and what each device then runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qdeploy.errors import CheckpointError
from qdeploy.exporters.base import Finding
from qdeploy.exporters.kernels import CPU_EXPERTS, TORCH_INT4, VLLM, choose
from qdeploy.exporters.layers import COLUMN_PARALLEL, KEY_VALUE, ROW_PARALLEL, FusedLayer, Layer
from qdeploy.exporters.lint.rule import rule
from qdeploy.exporters.targets import Target

BF16_CAPABILITY = 80

HEADS = rule(
    "QD601",
    "error",
    "Attention heads cannot be split over so many devices",
    """Query heads are dealt out evenly. Key and value heads are too or, where there are fewer of them than
    devices, repeated evenly.""",
)
PARTITION = rule(
    "QD602",
    "error",
    "A layer cannot be split over so many devices",
    """q, k, v, gate and up are split by rows, o and down by columns, and there each device must get whole
    groups.""",
)
NO_KERNEL = rule(
    "QD603",
    "error",
    "No kernel for a layer on the device",
    """The engine would refuse the layer when it loads, or at its first request. The finding says what each
    kernel objects to. `qdeploy methods --gpu NAME` lists what runs there; `qdeploy export --reference`
    dequantizes such layers, to study accuracy.""",
)
PADDED = rule(
    "QD606",
    "warning",
    "Marlin pads layers at every call",
    "Its tiles are 64 × 128 or 128 × 64. Other shapes work and cost a copy of the inputs or the outputs.",
)
PLUGIN = rule(
    "QD607",
    "info",
    "4 bits on a CPU without AVX-512 take qdeploy's plugin",
    "vLLM picks a kernel there that fails at the first request. `qdeploy serve` brings one that works.",
)
AMX = rule(
    "QD608",
    "info",
    "Quantized experts on a CPU take AMX",
    "vLLM has no other kernel for them on CPUs.",
)
NO_BFLOAT16 = rule(
    "QD609",
    "warning",
    "A bfloat16 model on a GPU without bfloat16",
    """vLLM then runs it in float16, whose largest number is 65504: models with larger activations overflow.
    Measure accuracy on that GPU.""",
)


def heads(config: Mapping[str, Any]) -> tuple[int, int]:
    """(attention heads, key/value heads) of config.json, which may keep them under `text_config`.

    Raises:
        CheckpointError: it names none, as of models without attention.
    """
    text = config.get("text_config") or config
    count = text.get("num_attention_heads") or text.get("n_head")
    if not count:
        raise CheckpointError(
            f"config.json of {text.get('model_type', 'the model')} has no num_attention_heads: how it is "
            "split over devices is known of models with attention alone"
        )
    return int(count), int(text.get("num_key_value_heads") or count)


def splits(config: Mapping[str, Any]) -> list[int]:
    """Numbers of devices over which heads can be dealt out: queries evenly, keys evenly or repeated so."""
    queries, keys = heads(config)
    return [t for t in range(1, queries + 1) if queries % t == 0 and (keys % t == 0 or t % keys == 0)]


def check_heads(config: Mapping[str, Any], tensor_parallel: int) -> Iterator[Finding]:
    """Query heads are dealt out evenly; key/value heads evenly, or repeated evenly."""
    queries, keys = heads(config)
    fits = splits(config)
    if tensor_parallel not in fits:
        yield HEADS(
            f"{queries} attention heads and {keys} key/value heads cannot be split over {tensor_parallel} "
            "devices",
            f"Use --tensor-parallel {' or '.join(map(str, fits[:5]))}",
        )


def check_partition(layers: Sequence[Layer], tensor_parallel: int, kv_heads: int) -> Iterator[Finding]:
    """Each device's share of a layer is whole, and holds whole groups."""
    for layer in layers:
        parts = min(tensor_parallel, kv_heads) if layer.leaf in KEY_VALUE else tensor_parallel
        if layer.leaf in COLUMN_PARALLEL and layer.n % parts:
            yield PARTITION(
                f"N = {layer.n} cannot be split over {parts} devices",
                "Use a smaller --tensor-parallel",
                layer.name,
            )
        if layer.leaf in ROW_PARALLEL:
            yield from _check_row(layer, parts)


def _check_row(layer: Layer, parts: int) -> Iterator[Finding]:
    group = layer.scheme.group_size if layer.scheme else None
    if layer.k % parts or (group and layer.k // parts % group):
        what = f" in whole groups of {group}" if group else ""
        yield PARTITION(
            f"K = {layer.k} cannot be split over {parts} devices{what}",
            "Use a smaller --tensor-parallel" + (" or quantize with a smaller group size" if group else ""),
            layer.name,
        )


def check_kernels(layers: Sequence[FusedLayer], target: Target) -> Iterator[Finding]:
    """Every quantized layer has a kernel on the target; padding is told once, with the count."""
    padded, chosen = [], set()
    for layer in layers:
        choice = choose(layer, target)
        chosen.add(choice.kernel)
        if choice.kernel is None:
            yield NO_KERNEL(
                f"no kernel on {target} takes {layer.scheme.describe() if layer.scheme else ''} "
                f"[{layer.n}, {layer.k}] ({'; '.join(choice.reasons)})",
                _other_scheme(layer, target),
                layer.name,
            )
        if choice.padded:
            padded.append(layer)
    if TORCH_INT4 in chosen:
        yield PLUGIN(
            f"{TORCH_INT4} is qdeploy's vLLM plugin; vLLM {VLLM} alone has no 4-bit kernel for {target}",
            "Start it with `qdeploy serve`, or with docker/vllm-cpu.Dockerfile",
        )
    if CPU_EXPERTS in chosen:
        yield AMX(f"vLLM {VLLM} runs quantized experts on CPUs with AMX only")
    if padded:
        first = padded[0]
        yield PADDED(
            f"Marlin pads {len(padded)} of {len(layers)} layers at every call, this one from "
            f"[{first.n}, {first.k}]: it wants multiples of 64 × 128 or 128 × 64",
            "Nothing to do; the cost grows with how far the shape is from one",
            first.name,
        )


def _other_scheme(layer: FusedLayer, target: Target) -> str:
    scheme = layer.scheme
    if layer.experts and target.capability is None:
        return "Export for a GPU; CPUs with AMX take W4A16 with groups of 64 or 128, and W8A8"
    if scheme and scheme.element is not None:
        return "Use FP8_DYNAMIC there" + (", or export for a GPU" if target.capability is None else "")
    if target.capability is None and scheme and scheme.activations is None:
        weights = {4: "W8A8", 8: "W4A16 or W8A8"}.get(scheme.bits, "W4A16")
        return f"Use {weights} there, or export for a GPU"
    if scheme and scheme.activations is not None:
        gpu = "; W4A8 has a kernel on CPUs alone" if scheme.bits == 4 else ", or a GPU before sm100"
        return f"Use W4A16 or W8A16 there{gpu}"
    return "Put the layer in the recipe's ignore list"


def check_dtype(config: Mapping[str, Any], target: Target) -> Iterator[Finding]:
    """GPUs before sm80 have no bfloat16; vLLM then runs in float16 of its own accord."""
    dtype = config.get("dtype") or config.get("torch_dtype")
    if target.capability is not None and target.capability < BF16_CAPABILITY and dtype == "bfloat16":
        yield NO_BFLOAT16(
            f"the model is bfloat16, which {target} lacks; vLLM {VLLM} runs it in float16",
            "Watch for overflow: measure accuracy on that GPU",
        )


def kernel_counts(layers: Sequence[FusedLayer], target: Target) -> dict[str, int]:
    """Expected kernel → how many fused layers run on it."""
    return dict(Counter(kernel for layer in layers if (kernel := choose(layer, target).kernel)))
