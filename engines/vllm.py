"""vLLM as a local server process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdeploy.engines import logs, ports
from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.environment import SERVER_MODULE, Device, Environment, find
from qdeploy.engines.process import ServerProcess
from qdeploy.errors import CheckpointError, EndpointError, EngineError, UsageError
from qdeploy.files import read_json
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.provenance import cpu_flags

DEADLINE_S = 600.0
MAX_LOGPROBS = 256
"""Most top-k log-probabilities per position that the server gives out; vLLM's own default is 20."""

RESERVED = {
    "--api-key": "it would show in logs and records; set the environment variable VLLM_API_KEY",
    "--model": "the folder is the model",
    "--host": "use qdeploy's own --host",
    "--port": "use qdeploy's own --port",
}
"""Arguments of vLLM that are refused → what to do instead."""

SCALE_OUT_SINCE = (0, 32)
"""The release of vLLM that knows `--enable-scale-out`."""

CPU_KV_CACHE_GIB = "2"
CPU_BLOCK_TOKENS = "32"
"""By which the cache keeps prompts: few tasks' contexts fill the default of 128. 32 is the kernels' least."""

ENGINE_ARGUMENTS = "engine_args.json"

NATIVE_BFLOAT16 = {"avx512_bf16", "amx_bf16"}
"""Processor flags, either of which means fast bfloat16 products."""

PLUGIN = Path(__file__).parent / "vllm_plugin"
"""What vLLM lacks on processors without AVX-512; see the module there."""


@dataclass
class RunningEngine:
    """A served model; stop it with `stop` or by leaving a `with` block.

    Attributes:
        base_url: the OpenAI API, e.g. "http://127.0.0.1:8000/v1".
        model: the served name.
        checkpoint: the folder that is served.
        kernel: classes that run the quantized layers, from the engine's own log; None for a 16-bit model.
        quantization: method from the engine's log, e.g. "compressed-tensors"; None for a 16-bit model.
        arguments: what was given to the engine besides model, address and port.
    """

    base_url: str
    model: str
    version: str
    checkpoint: Path
    arguments: list[str]
    log: Path
    load_seconds: float
    kernel: str | None
    quantization: str | None
    process: ServerProcess = field(repr=False)
    name: str = "vllm"

    def __enter__(self) -> RunningEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def alive(self) -> bool:
        """Whether the server still runs."""
        return self.process.alive()

    def stop(self) -> None:
        """Stop the server and everything it started."""
        self.process.stop()

    def describe(self) -> dict[str, Any]:
        """What a run record keeps about the engine (the fields of `qdeploy.bench.records.Engine`)."""
        return {
            "name": self.name,
            "version": self.version,
            "base_url": self.base_url,
            "model": self.model,
            "local": True,
            "kernel": self.kernel,
            "quantization": self.quantization,
            "arguments": self.arguments,
            "load_seconds": self.load_seconds,
            "checkpoint": str(self.checkpoint),
        }


class VllmEngine:
    """vLLM in an environment of its own.

    Args:
        environment: None finds the installed one.
        device: which one to find; None: what suits this machine.
    """

    name = "vllm"

    def __init__(self, environment: Environment | None = None, device: Device | None = None) -> None:
        self.environment = environment or find("vllm", device)

    def launch(
        self,
        model: Path,
        *,
        log: Path,
        port: int | None = None,
        host: str = "127.0.0.1",
        arguments: Sequence[str] = (),
        deadline_s: float = DEADLINE_S,
    ) -> RunningEngine:
        """Serve a folder (16-bit, quantized or exported) and return when it answers.

        Args:
            log: file for the engine's output.
            port: None or 0 chooses a free one.
            arguments: more arguments for vLLM, after and so over those of the folder's `engine_args.json`.

        Raises:
            UsageError: the port is taken, or an argument is one that belongs elsewhere.
            CheckpointError: the folder holds no model.
            EngineError: vLLM died, was not ready in time, serves a quantized checkpoint unquantized, or
                fails on a first small request.
        """
        model = model.resolve()
        config = _config(model)
        if any(model.glob("*.safetensors")):
            CheckpointReader(model)  # A damaged file is found in a second here, in a minute by vLLM.
        engine_arguments = [*self._defaults(model, host), *_folder_arguments(model), *arguments]
        _check_arguments(engine_arguments)
        if not port:
            port = ports.free_port(host)
        ports.check_free(port, host)
        command = [str(self.environment.python), "-m", SERVER_MODULE]
        command += ["--model", str(model), "--host", host, "--port", str(port), *engine_arguments]
        process = ServerProcess(command, log, self._variables())
        root = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        seconds = process.wait_ready([f"{root}/health", f"{root}/v1/models"], deadline_s)
        try:
            engine = self._running(process, f"{root}/v1", model, engine_arguments, seconds)
            _check_quantized(engine, config)
            _check_answers(engine)
        except BaseException:
            process.stop()
            raise
        return engine

    def _running(
        self, process: ServerProcess, base_url: str, model: Path, arguments: list[str], seconds: float
    ) -> RunningEngine:
        text = logs.read_log(process.log)
        return RunningEngine(
            base_url=base_url,
            model=_served_name(base_url),
            version=self.environment.version,
            checkpoint=model,
            arguments=arguments,
            log=process.log,
            load_seconds=round(seconds, 1),
            kernel=logs.kernels(text),
            quantization=logs.quantization(text),
            process=process,
        )

    def _defaults(self, model: Path, host: str) -> list[str]:
        """Prompt scoring as deep as KL needs, no sampling defaults of the model's own."""
        common = ["--served-model-name", model.name, "--max-logprobs", str(MAX_LOGPROBS)]
        common += ["--generation-config", "vllm"]
        if self._opens_scale_out(host):
            common += ["--enable-scale-out", "--enable-prompt-tokens-details"]
        # Compiling takes minutes on a CPU; `--no-enforce-eager` turns it on.
        if self.environment.device == "cpu":
            common += ["--enforce-eager", "--block-size", CPU_BLOCK_TOKENS]
            # Without instructions for it, bfloat16 is emulated: 7 to 10 times slower than float32, which
            # holds every bfloat16 weight exactly.
            if not cpu_flags() & NATIVE_BFLOAT16:
                common += ["--dtype", "float32"]
        return common

    def _opens_scale_out(self, host: str) -> bool:
        """Whether to open the path by which `qdeploy eval` asks for what `/v1/completions` does not give.

        These are log-probabilities of given token ids, where the runner tells them (not in the CPU build,
        which has no Triton), and of a prompt's end without computing its beginning again. The paths that come
        along, aborting requests among them, are for this machine only.
        """
        release = tuple(int(part) for part in self.environment.version.split(".")[:2])
        return host in ports.LOOPBACK and release >= SCALE_OUT_SINCE

    def _variables(self) -> dict[str, str]:
        """The environment variables of the server."""
        # Some kernels are compiled at run time, by tools in the environment's own bin folder.
        path = f"{self.environment.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        fixed = {"PATH": path, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        # `kernel` and `quantization` are read from lines of level INFO.
        fixed |= {"VLLM_CONFIGURE_LOGGING": "1", "VLLM_LOGGING_LEVEL": "INFO"}
        # With AMX, vLLM would run 4-bit weights with 8-bit activations, which is not what W4A16 means.
        fixed |= {"VLLM_CPU_INT4_W4A8": "0"}
        fixed |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")]))}
        return {"VLLM_CPU_KVCACHE_SPACE": CPU_KV_CACHE_GIB, **os.environ, **fixed}


def _config(model: Path) -> dict[str, Any]:
    path = model / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{model} holds no config.json, so no model. Give the folder that `qdeploy quantize` or "
            "`qdeploy export` wrote, or a 16-bit Hugging Face folder."
        )
    try:
        return dict(read_json(path))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error


def _folder_arguments(model: Path) -> list[str]:
    """Arguments that `qdeploy export` wrote for this folder."""
    path = model / ENGINE_ARGUMENTS
    if not path.is_file():
        return []
    settings = read_json(path)
    if settings.get("engine") != "vllm":
        raise EngineError(f"{model} was exported for {settings.get('engine')!r}, not for vLLM ({path}).")
    return [str(argument) for argument in settings.get("arguments", ())]


def _check_arguments(arguments: Sequence[str]) -> None:
    """Refuse what this module sets itself, and a key, which would end up in logs and records."""
    for argument in arguments:
        name = argument.partition("=")[0]
        if name in RESERVED:
            raise UsageError(f"{name} cannot be given to vLLM as an engine argument: {RESERVED[name]}.")


def _served_name(base_url: str) -> str:
    with Endpoint(base_url, api_key=os.environ.get("VLLM_API_KEY")) as endpoint:
        return endpoint.models()[0]


def _check_answers(engine: RunningEngine) -> None:
    """A kernel that is missing from vLLM's build shows no earlier than at a request."""
    try:
        with Endpoint(engine.base_url, engine.model, os.environ.get("VLLM_API_KEY")) as endpoint:
            endpoint.complete([1, 2], max_tokens=1)
    except EndpointError as error:
        reason = logs.failure(logs.read_log(engine.log))
        raise EngineError(
            f"vLLM loaded {engine.checkpoint} but fails on the first request.\n{reason}\n  Log: {engine.log}"
        ) from error


def _check_quantized(engine: RunningEngine, config: dict[str, Any]) -> None:
    """A quantized checkpoint must run on a quantized kernel."""
    method = config.get("quantization_config", {}).get("quant_method")
    if method is None and (engine.checkpoint / "hf_quant_config.json").is_file():
        method = "modelopt"
    if method is not None and engine.kernel is None:
        raise EngineError(
            f"{engine.checkpoint} is quantized ({method}) but was served unquantized: vLLM's log names no "
            f"kernel for quantized layers. Compare the names in quantization_config with {engine.log}."
        )
