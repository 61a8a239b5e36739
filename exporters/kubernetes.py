"""kubernetes.yaml: an export served in a cluster, as a Deployment and a Service."""

from __future__ import annotations

import re
from typing import Any

import yaml

from qdeploy.exporters.container import (
    MODEL,
    PORT,
    PROBE_EVERY_S,
    PROBE_RETRIES,
    PROBE_TIMEOUT_S,
    PROCESS_GIB,
    SHARED_MEMORY_GIB,
    Container,
)

CLAIM = "CHANGE-ME"
"""No claim can be called that, since names are lower-case: nothing is mounted by accident."""


def kubernetes_file(container: Container, folder: str, target: str) -> str:
    """The manifest.

    Args:
        folder: name of the export, from which those in the cluster are made.
        target: device that the export was checked for.
    """
    name = object_name(folder)
    objects = [_deployment(container, name), _service(name)]
    return _header(container, target) + yaml.safe_dump_all(objects, sort_keys=False, explicit_start=True)


def object_name(folder: str) -> str:
    """A name that Kubernetes takes for a Service: lower-case letters, digits and hyphens, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "-", folder.lower()).strip("-")
    if not re.match("[a-z]", name):
        name = f"model-{name}"
    return name[:63].strip("-")


def _header(container: Container, target: str) -> str:
    readers = f"user {container.user[0]}" if container.user else "root"
    lines = [
        f"Serves this folder in a cluster with {container.image}, as it was checked for {target}.",
        "This project has not applied it to one. What to change before `kubectl apply -f kubernetes.yaml`:",
        f"  {CLAIM}: to the name of the PersistentVolumeClaim that has this folder's files in its root,",
        f"    readable for {readers}. For a folder on the node, put",
        "    `hostPath: {path: /FOLDER, type: Directory}` in place of persistentVolumeClaim.",
        *(_GPU_CHANGES if container.gpus else _CPU_CHANGES),
        *(() if container.user else _ROOT),
        f"The memory is an estimate: {PROCESS_GIB} GiB for each of {container.processes} processes, "
        f"{SHARED_MEMORY_GIB} GiB of shared memory,",
        "  weights as file pages" + (" and once more in use, and the cache." if not container.gpus else "."),
    ]
    return "".join(f"# {line}\n" for line in lines)


_GPU_CHANGES = ("  nodeSelector: add one on nvidia.com/gpu.product if the cluster has other GPUs too.",)
_CPU_CHANGES = (
    "  image: to its name in your registry, after building it from docker/vllm-cpu.Dockerfile.",
    "  cpu: to all that the pod may have. There is no limit, since the engine starts a thread for each core",
    "    of the node.",
)
_ROOT = ("It runs as root, as the image does, which makes no user of its own.",)


def _deployment(container: Container, name: str) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": _labels(name)},
        "spec": {
            "replicas": 1,
            # There may be no GPUs for the new pod while the old one has them.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": _labels(name)},
            "template": {"metadata": {"labels": _labels(name)}, "spec": _pod(container)},
        },
    }


def _service(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": _labels(name)},
        "spec": {
            "type": "ClusterIP",
            "selector": _labels(name),
            "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
        },
    }


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": name}


def _pod(container: Container) -> dict[str, Any]:
    memory = {"medium": "Memory", "sizeLimit": f"{SHARED_MEMORY_GIB}Gi"}
    return {
        "automountServiceAccountToken": False,
        # A Service called vllm would set VLLM_PORT, which vLLM reads as a port of its own.
        "enableServiceLinks": False,
        "securityContext": _pod_security(container),
        "containers": [_container(container)],
        "volumes": [
            {"name": "model", "persistentVolumeClaim": {"claimName": CLAIM}},
            {"name": "shared-memory", "emptyDir": memory},
        ],
    }


def _pod_security(container: Container) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if container.user:
        user, group = container.user
        found |= {"runAsNonRoot": True, "runAsUser": user, "runAsGroup": group}
    # On a CPU vLLM binds memory to NUMA nodes, which the runtime's profile forbids.
    if container.gpus:
        found["seccompProfile"] = {"type": "RuntimeDefault"}
    return found


def _container(container: Container) -> dict[str, Any]:
    found: dict[str, Any] = {"name": container.engine, "image": container.image}
    if container.command is not None:
        found["command"] = list(container.command)
    # Root without capabilities could not read what belongs to others.
    dropped = {"capabilities": {"drop": ["ALL"]}} if container.user else {}
    return found | {
        "args": [_literal(argument) for argument in container.arguments],
        "env": [{"name": name, "value": value} for name, value in container.variables.items()],
        "ports": [{"name": "http", "containerPort": PORT}],
        "startupProbe": _probe(container.startup_seconds // PROBE_EVERY_S),
        "readinessProbe": _probe(PROBE_RETRIES),
        "livenessProbe": _probe(PROBE_RETRIES),
        "resources": _resources(container),
        "securityContext": {"allowPrivilegeEscalation": False, **dropped},
        "volumeMounts": [
            {"name": "model", "mountPath": MODEL, "readOnly": True},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }


def _probe(failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": "/health", "port": "http"},
        "periodSeconds": PROBE_EVERY_S,
        "timeoutSeconds": PROBE_TIMEOUT_S,
        "failureThreshold": failures,
    }


def _resources(container: Container) -> dict[str, Any]:
    memory = {"memory": f"{container.memory_gib}Gi"}
    cpu = {"cpu": str(container.cpus)}
    if not container.gpus:
        return {"requests": cpu | memory, "limits": memory}
    both = cpu | memory | {"nvidia.com/gpu": str(container.gpus)}
    return {"requests": both, "limits": dict(both)}


def _literal(argument: str) -> str:
    """Kubernetes replaces $(NAME) by a variable of the container, unless the dollar is doubled."""
    return argument.replace("$(", "$$(")
