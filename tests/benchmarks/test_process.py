"""A fresh process, with the time and memory that it took."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.process import ProcessError, run


def test_peak_memory_is_the_process_own(tmp_path: Path) -> None:
    ours = bytearray(200_000_000)  # would count, were it taken from getrusage after a fork
    ours[::4096] = b"x" * len(ours[::4096])
    hold = "import time; b = bytearray(60_000_000); b[::4096] = b'x' * len(b[::4096]); time.sleep(0.3)"
    usage = run([sys.executable, "-c", hold], tmp_path / "log.txt", tmp_path)
    assert 60_000_000 < usage.peak_bytes < 120_000_000
    assert usage.seconds > 0.3


def test_processors_time_is_what_it_computed_not_what_it_waited(tmp_path: Path) -> None:
    work = (
        "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass\ntime.sleep(1)"
    )
    first, second = (run([sys.executable, "-c", work], tmp_path / "log.txt", tmp_path) for _ in range(2))
    for usage in (first, second):
        assert 0.5 < usage.cpu_seconds < usage.seconds - 0.9


def test_a_failure_shows_the_end_of_the_log(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="no such luck"):
        run([sys.executable, "-c", "raise SystemExit('no such luck')"], tmp_path / "log.txt", tmp_path)
