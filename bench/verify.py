"""Whether the served model computes what its checkpoint says.

Two checks, because each sees what the other cannot:

1. Exact (`integrity`): every quantized layer decodes to the numbers that `quantize` recorded, and every
   weight file has the recorded hash. One swapped pair of 4-bit codes shows, and the layer is named.
2. Served: a fixed text is scored through HTTP and by the dequantized model in this process. This shows what
   files alone cannot: a packing that qdeploy reads as it writes it but the engine reads otherwise, a wrong
   kernel, a wrong model.

Engines compute in 16 bits, so log-probabilities never agree exactly. By how much they may differ is measured,
not guessed, and on the same tokens: the same model, run here in the engine's type, differs from float32 by as
much. `ratio` is RMS(served − exact) / RMS(rounded − exact); beyond LIMIT the engine computes something else.
The figures behind LIMIT are in docs/verify.md; `qdeploy verify --json` prints those of any checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from qdeploy import catalogue
from qdeploy.bench.evaluation import describe
from qdeploy.bench.fidelity.text import load_windows
from qdeploy.bench.fidelity.windows import Windows
from qdeploy.bench.integrity import Integrity, check_integrity
from qdeploy.bench.records import Engine, RunRecord
from qdeploy.bench.reference import Array, Reference, compute_reference, engine_dtype, rms
from qdeploy.bench.suspects import Search, find_suspects
from qdeploy.bench.tokenizer import encoder_of
from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.probe import probe
from qdeploy.engines.vllm import VllmEngine
from qdeploy.errors import OutputError, VerificationError, disk_errors
from qdeploy.files import read_json
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.progress import console
from qdeploy.provenance import provenance

WINDOW_TOKENS = 128
TOKENS = 1024
LIMIT = 2.0
SMALLEST_NOISE = 1e-4
"""Nats by which two float32 programs may differ through the order of their sums."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far the served log-probabilities are from the checkpoint's, in nats.

    Attributes:
        served_rms: root mean square of served − exact.
        noise_rms: the same for the model in the engine's type; at least SMALLEST_NOISE.
        mean: mean of served − exact; noise has none.
        largest: largest absolute difference.
    """

    positions: int
    served_rms: float
    noise_rms: float
    mean: float
    largest: float

    @property
    def ratio(self) -> float:
        """served_rms / noise_rms."""
        return self.served_rms / self.noise_rms

    @property
    def passed(self) -> bool:
        """Whether the difference is within the engine's numeric noise; NaN is not."""
        return self.ratio <= LIMIT


def compare(served: Array, reference: Reference) -> Comparison:
    """Compare log-probabilities of the same tokens, all float64 [windows, T − 1]."""
    difference = served - reference.exact
    return Comparison(
        positions=difference.size,
        served_rms=rms(difference),
        noise_rms=max(rms(reference.rounded - reference.exact), SMALLEST_NOISE),
        mean=float(difference.mean()),
        largest=float(np.abs(difference).max()),
    )


@dataclass(frozen=True, slots=True)
class Expectation:
    """All that is known of a checkpoint before the engine is asked."""

    folder: Path
    integrity: Integrity
    windows: Windows
    reference: Reference
    kernel: str | None


def expect(folder: Path, tokens: int = TOKENS, arguments: Sequence[str] = ()) -> Expectation:
    """Check the files and compute the reference. Needs memory for the model in float32.

    Args:
        folder: what `qdeploy export` or `qdeploy quantize` wrote, or a 16-bit model.
        tokens: how many to score, in windows of WINDOW_TOKENS.
        arguments: engine arguments besides those in the folder; `--dtype` matters.

    Raises:
        VerificationError: layers or files are not those that were quantized.
        CheckpointError: the folder cannot be read.
    """
    from transformers import AutoTokenizer

    reader = CheckpointReader(folder)
    integrity = check_integrity(folder)
    integrity.require(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    count = max(1, round(tokens / WINDOW_TOKENS))
    windows = load_windows("builtin", encoder_of(tokenizer), count, WINDOW_TOKENS)
    settings = _export_settings(folder)
    dtype = engine_dtype(reader.config, [*settings.get("arguments", ()), *arguments])
    reference = compute_reference(folder, windows.tokens, dtype)
    return Expectation(folder, integrity, windows, reference, settings.get("kernel_expected"))


def _export_settings(folder: Path) -> dict[str, Any]:
    path = folder / "engine_args.json"
    return dict(read_json(path)) if path.is_file() else {}


def judge(expected: Expectation, endpoint: Endpoint, engine: Engine, output: Path | None = None) -> RunRecord:
    """Score the text through `endpoint` and compare. The record is written to `output`, pass or fail.

    Raises:
        VerificationError: the served model differs by more than its arithmetic explains.
        EndpointError: the endpoint fails or cannot score prompts.
    """
    probe(endpoint).require_prompt_logprobs()
    scores = endpoint.score_many(expected.windows.tokens)
    served = np.array([score.token_logprobs[1:] for score in scores], dtype=np.float64)
    found = compare(served, expected.reference)
    search = None if found.passed else _search(expected, served, found)
    record = RunRecord(
        kind="verify",
        name=expected.folder.resolve().name,
        provenance=provenance(),
        engine=engine,
        settings={"text_sha256": expected.windows.text_sha256, "window_tokens": WINDOW_TOKENS},
        verify=_facts(expected, found) | _suspicion(search),
    )
    if output is not None:
        with disk_errors(output):
            output.mkdir(parents=True, exist_ok=True)
            record.save(output)
        catalogue.record(output)
    if search is not None:
        raise VerificationError(f"{_accusation(expected, found, engine)} {search.describe()}")
    return record


def _facts(expected: Expectation, found: Comparison) -> dict[str, Any]:
    """The record's `verify`: figures in nats."""
    return {
        "verdict": "pass" if found.passed else "fail",
        "ratio": found.ratio,
        "limit": LIMIT,
        "served_rms": found.served_rms,
        "noise_rms": found.noise_rms,
        "mean_difference": found.mean,
        "largest_difference": found.largest,
        "positions": found.positions,
        "dtype": expected.reference.dtype,
        "layers_checked": expected.integrity.layers,
        "files_checked": expected.integrity.files,
        "kernel_expected": expected.kernel,
    }


def _search(expected: Expectation, served: Array, found: Comparison) -> Search:
    """In the first window alone: a candidate costs a forward, and there are thousands."""
    return find_suspects(expected.folder, expected.windows.tokens[0], served[0], LIMIT * found.noise_rms)


def _suspicion(search: Search | None) -> dict[str, Any]:
    """The record's `suspects`, where there was a reason to search."""
    if search is None:
        return {}
    return {"suspects": [asdict(found) for found in search.suspects], "misreadings_tried": search.tried}


def _accusation(expected: Expectation, found: Comparison, engine: Engine) -> str:
    layers, dtype = expected.integrity.layers, expected.reference.dtype
    cleared = (
        f"All {layers} quantized layers decode to what `qdeploy quantize` recorded, so the files are right "
        "and the engine reads or multiplies them otherwise"
    )
    unknown = "The folder has no fingerprints of its layers, so the files may be wrong as well"
    return (
        f"The served model does not compute what {expected.folder} says: log-probabilities of "
        f"{found.positions} tokens differ by {found.served_rms:.4f} nats (RMS), {found.ratio:.1f} times the "
        f"{found.noise_rms:.4f} that {dtype} arithmetic explains (limit {LIMIT:g}). "
        f"{cleared if layers else unknown}. "
        f"Kernel: {engine.kernel or 'unknown'}, expected {expected.kernel or 'none'}."
    )


def verify(
    folder: Path, *, tokens: int = TOKENS, url: str | None = None, output: Path | None = None
) -> RunRecord:
    """Verify a folder against a server at `url`, or against a vLLM that is started for it.

    Raises:
        VerificationError: see `expect` and `judge`.
        EngineError, EndpointError: the engine does not start, or cannot score prompts.
        OutputError: `output` is not empty.
    """
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"Output folder in use: {output} is not empty. Choose another folder with -o.")
    with ExitStack() as stack:
        if url is not None:
            endpoint = stack.enter_context(Endpoint(url))
            # Before the reference, which takes its time.
            probe(endpoint).require_prompt_logprobs()
            return judge(expect(folder, tokens), endpoint, describe(endpoint), output)
        expected = expect(folder, tokens)
        logs = output or Path(stack.enter_context(TemporaryDirectory()))
        logs.mkdir(parents=True, exist_ok=True)
        console.print(f"Starting vLLM on {folder}", highlight=False)
        running = stack.enter_context(VllmEngine().launch(folder, log=logs / "engine.log"))
        endpoint = stack.enter_context(Endpoint(running.base_url, running.model))
        return judge(expected, endpoint, Engine(**running.describe()), output)
