import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qdeploy.bench.records import load_record
from qdeploy.bench.reference import Reference, compute_reference, engine_dtype, token_logprobs
from qdeploy.bench.verify import LIMIT, Expectation, compare, expect, verify
from qdeploy.errors import EndpointError, OutputError, VerificationError
from qdeploy.formats import bits
from qdeploy.formats.compressed_tensors import read_linear
from qdeploy.formats.ct_config import module_schemes
from qdeploy.formats.dequantize import dequantized_model
from qdeploy.modeling.checkpoint import CheckpointReader
from tests.bench.verify.model_server import serve
from tests.packed import swap_nibbles

LAYER = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="session")
def expected(quantized: Path) -> Expectation:
    return expect(quantized, tokens=512)


def engine(folder: Path) -> Any:
    """What computes like an engine: bfloat16, attention by another algorithm than the reference's."""
    model = dequantized_model(folder, torch.bfloat16)
    model.set_attn_implementation("eager")
    return model


def misread(model: Any, folder: Path, layer: str) -> Any:
    """The model as an engine computes it that takes each pair of 4-bit codes in the other order."""
    reader = CheckpointReader(folder)
    scheme = module_schemes(reader.config, reader)[layer]
    q = read_linear(reader, layer, scheme)
    packed = swap_nibbles(bits.pack(q.codes, 4))
    q.codes.copy_(bits.unpack(packed, 4, q.codes.shape[1]))
    linear = model.get_submodule(layer)
    linear.weight = nn.Parameter(q.dequantize().to(linear.weight.dtype))
    return model


def scored(model: Any, expected: Expectation) -> Any:
    return np.stack([token_logprobs(model, window) for window in expected.windows.tokens])


def test_the_noise_of_16_bit_arithmetic_passes(quantized: Path, expected: Expectation) -> None:
    found = compare(scored(engine(quantized), expected), expected.reference)
    assert found.passed
    assert 0.5 < found.ratio < 1.5


def test_an_engine_that_swaps_nibbles_in_one_layer_fails(quantized: Path, expected: Expectation) -> None:
    found = compare(scored(misread(engine(quantized), quantized, LAYER), expected), expected.reference)
    assert found.ratio > 2 * LIMIT


def test_scores_that_are_not_numbers_fail(expected: Expectation) -> None:
    served = expected.reference.exact.copy()
    served[0, 0] = np.nan
    assert not compare(served, expected.reference).passed


def test_differences_in_float32_are_not_divided_by_nothing() -> None:
    exact = np.zeros((2, 3))
    assert compare(exact + 1e-5, Reference(exact, exact, "float32")).passed
    assert not compare(exact + 1e-2, Reference(exact, exact, "float32")).passed


def test_verify_passes_on_the_model_behind_the_url(quantized: Path, tmp_path: Path) -> None:
    with serve(engine(quantized)) as url:
        verify(quantized, tokens=256, url=url, output=tmp_path / "run")
    facts = load_record(tmp_path / "run").verify
    assert facts is not None
    assert facts["verdict"] == "pass"
    assert (facts["layers_checked"], facts["dtype"], facts["positions"]) == (14, "bfloat16", 2 * 127)


def test_verify_fails_on_a_misreading_engine_and_names_the_layer(
    quantized_mlps: Path, tmp_path: Path
) -> None:
    with (
        serve(misread(engine(quantized_mlps), quantized_mlps, LAYER)) as url,
        pytest.raises(
            VerificationError, match=f"does not compute what(.|\\s)*{LAYER}: neighbouring codes swapped"
        ),
    ):
        verify(quantized_mlps, tokens=128, url=url, output=tmp_path / "run")
    facts = load_record(tmp_path / "run").verify
    assert facts is not None
    assert facts["verdict"] == "fail"
    assert (facts["suspects"][0]["where"], facts["misreadings_tried"]) == (LAYER, 70)


def test_verify_refuses_a_used_output_folder(quantized: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="not empty"):
        verify(quantized, output=tmp_path)


def test_verify_says_when_nothing_answers(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdeploy.engines.transport.BACKOFF_S", 0.0)
    with pytest.raises(EndpointError, match="Cannot reach"):
        verify(quantized, tokens=128, url="http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("config", "arguments", "dtype"),
    [
        ({"dtype": "bfloat16"}, [], torch.bfloat16),
        ({"torch_dtype": "float16"}, [], torch.float16),
        ({"dtype": "float32"}, [], torch.bfloat16),
        ({"dtype": "bfloat16"}, ["--dtype", "half"], torch.float16),
        ({"dtype": "bfloat16"}, ["--dtype", "auto"], torch.bfloat16),
    ],
)
def test_the_type_that_the_engine_computes_in(
    config: dict[str, Any], arguments: list[str], dtype: torch.dtype
) -> None:
    assert engine_dtype(config, arguments) == dtype


def test_the_reference_is_the_same_in_both_types_up_to_rounding(quantized: Path) -> None:
    windows = [list(range(40)), list(range(100, 140))]
    found = compute_reference(quantized, windows, torch.float32)
    np.testing.assert_array_equal(found.exact, found.rounded)
    assert found.exact.shape == (2, 39)


def test_what_export_expects_is_kept(quantized: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deploy"
    folder.mkdir()
    for file in quantized.iterdir():
        (folder / file.name).hardlink_to(file)
    settings = {"engine": "vllm", "arguments": ["--dtype", "float32"], "kernel_expected": "K (8 layers)"}
    (folder / "engine_args.json").write_text(json.dumps(settings))
    found = expect(folder, tokens=128)
    assert found.kernel == "K (8 layers)"
    assert found.reference.dtype == "float32"
