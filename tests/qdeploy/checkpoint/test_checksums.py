"""SHA256SUMS, and when a hash on record may be used again."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from qdeploy.checkpoint.checksums import SUMS, recorded_hashes, write_checksums
from qdeploy.files import sha256_file
from tests.qdeploy.cli.test_inspect import manifest

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "templates").mkdir()
    for name in (WEIGHTS, "config.json", "templates/a file.jinja"):
        (tmp_path / name).write_text(name)
    return tmp_path


def checks(folder: Path) -> bool:
    return subprocess.run(["sha256sum", "--check", SUMS], cwd=folder, check=False).returncode == 0


def test_all_files_but_itself_are_listed_and_checked(folder: Path) -> None:
    for _ in range(2):  # the second time over a list that is there
        write_checksums(folder, {})
        lines = (folder / SUMS).read_text().splitlines()
        assert [line[66:] for line in lines] == ["config.json", WEIGHTS, "templates/a file.jinja"]
        assert checks(folder)
    (folder / "templates/a file.jinja").write_text("other")
    assert not checks(folder)


def test_a_hash_that_is_known_is_not_computed(folder: Path) -> None:
    write_checksums(folder, {WEIGHTS: "a" * 64})
    assert f"{'a' * 64}  {WEIGHTS}" in (folder / SUMS).read_text().splitlines()
    assert not checks(folder)


def later(path: Path, than: Path, seconds: int) -> None:
    stamp = than.stat().st_mtime_ns + seconds * 1_000_000_000
    os.utime(path, ns=(stamp, stamp))


@pytest.mark.parametrize("record", [SUMS, "qdeploy.json"])
def test_what_was_written_since_has_no_hash_on_record(folder: Path, record: str) -> None:
    digest = sha256_file(folder / WEIGHTS)
    if record == SUMS:
        write_checksums(folder, {})
    else:
        (folder / record).write_text(json.dumps({**manifest([]), "files": {WEIGHTS: digest, "gone": digest}}))
    later(folder / WEIGHTS, folder / record, 0)
    assert recorded_hashes(folder)[WEIGHTS] == digest
    assert "gone" not in recorded_hashes(folder)
    later(folder / WEIGHTS, folder / record, 1)
    assert WEIGHTS not in recorded_hashes(folder)


def test_a_list_of_another_form_says_nothing(folder: Path) -> None:
    assert recorded_hashes(folder) == {}
    (folder / SUMS).write_text(f"SHA256 ({WEIGHTS}) = {'a' * 64}\nnonsense\n")
    assert recorded_hashes(folder) == {}
