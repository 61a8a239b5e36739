from collections.abc import Callable
from pathlib import Path

import pytest

from qdeploy.schemes import Scheme
from tests.packed import W4A16, quantize_folder


@pytest.fixture
def pack_tiny(tiny_llama: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny quantized Llama of a scheme and returns its folder, which may be written to."""

    def make(scheme: Scheme = W4A16) -> Path:
        folder = tmp_path / "packed"
        quantize_folder(tiny_llama, folder, scheme)
        return folder

    return make


@pytest.fixture
def packed(pack_tiny: Callable[..., Path]) -> Path:
    """A tiny W4A16 Llama, group 32, without faults."""
    return pack_tiny()
