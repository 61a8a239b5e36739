"""Runs of the tools on the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peer import PEERS
from benchmarks.process import ProcessError
from benchmarks.runs import PLAIN, Calibration, run_peer, run_qdeploy
from benchmarks.speed import skipped
from qdeploy.files import read_json


def test_our_run_is_calibrated_on_just_these_tokens(tiny_llama: Path, tmp_path: Path) -> None:
    calibration = Calibration(tiny_llama, 2, tmp_path / "calibration", length=32)
    run = run_qdeploy(calibration, tmp_path / "run", method="gptq")
    assert (run.folder / "qdeploy.json").exists()
    assert 0 < sum(run.split.values()) <= run.seconds + 0.05  # seconds are rounded
    assert run.seconds < run.process.seconds
    with pytest.raises(ProcessError, match="other tokens"):
        calibration.text.write_text("other " * 20)
        run_qdeploy(calibration, tmp_path / "other", method="gptq")


def test_plain_settings_reach_our_run(tiny_llama: Path, tmp_path: Path) -> None:
    calibration = Calibration(tiny_llama, 2, tmp_path / "calibration", length=32)
    run = run_qdeploy(calibration, tmp_path / "run", method="gptq", settings=PLAIN)
    (rule,) = read_json(run.folder / "qdeploy.json")["recipe"]["rules"]
    (stage,) = rule["stages"]
    assert stage["gptq"].items() > PLAIN["gptq"].items()
    assert "reference" not in run.split


def test_a_peer_that_fails_says_why(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    peer = PEERS[0]
    peer.python.parent.mkdir(parents=True)
    peer.python.symlink_to("/bin/false")
    calibration = Calibration(tiny_llama, 1, tmp_path / "calibration", length=32)
    with pytest.raises(ProcessError, match=peer.runner):
        run_peer(peer, {}, calibration, tmp_path / "run")


def test_a_peer_that_is_not_installed_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    skipped()
    said = capsys.readouterr().out
    for peer in PEERS:
        assert f"{peer.name}: skipped" in said
    assert "python -m benchmarks.peers install" in said
