import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from qdeploy.errors import CheckpointError, ExportError, OutputError, UsageError
from qdeploy.exporters.base import Finding, refuse_errors
from qdeploy.exporters.vllm import VllmExporter
from qdeploy.files import sha256_file
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.pipeline import quantize
from qdeploy.schemes import preset
from qdeploy.support import Support
from tests.packed import W4A16, W8A16, edit_tensors
from tests.qdeploy.test_pipeline import recipe


def test_weights_are_hard_links_and_launch_files_are_there(packed: Path, tmp_path: Path) -> None:
    output = tmp_path / "deploy"
    report = VllmExporter().export(packed, output, gpu="cpu-avx512")
    for file in packed.iterdir():
        # What is edited where it lies would change in both folders if it were a link.
        assert (output / file.name).samefile(file) == (file.suffix == ".safetensors")
        assert (output / file.name).read_bytes() == file.read_bytes()
    assert report.kernels == {"CPUWNA16LinearKernel": 8}
    assert report.weight_bytes == (packed / "model.safetensors").stat().st_size
    settings = json.loads((output / "engine_args.json").read_text())
    assert settings["engine"] == "vllm"
    assert settings["kernel_expected"] == "CPUWNA16LinearKernel (8 layers)"
    assert json.loads((output / "export.json").read_text()) == json.loads(json.dumps(report.to_dict()))


def test_pickles_and_code_are_left_behind(packed: Path, tmp_path: Path) -> None:
    for name in ("modeling_evil.py", "weights.bin"):
        (packed / name).write_text("import os")
    VllmExporter().export(packed, tmp_path / "deploy", gpu="cpu-avx512")
    assert not {"modeling_evil.py", "weights.bin"} & {path.name for path in (tmp_path / "deploy").iterdir()}


def test_copies_where_links_cannot_be(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    VllmExporter().export(packed, tmp_path / "deploy", gpu="cpu-avx512")
    copy = tmp_path / "deploy" / "model.safetensors"
    assert not copy.samefile(packed / "model.safetensors")
    assert copy.read_bytes() == (packed / "model.safetensors").read_bytes()


def test_serve_script_gives_vllm_the_folder_host_and_port(packed: Path, tmp_path: Path) -> None:
    output = tmp_path / "a folder"
    VllmExporter().export(packed, output, gpu="a100", tensor_parallel=2)
    echo = tmp_path / "echo"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    environment = {"PYTHON": str(echo), "PATH": os.environ["PATH"], "PORT": "9000"}
    script = [str(output / "serve.sh"), "--max-model-len", "64"]
    told = subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    given = dict(zip(told[2::2], told[3::2], strict=False))
    assert given == {
        "--model": str(output),
        "--host": "127.0.0.1",
        "--port": "9000",
        "--served-model-name": "a folder",
        "--tensor-parallel-size": "2",
        "--max-model-len": "64",
    }


@pytest.mark.parametrize(("gpu", "devices"), [("h100", 2), ("cpu-avx512", 1)])
def test_compose_file_is_loopback_read_only_and_reserves_gpus(
    packed: Path, tmp_path: Path, gpu: str, devices: int
) -> None:
    VllmExporter().export(packed, tmp_path / "deploy", gpu=gpu, tensor_parallel=devices)
    (service,) = yaml.safe_load((tmp_path / "deploy" / "compose.yaml").read_text())["services"].values()
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["volumes"][0]["read_only"] is True
    assert ("deploy" in service) == (gpu != "cpu-avx512")
    if gpu != "cpu-avx512":
        assert service["deploy"]["resources"]["reservations"]["devices"][0]["count"] == devices


def test_a_16_bit_model_is_exported_too(tiny_llama: Path, tmp_path: Path) -> None:
    report = VllmExporter().export(tiny_llama, tmp_path / "deploy", gpu="cpu-avx512")
    assert report.kernel is None
    assert report.scheme == "16-bit"


def test_nothing_is_written_when_the_engine_would_refuse(
    pack_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = pack_tiny(W8A16)
    with pytest.raises(ExportError, match=r"8 problems.*nothing was written"):
        VllmExporter().export(folder, tmp_path / "deploy", gpu="cpu-avx512")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("deploy")]


def test_a_layer_that_cannot_be_split(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be split over 3 devices"):
        VllmExporter().export(packed, tmp_path / "deploy", gpu="a100", tensor_parallel=3)


def test_bad_scales_are_found_before_the_engine_starts(packed: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight_scale"
    edit_tensors(packed, {name: torch.full_like(CheckpointReader(packed).get(name), torch.nan)})
    with pytest.raises(ExportError, match=r"layers\.1\.mlp\.down_proj.*not finite"):
        VllmExporter().export(packed, tmp_path / "deploy", gpu="a100")


def test_refuses_a_used_folder_and_fewer_than_one_device(packed: Path, tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").touch()
    with pytest.raises(OutputError, match="not empty"):
        VllmExporter().export(packed, used, gpu="cpu-avx512")
    with pytest.raises(UsageError, match="at least 1"):
        VllmExporter().export(packed, tmp_path / "deploy", gpu="cpu-avx512", tensor_parallel=0)


def test_a_broken_manifest_does_not_travel_along(packed: Path, tmp_path: Path) -> None:
    (packed / "qdeploy.json").write_text('{"record": "qdeploy-checkpoint"}')
    with pytest.raises(CheckpointError, match=r"qdeploy\.json is not a qdeploy manifest.*provenance: Field"):
        VllmExporter().export(packed, tmp_path / "deploy", gpu="cpu-avx512")
    assert not (tmp_path / "deploy").exists()


def test_like_errors_are_told_once_and_all_are_counted() -> None:
    same = [Finding("error", "is wrong", "Mend it", f"layer {i}") for i in range(30)]
    kinds = [Finding("error", f"problem {i}") for i in range(6)]
    with pytest.raises(ExportError) as caught:
        refuse_errors([*same, *kinds, Finding("warning", "harmless")], W4A16.name)
    text = str(caught.value)
    assert "36 problems" in text
    assert "layer 0: is wrong. Mend it (and 29 more like it)" in text
    assert "and 2 more" in text
    assert "harmless" not in text


@pytest.mark.parametrize(
    ("scheme", "gpu", "support"),
    [
        ("W4A16", "h100", Support("native", "MacheteLinearKernel")),
        ("W8A8", "a100", Support("native", "CutlassInt8ScaledMMLinearKernel")),
        (
            "W3A16",
            "cpu-avx512",
            Support("reference", "CPUWNA16LinearKernel: it takes no symmetric 3-bit weights"),
        ),
    ],
)
def test_tells_how_a_scheme_is_run(scheme: str, gpu: str, support: Support) -> None:
    assert VllmExporter().support(preset(scheme), 4096, 4096, gpu=gpu) == support


def test_the_folder_says_what_it_is_and_can_be_checked(tiny_llama: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "source", tmp_path / "deploy"
    quantize(recipe(tiny_llama, method="rtn"), source)
    VllmExporter().export(source, output, gpu="cpu-avx512")
    card = (output / "README.md").read_text()
    assert card.startswith("---\nbase_model: ")
    assert "qdeploy serve deploy\n" in card and "deploy/serve.sh" in card
    listed = {line.split("  ")[1] for line in (output / "SHA256SUMS").read_text().splitlines()}
    there = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert listed == there - {"SHA256SUMS"}
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=output, check=True)


def test_linked_weights_keep_the_hash_on_record_unless_written_to_since(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    quantize(recipe(tiny_llama, method="rtn"), source)
    shard, later = CheckpointReader(source).files[0], (source / "qdeploy.json").stat().st_mtime_ns + 10**9
    hashed: list[str] = []

    def noted(path: Path) -> str:
        hashed.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr("qdeploy.checkpoint.checksums.sha256_file", noted)
    VllmExporter().export(source, tmp_path / "deploy", gpu="cpu-avx512")
    assert not [name for name in hashed if name.endswith(".safetensors")]
    save_file(load_file(shard), shard, metadata={"format": "other"})
    os.utime(shard, ns=(later, later))
    VllmExporter().export(source, tmp_path / "again", gpu="cpu-avx512")
    assert [name for name in hashed if name.endswith(".safetensors")] == [shard.name]
    subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path / "again", check=True)
