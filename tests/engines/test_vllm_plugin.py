"""The plugin is found by vLLM as any installed one would be; `tests/e2e` runs it."""

import os
import subprocess
import sys

from qdeploy.engines.vllm import PLUGIN


def test_a_process_started_by_qdeploy_sees_the_entry_point() -> None:
    code = (
        "from importlib.metadata import entry_points; from importlib.util import find_spec; "
        "(point,) = entry_points(group='vllm.general_plugins'); "
        "print(point.attr, find_spec(point.module).origin)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(PLUGIN)},
        capture_output=True,
        text=True,
        check=True,
    )
    function, file = found.stdout.split()
    assert file == str(PLUGIN / "qdeploy_vllm_plugin.py")
    assert f"def {function}()" in (PLUGIN / "qdeploy_vllm_plugin.py").read_text()
