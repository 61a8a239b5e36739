"""compose.yaml: an export served by Docker Compose on the host's loopback."""

from __future__ import annotations

from typing import Any

import yaml

from qdeploy.exporters.container import (
    MODEL,
    PORT,
    PROBE_EVERY_S,
    PROBE_RETRIES,
    PROBE_TIMEOUT_S,
    SHARED_MEMORY_GIB,
    Container,
)

_PROBE = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{PORT}/health', timeout=4)"


def compose_file(container: Container) -> str:
    """A compose file that serves the folder it lies in."""
    return yaml.safe_dump({"services": {container.engine: service(container, ".")}}, sort_keys=False)


def service(container: Container, folder: str) -> dict[str, Any]:
    """The service of a compose file.

    Args:
        folder: of the model, as a compose file names it.
    """
    found: dict[str, Any] = {"image": container.image}
    if container.command is not None:
        found["entrypoint"] = list(container.command)
    found |= {
        "command": [_literal(argument) for argument in container.arguments],
        "ports": [f"127.0.0.1:{PORT}:{PORT}"],
        "volumes": [{"type": "bind", "source": folder, "target": MODEL, "read_only": True}],
        "environment": container.variables,
        "shm_size": f"{SHARED_MEMORY_GIB}gb",
        "security_opt": ["no-new-privileges:true"],
        "healthcheck": {
            "test": ["CMD", "python3", "-c", _PROBE],
            "interval": f"{PROBE_EVERY_S}s",
            "timeout": f"{PROBE_TIMEOUT_S}s",
            "retries": PROBE_RETRIES,
            "start_period": f"{container.startup_seconds}s",
        },
        "restart": "unless-stopped",
    }
    if container.ulimits:
        found["ulimits"] = dict(container.ulimits)
    if container.user:
        found["user"] = ":".join(map(str, container.user))
    if container.gpus:
        device = {"driver": "nvidia", "count": container.gpus, "capabilities": ["gpu"]}
        found["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return found


def _literal(argument: str) -> str:
    """Compose replaces $NAME by a variable of the host, unless the dollar is doubled."""
    return argument.replace("$", "$$")
