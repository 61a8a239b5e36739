"""Supervision: ready in time or a reason, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from qdeploy.engines.ports import check_free
from qdeploy.errors import EngineError, UsageError
from tests.engines.conftest import SERVER, start_server

Folder = Callable[..., Path]


def _gone(pid: int, within_s: float = 15.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def _tree(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def test_stop_leaves_no_process_of_the_tree(model_folder: Folder, tmp_path: Path) -> None:
    folder = model_folder(child=str(tmp_path / "child.pid"))
    process, root = start_server(folder, tmp_path / "log")
    with process:
        process.wait_ready([f"{root}/health", f"{root}/v1/models"], 20.0)
        tree = _tree(process.pid)
        assert int((tmp_path / "child.pid").read_text()) in tree
        assert len(tree) == 3
    assert not process.alive()
    assert [pid for pid in tree if not _gone(pid, 1.0)] == []
    process.stop()


def test_an_exception_in_the_block_stops_the_server(model_folder: Folder, tmp_path: Path) -> None:
    process, root = start_server(model_folder(), tmp_path / "log")
    with pytest.raises(KeyboardInterrupt), process:
        process.wait_ready([f"{root}/health"], 20.0)
        raise KeyboardInterrupt
    assert not process.alive()


PARENT = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.engines.conftest import start_server
process, root = start_server(Path({folder!r}), Path({log!r}))
process.wait_ready([root + "/health"], 20.0)
print(process.pid, flush=True)
{ending}
"""


@pytest.mark.parametrize(
    "ending",
    ["time.sleep(600)", "os.kill(os.getpid(), 9)", "raise RuntimeError", "sys.exit(0)"],
    ids=["killed from outside", "kills itself", "crashes", "ends without stopping"],
)
def test_the_server_does_not_outlive_its_parent(model_folder: Folder, tmp_path: Path, ending: str) -> None:
    folder = model_folder(child=str(tmp_path / "child.pid"))
    code = PARENT.format(
        root=str(SERVER.parents[2]), folder=str(folder), log=str(tmp_path / "log"), ending=ending
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with parent:
        assert parent.stdout is not None
        reaper = int(parent.stdout.readline())
        child = int((tmp_path / "child.pid").read_text())
        tree = {reaper, child} | (set(_tree(reaper)) if psutil.pid_exists(reaper) else set())
        if "sleep" in ending:
            assert len(tree) == 3
            parent.send_signal(signal.SIGKILL)
    assert [pid for pid in tree if not _gone(pid)] == []


def test_an_engine_that_dies_while_loading_says_why(model_folder: Folder, tmp_path: Path) -> None:
    log = (
        "(EngineCore pid=7) ERROR 11-23 07:09:18 [core.py:1] Traceback (most recent call last):\n"
        '(EngineCore pid=7) ERROR 11-23 07:09:18 [core.py:1]   File "x.py", line 1, in load\n'
        "(EngineCore pid=7) ERROR 11-23 07:09:18 [core.py:1] torch.OutOfMemoryError: no room for 9 GiB\n"
        "Loading safetensors checkpoint shards:   0% Completed | 0/1 [00:00<?, ?it/s]\n"
    )
    folder = model_folder(
        log=log, die="RuntimeError: Engine core initialization failed. See root cause above."
    )
    process, root = start_server(folder, tmp_path / "log")
    with pytest.raises(EngineError) as caught:
        process.wait_ready([f"{root}/health"], 20.0)
    lines = str(caught.value).splitlines()
    assert "died while starting (exit code 1" in lines[0]
    assert lines[1].strip() == "torch.OutOfMemoryError: no room for 9 GiB"
    assert "Engine core initialization failed" in str(caught.value)
    assert str(tmp_path / "log") in lines[-1]
    assert "x.py" not in str(caught.value)
    assert "Completed" not in str(caught.value)


def test_an_engine_that_never_gets_ready_is_stopped(model_folder: Folder, tmp_path: Path) -> None:
    process, root = start_server(model_folder(never_ready=True), tmp_path / "log")
    with pytest.raises(EngineError, match="was not ready after 1 s"):
        process.wait_ready([f"{root}/health"], 1.0)
    assert not process.alive()


def test_a_taken_port_names_its_holder(serve: Callable[..., str]) -> None:
    port = int(serve().rsplit(":", 1)[1].removesuffix("/v1"))
    with pytest.raises(UsageError, match=rf":{port}: Address already in use; held by .*\(pid \d+\)"):
        check_free(port)


def test_the_log_folder_is_made_and_gets_the_output(model_folder: Folder, tmp_path: Path) -> None:
    log = tmp_path / "new" / "engine.log"
    process, root = start_server(model_folder(log="hello from the engine"), log)
    with process:
        process.wait_ready([f"{root}/health"], 20.0)
    assert "hello from the engine" in log.read_text()
    assert os.getpgid(0) != process.pid


def test_stop_ends_the_server_even_when_the_reaper_was_killed(model_folder: Folder, tmp_path: Path) -> None:
    process, root = start_server(model_folder(), tmp_path / "log")
    process.wait_ready([f"{root}/health"], 20.0)
    tree = _tree(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.stop()
    assert [pid for pid in tree if not _gone(pid, 2.0)] == []
