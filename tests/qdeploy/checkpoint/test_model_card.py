"""The model card: fields that the hub reads, and nothing that the folder does not say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qdeploy.checkpoint.inspection import Inspection, inspect_checkpoint
from qdeploy.checkpoint.model_card import base_model_of, front_matter, make_card, model_card
from qdeploy.conversion import convert
from qdeploy.pipeline import quantize
from tests.qdeploy.test_pipeline import recipe


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama in W4A16, with a calibration."""
    output = tmp_path_factory.mktemp("quantized") / "tiny-w4"
    quantize(recipe(tiny_model("llama")), output)
    return output


def fields(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


def test_quantize_writes_one(folder: Path, tiny_llama: Path) -> None:
    card = (folder / "README.md").read_text()
    assert fields(card) == {
        "base_model": tiny_llama.name,
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["qdeploy", "compressed-tensors", "w4a16", "gptq"],
        "quantization": ["W4A16 symmetric, group 32"],
    }
    found = inspect_checkpoint(folder)
    assert found.manifest is not None and found.manifest.calibration is not None
    assert "| W4A16 symmetric, group 32 | 14 |" in card
    assert f"{found.bits_per_weight:.2f} bits per weight" in card
    assert "Method: gptq (14 layers)" in card
    assert found.manifest.calibration.sha256 in card
    assert found.manifest.model.sha256 in card
    assert all(f"Warned: {warning}" in card for warning in found.manifest.warnings)
    assert "```\nqdeploy serve tiny-w4\n```" in card


def test_licence_and_base_come_from_the_source_s_card(folder: Path, tmp_path: Path) -> None:
    told = {"license": "other", "license_name": "gemma", "base_model": "org/base", "tags": ["old"]}
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(told)}---\n# Old\n")
    found = fields(make_card(folder, name="new", source=tmp_path))
    assert (found["license"], found["license_name"]) == ("other", "gemma")
    assert found["base_model"] != "org/base"  # that is what the 16-bit model was made from
    assert "old" not in found["tags"]
    (tmp_path / "qdeploy.json").touch()  # made by us: the card speaks of the 16-bit model
    assert fields(make_card(folder, name="new", source=tmp_path))["base_model"] == "org/base"


@pytest.mark.parametrize(
    ("source", "base"),
    [
        ("org/name", "org/name"),
        ("/home/me/.cache/huggingface/hub/models--org--a.name/snapshots/0123", "org/a.name"),
        ("/", ""),
    ],
)
def test_a_hub_id_stays_and_a_path_becomes_a_name(folder: Path, source: str, base: str) -> None:
    found = inspect_checkpoint(folder)
    assert found.manifest is not None
    found.manifest.model.source = source
    card = make_card_of(found, folder)
    assert fields(card).get("base_model", "") == base


def make_card_of(found: Inspection, source: Path) -> str:
    return model_card(
        found, "new", base_model_of(found.manifest, {}, ours=True), front_matter(source / "none")
    )


@pytest.mark.parametrize(
    "text", ["", "# No fields", "---\n- a list\n---\n", "---\n{\n---\n", "---\nopen: 1\n"]
)
def test_a_card_without_fields(tmp_path: Path, text: str) -> None:
    assert front_matter(tmp_path) == {}
    (tmp_path / "README.md").write_text(text)
    assert front_matter(tmp_path) == {}


def test_a_16_bit_model_and_one_of_another_tool(folder: Path, tiny_llama: Path, tmp_path: Path) -> None:
    card = make_card(tiny_llama, name="plain", source=tiny_llama)
    assert fields(card)["tags"] == ["qdeploy"]
    assert "in 16 bits." in card
    assert not {"base_model", "quantization"} & fields(card).keys()
    found = inspect_checkpoint(folder).model_copy(update={"manifest": None})
    text = model_card(found, "foreign", None, {})
    assert "How it was made" not in text and "by qdeploy" not in text
    assert "LlamaForCausalLM" in text


def test_other_formats_caches_and_references_are_told(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "modelopt", "modelopt")
    card = (tmp_path / "modelopt" / "README.md").read_text()
    assert fields(card)["library_name"] == "tensorrt-llm"
    assert "qdeploy export modelopt --engine tensorrt-llm -o DEPLOY\nDEPLOY/serve.sh" in card
    found = inspect_checkpoint(folder).model_copy(update={"kv_cache": 2, "served_by": ["transformers"]})
    assert found.manifest is not None
    found.manifest.serving = "reference"
    text = model_card(found, "x", "org/x", {})
    assert "scales for 2 attentions" in text
    assert "for studies of accuracy alone" in text
    assert "qdeploy serve" not in text
    assert "PYTHON=python x/serve.sh" in model_card(found, "x", None, {}, ["PYTHON=python x/serve.sh"])
