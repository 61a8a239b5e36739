import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qdeploy.exporters.base import Finding
from qdeploy.exporters.cache import check_cache, check_cache_target
from qdeploy.exporters.lint.subject import Subject
from qdeploy.exporters.targets import TARGETS
from qdeploy.exporters.vllm import check
from qdeploy.formats.ct_config import KV_CACHE
from qdeploy.formats.packed import has_cache_in_fp8
from qdeploy.kv_cache import SCALES
from tests.packed import W4A16, edit_config, edit_tensors, quantize_folder

ATTENTION = "model.layers.1.self_attn"


@pytest.fixture
def folder(wide: Path, tmp_path: Path) -> Path:
    """A tiny model with heads of 32 and scales for its cache, without faults."""
    output = tmp_path / "wide"
    quantize_folder(wide, output, W4A16)
    attentions = [f"model.layers.{i}.self_attn" for i in range(2)]
    edit_tensors(
        output, {f"{name}.{suffix}": torch.tensor([0.1]) for name in attentions for suffix in SCALES}
    )
    change_block(output, kv_cache_scheme=dict(KV_CACHE))
    return output


def change_block(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit_config(
        folder / "config.json",
        folder / "config.json",
        quantization_config=config["quantization_config"] | changes,
    )


def findings(folder: Path, target: str) -> list[Finding]:
    """What is said of the folder's cache, apart from the device and for it."""
    subject = Subject.open(folder)
    if not has_cache_in_fp8(subject.block):
        return list(check_cache(subject))
    return [*check_cache(subject), *check_cache_target(subject.reader.config, TARGETS[target])]


def found(folder: Path, target: str = "h100") -> list[tuple[str | None, str]]:
    return [(finding.module, finding.problem) for finding in findings(folder, target)]


@pytest.mark.parametrize("target", ["h100", "l4", "b200", "cpu-avx512"])
def test_a_sound_checkpoint_passes(folder: Path, target: str) -> None:
    assert not found(folder, target)
    assert all(finding.severity != "error" for finding in check(folder, TARGETS[target]))


@pytest.mark.parametrize(
    ("suffix", "value", "told"),
    [
        ("k_scale", None, "k_scale missing, for which the engine would take 1"),
        ("v_scale", float("inf"), "v_scale is inf"),
        ("q_scale", 0.0, "q_scale is 0.0"),
    ],
)
def test_scales_that_are_missing_or_wrong(folder: Path, suffix: str, value: float | None, told: str) -> None:
    edit_tensors(folder, {f"{ATTENTION}.{suffix}": None if value is None else torch.tensor([value])})
    assert found(folder) == [(ATTENTION, told)]


def test_engines_need_no_scale_for_queries(folder: Path) -> None:
    edit_tensors(folder, {f"{ATTENTION}.q_scale": None})
    assert not found(folder)


def test_scales_that_no_engine_would_read(folder: Path) -> None:
    change_block(folder, kv_cache_scheme=None)
    ((module, told),) = found(folder)
    assert module is None
    assert "kv_cache_scheme is null" in told


@pytest.mark.parametrize("change", [{"num_bits": 4}, {"type": "int"}, {"strategy": "attn_head"}])
def test_other_formats(folder: Path, change: dict[str, object]) -> None:
    change_block(folder, kv_cache_scheme=KV_CACHE | change)
    (finding,) = check_cache(Subject.open(folder))
    assert finding.code == "QD410"
    assert str(next(iter(change.values()))) in finding.problem


@pytest.mark.parametrize(
    ("target", "severity", "told"),
    [
        ("t4", "error", "takes sm80"),
        ("a100", "warning", "FlashInfer alone"),
        ("cpu-avx2", "error", "takes AVX-512"),
    ],
)
def test_devices(folder: Path, target: str, severity: str, told: str) -> None:
    (finding,) = findings(folder, target)
    assert finding.severity == severity
    assert told in finding.problem


def test_narrow_heads_on_a_cpu(folder: Path) -> None:
    edit_config(folder / "config.json", folder / "config.json", head_dim=16)
    assert not found(folder)
    ((_, told),) = found(folder, "cpu-avx512")
    assert "heads are 16 wide" in told


def test_other_checkpoints_have_nothing_to_check(pack_tiny: Callable[..., Path]) -> None:
    assert not found(pack_tiny())
