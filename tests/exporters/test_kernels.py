from pathlib import Path

import pytest

from qdeploy.errors import UnknownNameError
from qdeploy.exporters.kernels import choose
from qdeploy.exporters.layers import FusedLayer, Layer, per_device
from qdeploy.exporters.parallel import check_dtype, check_heads, check_kernels, check_partition, kernel_counts
from qdeploy.exporters.targets import TARGETS, find_target
from qdeploy.schemes import INT8_PER_TOKEN, PRESETS, Scheme

W4, W4_ASYM = Scheme("W4A16", 4, 128), Scheme("W4A16_ASYM", 4, 128, symmetric=False)
W8, W8A8 = Scheme("W8A16", 8, 128), Scheme("W8A8", 8, None, activations=INT8_PER_TOKEN)
W3, W2_ASYM = PRESETS["W3A16"], PRESETS["W2A16_ASYM"]


def layer(scheme: Scheme, n: int = 4096, k: int = 4096) -> FusedLayer:
    return FusedLayer("l.0.o_proj", (Layer("l.0.o_proj", n, k, scheme),), n, k)


@pytest.mark.parametrize(
    ("scheme", "gpu", "n", "k", "kernel"),
    [
        (W4, "h100", 4096, 4096, "MacheteLinearKernel"),
        (W4, "h200", 4096, 4096, "MacheteLinearKernel"),
        (W4, "h100", 960, 576, "HummingLinearKernel"),
        (Scheme("W4A16", 4, 32), "h100", 4096, 4096, "HummingLinearKernel"),
        (W4, "a100", 4096, 4096, "MarlinLinearKernel"),
        (W4, "t4", 4096, 4096, "MarlinLinearKernel"),
        (W4_ASYM, "l40s", 4096, 4096, "MarlinLinearKernel"),
        (Scheme("W4A16", 4, 256), "a100", 4096, 4096, "TritonW4A16LinearKernel"),
        (W8, "b200", 4096, 4096, "MarlinLinearKernel"),
        (W3, "a100", 4096, 4096, "HummingLinearKernel"),
        (W2_ASYM, "h100", 960, 576, "HummingLinearKernel"),
        (W3, "cpu-avx512", 4096, 4096, None),
        (W2_ASYM, "cpu-avx2", 4096, 4096, None),
        (W4, "cpu-avx512", 4096, 4096, "CPUWNA16LinearKernel"),
        (W4_ASYM, "cpu-avx512", 32, 32, "CPUWNA16LinearKernel"),
        (W4, "cpu-avx512", 48, 64, None),
        (W4, "cpu-avx512", 64, 48, None),
        (W8, "cpu-avx512", 4096, 4096, None),
        (W4, "cpu-avx2", 4096, 4096, "TorchInt4LinearKernel"),
        (W4, "cpu-avx2", 24, 64, None),
        (W8A8, "cpu-avx2", 4096, 4096, "CPUInt8ScaledMMLinearKernel"),
        (W8A8, "t4", 4096, 4096, "CutlassInt8ScaledMMLinearKernel"),
        (W8A8, "h100", 4096, 4096, "CutlassInt8ScaledMMLinearKernel"),
        (W8A8, "b200", 4096, 4096, None),
        (W8A8, "cpu-avx512", 4096, 4096, "CPUInt8ScaledMMLinearKernel"),
    ],
)
def test_kernel_per_scheme_and_device(scheme: Scheme, gpu: str, n: int, k: int, kernel: str | None) -> None:
    choice = choose(layer(scheme, n, k), TARGETS[gpu])
    assert choice.kernel == kernel
    assert bool(choice.reasons) == (kernel is None)


@pytest.mark.parametrize(
    ("scheme", "bits", "fix"),
    [
        (W8, "8-bit", "W4A16 or W8A8"),
        (W3, "symmetric 3-bit", "W4A16"),
        (W2_ASYM, "asymmetric 2-bit", "W4A16"),
    ],
)
def test_no_kernel_is_an_error_that_says_what_to_do(scheme: Scheme, bits: str, fix: str) -> None:
    (finding,) = check_kernels([layer(scheme)], TARGETS["cpu-avx512"])
    assert finding.severity == "error"
    assert bits in finding.problem
    assert finding.fix == f"Use {fix} there, or export for a GPU"


def mixture(scheme: Scheme, hidden: int = 2048, inner: int = 768, count: int = 4) -> list[Layer]:
    shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    return [
        Layer(f"model.layers.0.mlp.experts.{i}.{leaf}", n, k, scheme)
        for i in range(count)
        for leaf, (n, k) in shapes.items()
    ]


def test_the_experts_of_a_block_are_one_call() -> None:
    (experts,) = per_device(mixture(W4), tensor_parallel=2, kv_heads=2)
    assert (experts.name, experts.n, experts.k) == ("model.layers.0.mlp.experts", 2048, 384)
    assert len(experts.members) == 12
    assert kernel_counts([experts], TARGETS["a100"]) == {"MARLIN": 1}


@pytest.mark.parametrize(
    ("scheme", "gpu", "hidden", "kernel"),
    [
        (W4, "a100", 2048, "MARLIN"),
        (W4, "a100", 2048 + 64, "TRITON"),
        (Scheme("W4A16", 4, None), "a100", 2048, "MARLIN"),
        (W4, "h100", 2048, "HUMMING"),
        (Scheme("W4A16", 4, None), "h100", 2048, None),
        (Scheme("W4A16", 4, 32), "b200", 2048, "FLASHINFER_TRTLLM"),
        (W4_ASYM, "b200", 2048, "MARLIN"),
        (W8, "l4", 2048, "MARLIN"),
        (W8A8, "t4", 2048, "TRITON"),
        (W8A8, "b200", 2048, "TRITON"),
        (W4, "cpu-avx512", 2048, "CPU"),
        (Scheme("W4A16", 4, 32), "cpu-avx512", 2048, None),
        (W4_ASYM, "cpu-avx512", 2048, None),
        (W4, "cpu-avx2", 2048, None),
    ],
)
def test_experts_have_kernels_of_their_own(scheme: Scheme, gpu: str, hidden: int, kernel: str | None) -> None:
    (experts,) = per_device(mixture(scheme, hidden), 1, 2)
    assert choose(experts, TARGETS[gpu]).kernel == kernel


def test_experts_on_a_cpu_need_amx() -> None:
    (finding,) = check_kernels(per_device(mixture(W4), 1, 2), TARGETS["cpu-avx512"])
    assert finding.severity == "info"
    assert "AMX" in finding.problem
    (refused,) = check_kernels(per_device(mixture(W4), 1, 2), TARGETS["cpu-avx2"])
    assert refused.severity == "error"
    assert "CPUs with AMX" in refused.fix


@pytest.mark.parametrize(("n", "k", "padded"), [(64, 128, False), (128, 64, False), (64, 64, True)])
def test_marlin_pads_what_fits_neither_tile(n: int, k: int, padded: bool) -> None:
    scheme = Scheme("W4A16", 4, 64)
    assert [f.severity for f in check_kernels([layer(scheme, n, k)], TARGETS["a100"])] == ["warning"] * padded


def projections(scheme: Scheme) -> list[Layer]:
    shapes = {"q_proj": (512, 512), "k_proj": (128, 512), "v_proj": (128, 512), "o_proj": (512, 512)}
    return [Layer(f"l.0.{leaf}", n, k, scheme) for leaf, (n, k) in shapes.items()]


def test_devices_share_fused_columns_and_rows() -> None:
    qkv, out = per_device(projections(W4), tensor_parallel=2, kv_heads=2)
    assert (qkv.name, qkv.n, qkv.k) == ("l.0.qkv_proj", (512 + 128 + 128) // 2, 512)
    assert (out.name, out.n, out.k) == ("l.0.o_proj", 512, 256)


def test_key_value_heads_fewer_than_devices_are_repeated() -> None:
    qkv, _ = per_device(projections(W4), tensor_parallel=4, kv_heads=2)
    assert qkv.n == 512 // 4 + 2 * 128 // 2


def test_kernels_are_counted_by_fused_layer() -> None:
    assert kernel_counts(per_device(projections(W4), 1, 2), TARGETS["a100"]) == {"MarlinLinearKernel": 2}


def test_rows_split_in_whole_groups() -> None:
    layers = [Layer("l.0.down_proj", 512, 384, W4)]
    assert not list(check_partition(layers, 3, kv_heads=3))
    (finding,) = check_partition(layers, 2, kv_heads=2)
    assert "K = 384 cannot be split over 2 devices in whole groups of 128" in finding.problem


def test_columns_split_evenly() -> None:
    layers = [Layer("l.0.up_proj", 510, 512, W4)]
    assert not list(check_partition(layers, 2, kv_heads=2))
    (finding,) = check_partition(layers, 4, kv_heads=4)
    assert finding.module == "l.0.up_proj"


@pytest.mark.parametrize(
    ("devices", "fits"), [(1, True), (2, True), (4, True), (8, True), (3, False), (16, False)]
)
def test_heads_split_evenly_or_are_repeated(devices: int, fits: bool) -> None:
    config = {"num_attention_heads": 8, "num_key_value_heads": 2}
    assert (not list(check_heads(config, devices))) == fits


def test_bfloat16_on_a_gpu_without_it() -> None:
    assert list(check_dtype({"dtype": "bfloat16"}, TARGETS["t4"]))
    assert not list(check_dtype({"dtype": "float16"}, TARGETS["t4"]))
    assert not list(check_dtype({"dtype": "bfloat16"}, TARGETS["a100"]))


def test_unknown_gpu_says_what_is_near() -> None:
    with pytest.raises(UnknownNameError, match="h100"):
        find_target("h10")
    assert find_target("A100") is TARGETS["a100"]


def test_cpu_is_the_one_of_this_machine() -> None:
    assert find_target("cpu").avx512 == ("avx512f" in Path("/proc/cpuinfo").read_text())
