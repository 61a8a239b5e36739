import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qdeploy.exporters import launch, trtllm_launch
from qdeploy.exporters.compose import compose_file
from qdeploy.exporters.container import PROCESS_GIB, SHARED_MEMORY_GIB, STARTUP_S, Container
from qdeploy.exporters.kubernetes import CLAIM, kubernetes_file, object_name
from qdeploy.exporters.targets import GIB, TARGETS
from qdeploy.exporters.vllm import VllmExporter

WEIGHTS = 40 * GIB
CONTAINERS = {
    "vllm": launch.container(["--served-model-name", "m"], TARGETS["h100"], 2, WEIGHTS),
    "vllm-cpu": launch.container(["--served-model-name", "m"], TARGETS["cpu-avx2"], 1, WEIGHTS),
    "tensorrt-llm": trtllm_launch.container(["--backend", "pytorch"], 2, WEIGHTS),
}


def objects(container: Container, name: str = "m") -> tuple[dict[str, Any], dict[str, Any]]:
    deployment, service = yaml.safe_load_all(kubernetes_file(container, name, "h100 (sm90)"))
    return deployment, service


def pod(container: Container) -> dict[str, Any]:
    spec: dict[str, Any] = objects(container)[0]["spec"]["template"]["spec"]
    return spec


@pytest.fixture(params=CONTAINERS)
def container(request: pytest.FixtureRequest) -> Container:
    return CONTAINERS[request.param]


def test_the_service_finds_the_pods(container: Container) -> None:
    deployment, service = objects(container)
    assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert service["spec"]["type"] == "ClusterIP"
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels == deployment["spec"]["selector"]["matchLabels"]
    (port,) = pod(container)["containers"][0]["ports"]
    assert service["spec"]["ports"] == [{"name": "http", "port": 8000, "targetPort": port["name"]}]
    # There are no GPUs for two pods at a time.
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_the_model_is_read_only_and_must_be_named(container: Container) -> None:
    spec = pod(container)
    mounts = {mount["name"]: mount for mount in spec["containers"][0]["volumeMounts"]}
    assert mounts["model"] == {"name": "model", "mountPath": "/model", "readOnly": True}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["model"]["persistentVolumeClaim"]["claimName"] == CLAIM
    # No object of a cluster can have that name.
    assert not re.fullmatch("[a-z0-9.-]+", CLAIM)
    assert f"#   {CLAIM}: to the name of the PersistentVolumeClaim" in kubernetes_file(container, "m", "h100")


def test_shared_memory_is_memory(container: Container) -> None:
    spec = pod(container)
    (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["mountPath"] == "/dev/shm"]
    (volume,) = [v for v in spec["volumes"] if v["name"] == mount["name"]]
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}


def test_probes_ask_for_health_and_wait_for_loading(container: Container) -> None:
    (server,) = pod(container)["containers"]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[kind]["httpGet"] == {"path": "/health", "port": "http"}
    startup = server["startupProbe"]
    seconds = startup["failureThreshold"] * startup["periodSeconds"]
    # 43 GB take 214 s at 200 MB/s.
    assert STARTUP_S + 200 < seconds <= container.startup_seconds == STARTUP_S + 214


def test_nobody_can_use_the_pod_for_the_cluster(container: Container) -> None:
    spec = pod(container)
    assert spec["automountServiceAccountToken"] is False
    # The variables of a Service called vllm would be read by vLLM.
    assert spec["enableServiceLinks"] is False
    assert spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
    assert "secret" not in kubernetes_file(container, "m", "h100").lower()


def test_vllm_on_gpus_meets_the_restricted_standard() -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/"""
    spec = pod(CONTAINERS["vllm"])
    profile = {"type": "RuntimeDefault"}
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 2000,
        "runAsGroup": 0,
        "seccompProfile": profile,
    }
    security = spec["containers"][0]["securityContext"]
    assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)


def test_the_image_for_cpus_has_the_user_that_is_named() -> None:
    spec = pod(CONTAINERS["vllm-cpu"])
    dockerfile = (Path(__file__).parents[2] / "docker" / "vllm-cpu.Dockerfile").read_text()
    user = spec["securityContext"]["runAsUser"]
    assert f"--uid {user} " in dockerfile
    assert spec["securityContext"]["runAsNonRoot"] is True


def test_tensorrt_llm_runs_as_root_and_says_why() -> None:
    text = kubernetes_file(CONTAINERS["tensorrt-llm"], "m", "h100 (sm90)")
    assert "# It runs as root, as the image does, which makes no user of its own.\n" in text
    assert "It runs as root" not in kubernetes_file(CONTAINERS["vllm"], "m", "h100 (sm90)")
    spec = pod(CONTAINERS["tensorrt-llm"])
    assert spec["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    assert "capabilities" not in spec["containers"][0]["securityContext"]


def test_gpus_and_what_they_need_beside_them() -> None:
    resources = pod(CONTAINERS["vllm"])["containers"][0]["resources"]
    # API server, scheduler and two workers; weights are file pages.
    memory = f"{4 * PROCESS_GIB + SHARED_MEMORY_GIB + 40}Gi"
    assert resources["requests"] == {"cpu": "8", "memory": memory, "nvidia.com/gpu": "2"}
    assert resources["limits"] == resources["requests"]


def test_a_cpu_holds_weights_and_cache_and_takes_every_core() -> None:
    resources = pod(CONTAINERS["vllm-cpu"])["containers"][0]["resources"]
    memory = f"{3 * PROCESS_GIB + SHARED_MEMORY_GIB + 2 * 40 + 2}Gi"
    assert resources == {"requests": {"cpu": "6", "memory": memory}, "limits": {"memory": memory}}
    assert "seccompProfile" not in pod(CONTAINERS["vllm-cpu"])["securityContext"]


def test_compose_and_kubernetes_are_told_the_same(container: Container) -> None:
    (name,) = (services := yaml.safe_load(compose_file(container))["services"])
    service, server = services[name], pod(container)["containers"][0]
    assert name == server["name"]
    assert service["image"] == server["image"]
    assert service.get("entrypoint") == server.get("command")
    assert service["command"] == server["args"]
    assert service["environment"] == {variable["name"]: variable["value"] for variable in server["env"]}
    assert service["shm_size"] == "8gb"
    startup = server["startupProbe"]
    assert service["healthcheck"]["start_period"] == f"{container.startup_seconds}s"
    assert service["healthcheck"]["interval"] == f"{startup['periodSeconds']}s"
    assert service["healthcheck"]["timeout"] == f"{startup['timeoutSeconds']}s"
    assert service["healthcheck"]["retries"] == server["livenessProbe"]["failureThreshold"]
    user = pod(container)["securityContext"].get("runAsUser")
    assert service.get("user", "None").partition(":")[0] == str(user)
    gpus = server["resources"]["requests"].get("nvidia.com/gpu")
    devices = service.get("deploy", {"resources": {"reservations": {"devices": [{"count": None}]}}})
    assert str(devices["resources"]["reservations"]["devices"][0]["count"]) == str(gpus)


def test_what_looks_like_a_variable_is_none(container: Container) -> None:
    strange = replace(container, arguments=["--served-model-name", "a$HOME-$(HOME)"])
    assert pod(strange)["containers"][0]["args"][1] == "a$HOME-$$(HOME)"
    (service,) = yaml.safe_load(compose_file(strange))["services"].values()
    assert service["command"][1] == "a$$HOME-$$(HOME)"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("deploy", "deploy"),
        ("Llama-3.1 8B_W4", "llama-3-1-8b-w4"),
        ("3b", "model-3b"),
        ("模型", "model"),
        ("a" * 62 + ".b", "a" * 62),
    ],
)
def test_names_in_the_cluster(folder: str, name: str) -> None:
    assert object_name(folder) == name


@given(st.text())
def test_every_folder_has_a_name_that_a_service_may_have(folder: str) -> None:
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", object_name(folder))
    assert len(object_name(folder)) <= 63


def test_every_export_has_one(pack_tiny: Callable[..., Path], tmp_path: Path) -> None:
    VllmExporter().export(pack_tiny(), tmp_path / "My Model", gpu="a100", tensor_parallel=2)
    text = (tmp_path / "My Model" / "kubernetes.yaml").read_text()
    assert text.startswith(
        "# Serves this folder in a cluster with vllm/vllm-openai:v0.32.0, as it was checked for"
    )
    assert "a100 (sm80)" in text.splitlines()[0]
    deployment, _ = yaml.safe_load_all(text)
    assert deployment["metadata"]["name"] == "my-model"
    args = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[args.index("--served-model-name") + 1] == "My Model"
    assert args[args.index("--tensor-parallel-size") + 1] == "2"
