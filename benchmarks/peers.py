"""Environments for the tools that qdeploy is measured against, one for each because they pin libraries.

    python -m benchmarks.peers install    make the environments that are not there yet
    python -m benchmarks.peers            say what is installed

They are kept in `$XDG_CACHE_HOME/qdeploy/peers`, by default ~/.cache/qdeploy/peers.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.peer import ALL_PEERS, GUIDELLM, INSTALL_COMMAND, MODELOPT, STAMP, Peer
from benchmarks.runs import Calibration, run_peer
from benchmarks.synthetic import save_llama
from qdeploy.files import write_json

TORCH = "torch==2.13.0"
"""The same for every tool: it does the arithmetic."""
PIP = ("-m", "pip", "-q", "--disable-pip-version-check", "install", "--no-compile")

_REQUIREMENTS = """
import importlib.metadata, sys
from packaging.requirements import Requirement
for text in importlib.metadata.requires(sys.argv[1]):
    wanted = Requirement(text)
    if wanted.name != "torch" and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
        print(text)
"""


def install(peer: Peer) -> None:
    """Make the peer's environment, and try it on a model of one layer.

    Raises:
        subprocess.CalledProcessError: a step failed, and has said why.
        ProcessError: the peer does not run there.
    """
    shutil.rmtree(peer.folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", peer.folder], check=True)
    python = str(peer.python)
    subprocess.run([python, *PIP, TORCH, "packaging"], check=True)
    # Without its requirements first: GPTQModel asks for torch 2.14, and quantizes with 2.13 as well.
    subprocess.run([python, *PIP, "--no-deps", f"{peer.package}=={peer.version}"], check=True)
    listed = subprocess.run(
        [python, "-c", _REQUIREMENTS, peer.package], check=True, capture_output=True, text=True
    )
    subprocess.run([python, *PIP, TORCH, *listed.stdout.splitlines(), *peer.beside], check=True)
    if peer.runner:
        _try(peer)
    write_json(peer.folder / STAMP, {"version": peer.version, "torch": TORCH})


def _try(peer: Peer) -> None:
    """Here and not in a timed run, GPTQModel compiles its extensions."""
    with tempfile.TemporaryDirectory() as folder:
        calibration = Calibration(save_llama(Path(folder) / "model", layers=1), 2, Path(folder), length=64)
        run_peer(peer, {}, calibration, Path(folder) / "trial")


def main() -> None:
    """Install what is missing, or say what is there."""
    if sys.argv[1:] not in ([], ["install"]):
        sys.exit(__doc__)
    for peer in (*ALL_PEERS, MODELOPT, GUIDELLM):
        if sys.argv[1:] and not peer.installed:
            print(f"{peer.name}: installing into {peer.folder}", flush=True)
            install(peer)
        state = f"installed in {peer.folder}" if peer.installed else f"not installed: {INSTALL_COMMAND}"
        print(f"{peer.name}: {state}")


if __name__ == "__main__":
    main()
