"""Formats and vLLM: what it reads as it is, what is converted for it, what it has no kernel for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qdeploy.conversion import convert
from qdeploy.errors import ExportError
from qdeploy.exporters.lint.linter import lint
from qdeploy.exporters.targets import TARGETS
from qdeploy.exporters.tensorrt_llm import TensorRTLLMExporter
from qdeploy.exporters.vllm import VllmExporter
from qdeploy.exporters.vllm_formats import objection
from qdeploy.formats.dequantize import dequantized_state
from qdeploy.formats.packed import Packed
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.pipeline import quantize
from qdeploy.schemes import PRESETS, Scheme
from tests.packed import W4A16, W4A16_ASYM, W8A16
from tests.qdeploy.formats.test_pairs import rounded_before_the_product
from tests.qdeploy.test_pipeline import recipe

Make = Callable[..., Path]
THREE, ODD = Scheme("W3A16", 3, 32), Scheme("W4A16", 4, 96)


@pytest.mark.parametrize(
    ("format", "scheme", "gpu", "told"),
    [
        ("gptq", W4A16, "a100", None),
        ("gptq_v2", W8A16, "a100", None),
        ("gptq", W4A16_ASYM, "a100", "no zero points"),
        ("gptq_v2", THREE, "h100", "not of 3"),
        ("gptq", ODD, "h100", "not of 96"),
        ("awq", W4A16_ASYM, "t4", None),
        ("compressed-tensors", THREE, "h100", None),
        (None, W4A16, "h100", None),
        ("modelopt", W4A16, "h100", "reads no W4A16_AWQ"),
        ("modelopt", PRESETS["FP8"], "h100", None),
        ("modelopt", PRESETS["FP8_DYNAMIC"], "cpu-avx512", None),
        ("modelopt", PRESETS["FP8"], "t4", "on sm80 and later, not on t4"),
        ("modelopt", PRESETS["NVFP4"], "t4", None),
        ("fp8", PRESETS["FP8_DYNAMIC"], "cpu-avx512", "on GPUs alone"),
        ("fp8", PRESETS["FP8_BLOCK"], "h100", None),
        ("fbgemm_fp8", PRESETS["FP8_DYNAMIC"], "h100", "--allow-deprecated-quantization"),
        ("bitsandbytes", W4A16, "h100", "no bitsandbytes"),
    ],
)
def test_what_is_read(format: str | None, scheme: Scheme, gpu: str, told: str | None) -> None:
    found = objection(format, scheme, TARGETS[gpu])
    assert found is None if told is None else found is not None and told in found


@pytest.mark.parametrize("format", ["gptq", "gptq_v2", "awq"])
def test_what_vllm_reads_is_linked_as_it_is(packed: Path, tmp_path: Path, format: str) -> None:
    source, output = tmp_path / format, tmp_path / "deploy"
    convert(packed, source, format)
    report = VllmExporter().export(source, output, gpu="cpu-avx512")
    assert report.kernels == {"CPUWNA16LinearKernel": 8}
    assert not report.findings
    for file in source.iterdir():
        assert (output / file.name).exists()
        assert (output / file.name).samefile(file) == (file.suffix == ".safetensors")


@pytest.mark.parametrize(("scheme", "format"), [(W4A16_ASYM, "gptq_v2"), (W4A16, "modelopt")])
def test_what_it_does_not_read_is_converted(
    pack_tiny: Make, tmp_path: Path, scheme: Scheme, format: str
) -> None:
    source, output = tmp_path / format, tmp_path / "deploy"
    convert(pack_tiny(scheme), source, format)
    report = VllmExporter().export(source, output, gpu="cpu-avx512")
    (finding,) = report.findings
    assert finding.code == "QD613"
    assert f"as {format} vLLM 0.32.0 does not take it" in finding.problem
    assert report.source == str(source)
    found, before = dict(dequantized_state(output)), dict(dequantized_state(source))
    assert all((found[name] == tensor).all() for name, tensor in before.items())
    assert (Packed(CheckpointReader(output)).format or 0) == Packed(
        CheckpointReader(tmp_path / "packed")
    ).format
    assert {path.name for path in tmp_path.iterdir()} == {"packed", format, "deploy"}


def test_nothing_is_left_where_the_converted_one_is_refused(pack_tiny: Make, tmp_path: Path) -> None:
    convert(pack_tiny(THREE), tmp_path / "gptq", "gptq")
    with pytest.raises(ExportError, match="no kernel on cpu-avx512 takes W3A16"):
        VllmExporter().export(tmp_path / "gptq", tmp_path / "deploy", gpu="cpu-avx512")
    assert {path.name for path in tmp_path.iterdir()} == {"packed", "gptq"}


@pytest.mark.parametrize(
    ("scheme", "format", "gpu", "code", "told"),
    [
        ("NVFP4", "modelopt", "cpu-avx512", "QD603", "no kernel on cpu-avx512 takes NVFP4"),
        ("FP8", "compressed-tensors", "cpu-avx512", "QD603", "no kernel on cpu-avx512 takes FP8"),
        (W8A16, "gptq", "cpu-avx512", "QD603", "it takes no symmetric 8-bit weights"),
        (W8A16, "compressed-tensors", "cpu-avx512", "QD603", "it takes no symmetric 8-bit weights"),
        (W4A16_ASYM, "gptq_v2", "h100", "QD612", "reads no zero points of GPTQ folders. qdeploy convert"),
    ],
)
def test_the_linter_refuses_what_vllm_cannot_load(
    tiny_llama: Path,
    pack_tiny: Make,
    tmp_path: Path,
    scheme: Scheme | str,
    format: str,
    gpu: str,
    code: str,
    told: str,
) -> None:
    if isinstance(scheme, str):
        quantize(recipe(tiny_llama, scheme=scheme, method="rtn", group_size=None), tmp_path / "packed")
    folder = pack_tiny(scheme) if isinstance(scheme, Scheme) else tmp_path / "packed"
    if format != "compressed-tensors":
        convert(folder, tmp_path / format, format, round_scales=True)
        folder = tmp_path / format
    assert not lint(folder)
    found = lint(folder, engine=VllmExporter(), target=TARGETS[gpu])
    assert {finding.code for finding in found if finding.severity == "error"} == {code}
    assert told in str(found[0])


def test_what_no_format_of_vllms_holds_is_to_be_dequantized(wide: Path, tmp_path: Path) -> None:
    rounded_before_the_product(wide, tmp_path / "modelopt")
    (found,) = lint(tmp_path / "modelopt", engine=VllmExporter(), target=TARGETS["h100"])
    assert found.code == "QD612" and "reads no W4A8_AWQ" in found.problem
    assert f"qdeploy export {tmp_path / 'modelopt'} --engine vllm --reference" in found.fix


def test_the_linter_asks_for_the_split(packed: Path) -> None:
    found = lint(packed, engine=VllmExporter(), target=TARGETS["a100"], tensor_parallel=3)
    assert "4 attention heads and 2 key/value heads cannot be split over 3 devices" in found[0].problem
    found = lint(packed, engine=VllmExporter(), target=TARGETS["a100"], tensor_parallel=4)
    assert {finding.code for finding in found} == {"QD602"}


def test_tensorrt_llm_reads_modelopt_alone(packed: Path, tmp_path: Path) -> None:
    engine, target = TensorRTLLMExporter(), TARGETS["h100"]
    (found,) = lint(packed, engine=engine, target=target)
    assert found.code == "QD612"
    assert "--engine tensorrt-llm" in found.fix
    convert(packed, tmp_path / "modelopt", "modelopt")
    found = lint(tmp_path / "modelopt", engine=engine, target=target)[0]
    assert "groups of 64 or 128, not of 32" in found.problem
