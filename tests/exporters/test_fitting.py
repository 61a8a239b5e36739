import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from qdeploy.cli.main import build
from qdeploy.errors import ExportError
from qdeploy.exporters.fitting import Fitting, fit_model, gib
from qdeploy.exporters.layers import read_layers
from qdeploy.exporters.memory import TENSORRT_LLM, VLLM, Engine
from qdeploy.exporters.targets import GIB, TARGETS, Target
from qdeploy.exporters.tensorrt_llm import TensorRTLLMExporter
from qdeploy.exporters.vllm import VllmExporter
from qdeploy.modeling.checkpoint import CheckpointReader
from tests.exporters.sparse import LLAMA3_8B, LLAMA31, SMOLLM2, write_sparse


@pytest.fixture(scope="module")
def llama31(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama-3.1-8B in 16 bits, which takes sequences of 131,072 tokens."""
    return write_sparse(tmp_path_factory.mktemp("fitting") / "llama", LLAMA3_8B | LLAMA31)


def fitted(folder: Path, target: str, engine: Engine = VLLM, devices: int = 1) -> Fitting:
    reader = CheckpointReader(folder)
    return fit_model(reader, read_layers(reader), engine, TARGETS[target], devices)


def test_a_model_with_room_to_spare(llama31: Path) -> None:
    found = fitted(llama31, "h100")
    assert not found.findings
    assert not found.arguments
    memory = found.memory
    assert memory is not None
    assert memory.device_bytes == TARGETS["h100"].memory
    assert memory.weight_bytes == 2 * 8_030_261_248
    assert memory.cache_bytes_per_token == 131_072
    assert memory.max_model_len == 131_072
    # 51.8 GiB of cache at 128 KiB a token.
    assert memory.cache_tokens == memory.cache_bytes // 131_072
    assert memory.sequences == 3.2


def test_smollm2_on_a_small_gpu(tmp_path: Path) -> None:
    memory = fitted(write_sparse(tmp_path / "smollm2", SMOLLM2), "t4").memory
    assert memory is not None
    assert memory.cache_bytes_per_token == 23_040
    assert memory.cache_bytes == int(
        0.92 * int(14.5 * GIB) - 269_030_016 - (2 * GIB + int(0.05 * int(14.5 * GIB)))
    )
    assert memory.sequences == round(memory.cache_bytes / (23_040 * 8192), 1)


def test_weights_that_do_not_fit_are_refused(llama31: Path, tmp_path: Path) -> None:
    told = (
        r"weights take 15\.0 GiB of each t4's 14\.5 GiB, of which vLLM takes 92%\. Use --tensor-parallel 2\."
    )
    with pytest.raises(ExportError, match=told):
        VllmExporter().export(llama31, tmp_path / "deploy", gpu="t4")
    assert not (tmp_path / "deploy").exists()


@pytest.mark.parametrize(("share", "severity"), [(0.99, "error"), (1.01, "warning")])
def test_the_limit_is_the_share_that_vllm_takes(
    llama31: Path, monkeypatch: pytest.MonkeyPatch, share: float, severity: str
) -> None:
    memory = int(share * 2 * 8_030_261_248 / VLLM.share)
    monkeypatch.setitem(TARGETS, "l4", Target("l4", 89, memory))
    (finding,) = fitted(llama31, "l4").findings
    assert finding.severity == severity


def test_weights_that_no_split_makes_fit(tmp_path: Path) -> None:
    # One attention head cannot be split, and the layers between would take 24 GiB.
    one = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 128, "intermediate_size": 32768}
    (finding,) = fitted(write_sparse(tmp_path / "one", LLAMA3_8B | one), "l4").findings
    assert finding.severity == "error"
    assert finding.fix == "Quantize to fewer bits, or export for a GPU with more memory"


def test_tensorrt_llm_refuses_them_too(llama31: Path, tmp_path: Path) -> None:
    told = r"weights take 15\.0 GiB of each t4's 14\.5 GiB\. Use --tensor-parallel 2\."
    with pytest.raises(ExportError, match=told):
        TensorRTLLMExporter().export(llama31, tmp_path / "deploy", gpu="t4")
    assert not (tmp_path / "deploy").exists()


@pytest.mark.parametrize(("engine", "option"), [(VLLM, "--max-model-len"), (TENSORRT_LLM, "--max_seq_len")])
def test_sequences_are_shortened_to_what_the_cache_holds(llama31: Path, engine: Engine, option: str) -> None:
    found = fitted(llama31, "l4", engine)
    assert found.memory is not None
    length = found.memory.max_model_len
    assert length is not None
    assert found.arguments == [option, str(length)]
    assert length % 16 == 0
    assert length * 131_072 <= found.memory.cache_bytes < (length + 16) * 131_072
    (finding,) = found.findings
    assert finding.severity == "warning"
    assert finding.problem == (
        f"a sequence of 131,072 tokens takes 16.0 GiB of cache, for which each l4 has an estimated "
        f"{gib(found.memory.cache_bytes)}: sequences of up to {length:,} are served ({option})"
    )
    assert finding.fix == "Use --tensor-parallel 2"
    assert not fitted(llama31, "l4", engine, 2).arguments


def test_a_split_that_leaves_no_whole_rows_is_not_advised(tmp_path: Path) -> None:
    odd = LLAMA3_8B | LLAMA31 | {"intermediate_size": 14337}
    (finding,) = fitted(write_sparse(tmp_path / "odd", odd), "l4").findings
    assert finding.fix == "Nothing to do if that is long enough"


def test_the_rest_is_too_little_for_a_cache(tmp_path: Path) -> None:
    wider = LLAMA3_8B | {"num_hidden_layers": 40}
    found = fitted(write_sparse(tmp_path / "wider", wider), "l4")
    (finding,) = found.findings
    assert not found.arguments
    assert finding.severity == "warning"
    assert (
        "weights take 18.2 GiB of each l4's 22.0 GiB; with an estimated 3.1 GiB for vLLM itself"
        in finding.problem
    )
    assert finding.fix == "Use --tensor-parallel 2"
    assert found.memory is not None
    assert (found.memory.cache_bytes, found.memory.sequences) == (0, None)


def test_nothing_is_left_for_a_cache_of_a_size_that_is_not_known(tmp_path: Path) -> None:
    wider = LLAMA3_8B | {"num_hidden_layers": 40, "layer_types": ["chunked_attention"] * 40}
    (finding,) = fitted(write_sparse(tmp_path / "wider", wider), "l4").findings
    assert "nothing is left for a cache" in finding.problem
    assert finding.fix == "Use --tensor-parallel 2"


def test_a_cache_of_less_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A GPU with just so much memory that the cache has 1 MiB, where a block takes 2 MiB.
    needed = int((2 * 8_030_261_248 + 2 * GIB + 2**20) / (VLLM.share - 0.05)) + 2
    monkeypatch.setitem(TARGETS, "l4", Target("l4", 89, needed))
    found = fitted(write_sparse(tmp_path / "llama", LLAMA3_8B), "l4")
    assert found.memory is not None
    assert 0 < found.memory.cache_bytes < 2 * 2**20
    (finding,) = found.findings
    assert "nothing is left for a cache" in finding.problem
    assert not found.arguments


def test_a_cpu_serves_what_its_cache_holds(llama31: Path) -> None:
    found = fitted(llama31, "cpu-avx512")
    # 2 GiB at 256 KiB a token.
    assert found.arguments == ["--max-model-len", "8192"]
    (finding,) = found.findings
    assert "32.0 GiB of cache, of which there are 2.0 GiB (VLLM_CPU_KVCACHE_SPACE)" in finding.problem
    assert finding.fix == "Raise both where there is more memory"


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    shared: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128}
    hybrid = {
        "model_type": "qwen3_next",
        "num_hidden_layers": 4,
        "tie_word_embeddings": False,
        "num_experts": 0,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    }
    found = fitted(write_sparse(tmp_path / "hybrid", shared | hybrid), "h100")
    (finding,) = found.findings
    assert finding.severity == "info"
    assert finding.problem == (
        "what a token of qwen3_next takes of the cache is not known, since it has layers of "
        "linear_attention: sequences are not counted"
    )
    assert found.memory is not None
    assert found.memory.weight_bytes > 0
    assert found.memory.sequences is None


def test_a_model_that_does_not_say_how_long_its_sequences_can_be(tmp_path: Path) -> None:
    bloom = {
        "model_type": "bloom",
        "hidden_size": 64,
        "n_layer": 2,
        "num_attention_heads": 4,
        "vocab_size": 320,
    }
    found = fitted(write_sparse(tmp_path / "bloom", bloom | {"tie_word_embeddings": True}), "h100")
    (finding,) = found.findings
    assert finding.problem == "config.json does not say how long a sequence can be: none are counted"
    assert found.memory is not None
    assert found.memory.max_model_len is None


def test_the_report_and_the_launch_files_say_it(llama31: Path, tmp_path: Path) -> None:
    report = VllmExporter().export(llama31, tmp_path / "deploy", gpu="l4")
    assert report.memory is not None
    told = json.loads((tmp_path / "deploy" / "export.json").read_text())
    assert told["memory"]["max_model_len"] == report.memory.max_model_len
    arguments = ["--max-model-len", str(report.memory.max_model_len)]
    assert json.loads((tmp_path / "deploy" / "engine_args.json").read_text())["arguments"] == arguments
    for file in ("serve.sh", "compose.yaml", "kubernetes.yaml"):
        assert str(report.memory.max_model_len) in (tmp_path / "deploy" / file).read_text()


def test_tensorrt_llm_is_told_too(llama31: Path, tmp_path: Path) -> None:
    report = TensorRTLLMExporter().export(llama31, tmp_path / "deploy", gpu="l4")
    assert report.memory is not None
    assert report.arguments == ["--backend", "pytorch", "--max_seq_len", str(report.memory.max_model_len)]
    options = yaml.safe_load((tmp_path / "deploy" / "llm_args.yaml").read_text())
    # What the cache was counted with.
    assert options["kv_cache_config"] == {"free_gpu_memory_fraction": 0.9}
    deployment, _ = yaml.safe_load_all((tmp_path / "deploy" / "kubernetes.yaml").read_text())
    args = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[-2:] == report.arguments[-2:]


def test_the_command_tells_what_is_taken_and_what_the_cache_holds(llama31: Path, tmp_path: Path) -> None:
    asked = ["export", str(llama31), "--gpu", "h100", "-o", str(tmp_path / "deploy")]
    result = CliRunner().invoke(build(), asked)
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    taken = "15.0 GiB weights + 6.0 GiB engine (estimate) + 51.9 GiB cache, of 79.1 GiB"
    assert f"Each device {taken}" in told
    assert "sequences of 131,072" in told


def test_the_command_counts_sequences_on_a_cpu_too(tmp_path: Path) -> None:
    folder = write_sparse(tmp_path / "smollm2", SMOLLM2)
    result = CliRunner().invoke(
        build(), ["export", str(folder), "--gpu", "cpu-avx2", "-o", str(tmp_path / "deploy")]
    )
    assert "Each device" not in result.output
    assert "Cache holds 46,603 tokens: 5.7 sequences of 8,192" in " ".join(result.output.split())


def test_sizes_are_told_in_the_larger_unit() -> None:
    assert [gib(size) for size in (GIB, 3 * GIB // 2, GIB // 2)] == ["1.0 GiB", "1.5 GiB", "512.0 MiB"]
