"""The files that build an engine and start it: build.sh and serve.sh."""

from __future__ import annotations

import shlex
from pathlib import Path

from qdeploy.exporters.algorithms import TENSORRT_LLM
from qdeploy.exporters.base import ExportReport
from qdeploy.exporters.trtllm_legacy.split import Split
from qdeploy.files import write_json, write_text

MOST_TOKENS = 8192
"""In a batch, trtllm-build's own default; longer prompts would have to be read in parts."""

BUILD = """\
#!/bin/sh
# Build an engine from this folder with TensorRT-LLM {version}, on {target}: releases after 1.2.x have no
# trtllm-build, and an engine runs on the kind of GPU alone that it was built on. Further arguments go to
# trtllm-build. qdeploy has not run this.
#   ENGINE (default engine, beside this file), MAX_BATCH_SIZE (default 64), MAX_SEQ_LEN (default {length})
set -e
folder="$(cd "$(dirname "$0")" && pwd)"
exec trtllm-build --checkpoint_dir "$folder" --output_dir "${{ENGINE:-$folder/engine}}" \\
    --max_batch_size "${{MAX_BATCH_SIZE:-64}}" --max_num_tokens {tokens} \\
    --max_input_len "${{MAX_SEQ_LEN:-{length}}}" --max_seq_len "${{MAX_SEQ_LEN:-{length}}}" \\
    {arguments} "$@"
"""
SERVE = """\
#!/bin/sh
# Serve the engine that build.sh made, with TensorRT-LLM {version} on {target}. Further arguments go to
# trtllm-serve. qdeploy has not run this.
#   ENGINE (default engine, beside this file), HOST (default 127.0.0.1), PORT (default 8000)
set -e
folder="$(cd "$(dirname "$0")" && pwd)"
engine="${{ENGINE:-$folder/engine}}"
[ -d "$engine" ] || {{ echo "There is no engine in $engine. Build it: $folder/build.sh" >&2; exit 1; }}
exec trtllm-serve serve "$engine" --tokenizer "$folder/tokenizer" \\
    --host "${{HOST:-127.0.0.1}}" --port "${{PORT:-8000}}" {arguments} "$@"
"""


def build_arguments(algorithm: str | None, split: Split) -> list[str]:
    """Arguments to trtllm-build that depend on the model."""
    # FP4Linear multiplies the interleaved scales with the plugin of that name, and dequantizes to float16
    # without. Of the others only 16-bit layers look at the plugin, and "auto" is their dtype; FP8Linear's
    # "fp8" is for few tokens. The plugins for INT4 and FP8 by rows the builder chooses by the algorithm.
    plugin = "nvfp4" if algorithm == "NVFP4" else "auto"
    workers = ["--workers", str(split.devices)] if split.devices > 1 else []
    return ["--gemm_plugin", plugin, *workers]


def serve_arguments(split: Split) -> list[str]:
    """Arguments without which the engine would not be served as it was built."""
    sizes = {"--tp_size": split.tensor_parallel, "--pp_size": split.pipeline_parallel}
    split_over = [part for name, size in sizes.items() if size > 1 for part in (name, str(size))]
    return ["--backend", "tensorrt", *split_over]


def write_launch_files(
    folder: Path, report: ExportReport, split: Split, *, algorithm: str | None, longest: int
) -> None:
    """Write them into `folder`, and export.json.

    Args:
        longest: tokens of a prompt and its answer that the model is made for.

    Raises:
        OutputError: the disk is full or read-only.
    """
    scripts = {
        "build.sh": BUILD.format(
            version=TENSORRT_LLM,
            target=report.target,
            tokens=MOST_TOKENS,
            length=min(longest, MOST_TOKENS),
            arguments=shlex.join(build_arguments(algorithm, split)),
        ),
        "serve.sh": SERVE.format(
            version=TENSORRT_LLM, target=report.target, arguments=shlex.join(report.arguments)
        ),
    }
    for name, script in scripts.items():
        write_text(folder / name, script)
        (folder / name).chmod(0o755)
    write_json(folder / "export.json", report.to_dict())
