"""How an engine's server runs in a container: the same for Compose and for Kubernetes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qdeploy.exporters.targets import GIB

PORT = 8000
MODEL = "/model"
"""Where the folder is mounted, read-only."""

SHARED_MEMORY_GIB = 8
"""Workers exchange tensors through /dev/shm, of which a container has 64 MB by default."""

PROBE_EVERY_S, PROBE_TIMEOUT_S, PROBE_RETRIES = 10, 5, 3

STARTUP_S = 900
SLOW_DISK = 200_000_000
"""Bytes a second at which a network volume gives out weights, at the least; the time above is for compiling
and for capturing CUDA graphs. Both are estimates, which only bound the wait for a server that hangs."""

PROCESS_GIB = 4
"""Estimate of what a process takes beside weights and cache: libraries, CUDA's context, buffers."""


@dataclass(frozen=True, slots=True)
class Container:
    """A server that answers GET /health on port 8000.

    Attributes:
        engine: its name, a lower-case word or two with a hyphen.
        image: that it runs in.
        command: in place of the image's entrypoint; None keeps that.
        arguments: for the command.
        environment: variables.
        gpus: NVIDIA GPUs; 0 for none.
        workers: processes with a share of the model.
        weight_bytes: of all weight files.
        cache_bytes: of the caches that are in the machine's memory.
        ulimits: of its processes, where what starts it can set them: Kubernetes cannot.
        user: numeric user and group of the image that are not root; None where it has none.
    """

    engine: str
    image: str
    command: Sequence[str] | None
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    gpus: int = 0
    workers: int = 1
    weight_bytes: int = 0
    cache_bytes: int = 0
    ulimits: Mapping[str, int] = field(default_factory=dict)
    user: tuple[int, int] | None = None

    @property
    def variables(self) -> dict[str, str]:
        """The environment, with the variable that keeps the server from looking for the model elsewhere."""
        return {"HF_HUB_OFFLINE": "1", **self.environment}

    @property
    def startup_seconds(self) -> int:
        """How long it may take to answer for the first time."""
        return STARTUP_S + self.weight_bytes // SLOW_DISK

    @property
    def processes(self) -> int:
        """The workers, the API server and the scheduler."""
        return 2 + self.workers

    @property
    def cpus(self) -> int:
        """A core for each process, of two hardware threads: the least that vLLM's documentation asks for.

        https://docs.vllm.ai/en/stable/configuration/optimization/ ("CPU Resources for GPU Deployments")
        """
        return 2 * self.processes

    @property
    def memory_gib(self) -> int:
        """Of the machine, for processes, shared memory, caches and weights.

        Weights are there once as file pages while they are read, and once more where no GPU holds them.
        """
        copies = 1 if self.gpus else 2
        data = copies * self.weight_bytes + self.cache_bytes
        return PROCESS_GIB * self.processes + SHARED_MEMORY_GIB + -(-data // GIB)
