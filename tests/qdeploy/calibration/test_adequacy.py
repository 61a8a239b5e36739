"""What is said about calibration that is small, short or of one kind."""

from __future__ import annotations

import pytest
import torch

from qdeploy.calibration.adequacy import concerns
from qdeploy.calibration.mixture import CalibrationSet, Part

LAYER = "model.layers.0.mlp.down_proj"


def calibration(samples: int = 32, length: int = 512, largest: float = 0.5) -> CalibrationSet:
    first = round(samples * largest)
    parts = [Part("novel.txt", first, 1, "ab"), Part("c4", samples - first, 9, "cd")]
    return CalibrationSet(
        tokens=torch.zeros(samples, length, dtype=torch.int64),
        source="novel.txt, c4",
        parts=tuple(part for part in parts if part.samples),
        sha256="ef",
        seed=0,
        samples=samples,
        sequence_length=length,
        bos=False,
    )


def test_enough_text_of_two_kinds_raises_no_concern() -> None:
    assert concerns(calibration(), (LAYER, 1536)) == []
    assert concerns(calibration(), (LAYER, 32 * 512 // 2)) == []


@pytest.mark.parametrize(
    ("found", "columns", "words"),
    [
        (calibration(), 8193, ["16,384", "8,193 input columns of", LAYER, "16,386", "--samples 33."]),
        (calibration(8), 1536, ["8 calibration samples are few", "12%", "--samples 16."]),
        (calibration(2), 1536, ["1,024 calibration tokens", "wants 3,072", "--samples 16."]),
        (calibration(64, 127), 576, ["127 tokens are short", "--sequence-length 128"]),
        (calibration(40, largest=0.925), 576, ["92%", "novel.txt", "--calibration builtin"]),
        (calibration(largest=1), 576, ["100% of the calibration comes from novel.txt"]),
    ],
)
def test_each_concern_says_the_number_and_what_mends_it(
    found: CalibrationSet, columns: int, words: list[str]
) -> None:
    (concern,) = concerns(found, (LAYER, columns))
    assert "\n" not in concern
    for word in words:
        assert word in concern


def test_concerns_add_up_and_what_is_proposed_ends_them() -> None:
    assert len(concerns(calibration(4, 64, largest=1), (LAYER, 1536))) == 3
    assert concerns(calibration(33), (LAYER, 8193)) == []
    assert concerns(calibration(16), (LAYER, 1536)) == []
    assert concerns(calibration(40, largest=0.9), (LAYER, 1536)) == []
