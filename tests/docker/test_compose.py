from pathlib import Path
from typing import Any

import pytest
import yaml

from qdeploy.exporters import launch, trtllm_launch
from qdeploy.exporters.compose import service
from qdeploy.exporters.container import Container
from qdeploy.exporters.targets import TARGETS

DOCKER = Path(__file__).parents[2] / "docker"
FILES = sorted(DOCKER.glob("*.yaml"))
DEPLOY = "${DEPLOY:?folder that qdeploy export wrote}"

GENERIC = {
    "vllm": launch.container(["--served-model-name", "model"], TARGETS["h100"], 1, 0),
    "tensorrt-llm": trtllm_launch.container(trtllm_launch.engine_arguments(1), 1, 0),
}


def services() -> list[Any]:
    return [
        pytest.param(found, id=f"{file.stem}/{name}")
        for file in FILES
        for name, found in yaml.safe_load(file.read_text())["services"].items()
    ]


@pytest.mark.parametrize(("name", "container"), GENERIC.items())
def test_the_generic_file_is_what_exports_write_for_one_gpu(name: str, container: Container) -> None:
    found = yaml.safe_load((DOCKER / f"{name}.yaml").read_text())["services"]
    assert found == {name: service(container, DEPLOY)}


@pytest.mark.parametrize("found", services())
def test_every_server_is_checked_and_closed_off(found: dict[str, Any]) -> None:
    (port,) = found["ports"]
    assert port.startswith("127.0.0.1:")
    (volume,) = found["volumes"]
    assert (volume["target"], volume["read_only"]) == ("/model", True)
    assert "/health" in found["healthcheck"]["test"][-1]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert found["environment"]["HF_HUB_OFFLINE"] == "1"
    gpu = not found["image"].startswith("qdeploy-vllm-cpu")
    assert gpu == ("deploy" in found)
    if gpu:
        (device,) = found["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


@pytest.mark.parametrize("found", services())
def test_no_server_is_root_whose_image_has_another_user(found: dict[str, Any]) -> None:
    if found["image"].startswith("vllm/vllm-openai"):
        assert found["user"] == "2000:0"
    elif found["image"].startswith("qdeploy-vllm-cpu"):
        assert "\nUSER vllm\n" in (DOCKER / "vllm-cpu.Dockerfile").read_text()
    else:
        assert "makes no user of its own" in (DOCKER / "tensorrt-llm.yaml").read_text()


@pytest.mark.parametrize("found", services())
def test_images_are_of_the_versions_that_the_checks_follow(found: dict[str, Any]) -> None:
    assert found["image"] in {launch.GPU_IMAGE, launch.CPU_IMAGE, trtllm_launch.IMAGE}
