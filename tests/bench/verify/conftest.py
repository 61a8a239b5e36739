from pathlib import Path

import pytest

from qdeploy.pipeline import quantize
from qdeploy.recipe import Recipe
from tests.conftest import save_tiny


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that `quantize` rounded to W4A16; never write into it."""
    folder = tmp_path_factory.mktemp("verify")
    # Probing an endpoint takes token ids up to 809.
    model = save_tiny(folder / "model", "llama", vocab_size=1024)
    recipe = Recipe.from_flags(str(model), method="rtn", group_size="32")
    quantize(recipe, folder / "quantized")
    return folder / "quantized"


@pytest.fixture(scope="session")
def quantized_mlps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `quantized`, but for the attention layers, which stay in 16 bit: fewer layers to suspect."""
    folder = tmp_path_factory.mktemp("suspects")
    model = save_tiny(folder / "model", "llama", vocab_size=1024)
    recipe = Recipe.from_flags(str(model), method="rtn", group_size="32")
    rule = recipe.rules[0].model_copy(update={"match": "re:.*mlp.*"})
    quantize(recipe.model_copy(update={"rules": (rule,)}), folder / "quantized")
    return folder / "quantized"
