import subprocess
import sys

import pytest

COMMANDS = [
    [],
    ["plan"],
    ["methods"],
    ["sensitivity"],
    ["sample"],
    ["quantize"],
    ["inspect"],
    ["lint"],
    ["convert"],
    ["export"],
    ["serve"],
    ["verify"],
    ["eval"],
    ["bench"],
    ["run"],
    ["report"],
    ["compare"],
    ["runs"],
    ["runs", "list"],
    ["runs", "tag"],
    ["import"],
    ["recipe", "show"],
    ["engines", "install"],
    ["engines", "list"],
    ["doctor"],
]


def qdeploy(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "qdeploy", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_page_answers(command: list[str]) -> None:
    result = qdeploy(*command, "--help")
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from qdeploy.cli.main import build; build(); "
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'httpx', 'aiohttp'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_unknown_command_says_what_is_near() -> None:
    result = qdeploy("quantise")
    assert result.returncode == 2
    assert "quantize" in result.stderr


def test_an_error_is_one_message_without_traceback() -> None:
    result = qdeploy("inspect", "no-such-folder")
    assert result.returncode == 2
    assert "no-such-folder" in result.stderr
    assert "Traceback" not in result.stderr
