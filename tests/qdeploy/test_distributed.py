"""Several processes that quantize one model together, through the command that torchrun starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from qdeploy import stack
from qdeploy.checkpoint.manifest import Manifest, load_manifest
from qdeploy.cli.main import build, main
from qdeploy.distributed import Group, processes
from qdeploy.errors import QuantizationError
from qdeploy.methods.hessian import STRIP, Hessian
from qdeploy.methods.scaling import Channels
from qdeploy.modeling.activations import BATCH_TOKENS
from qdeploy.modeling.checkpoint import CheckpointReader
from tests.qdeploy.processes import Ended, together
from tests.qdeploy.test_pipeline import shard_bytes, unpacked

LENGTH = BATCH_TOKENS
"""One sample is a micro-batch, however they are shared: bfloat16 products are rounded by micro-batch."""
SAMPLES = 7  # shared unevenly: the second process begins with one that the 16-bit model does not follow


@dataclass(frozen=True)
class Command:
    """`qdeploy quantize` of a tiny model; in a process of a group, and with an accident in one if need be."""

    model: Path
    text: Path
    output: Path
    samples: int = SAMPLES
    method: str = "gptq"
    kv_cache: str = "none"
    accident: Callable[[], None] | None = None
    victim: int = 1

    @property
    def arguments(self) -> list[str]:
        source = [str(self.model), "--calibration", str(self.text), "--samples", str(self.samples)]
        shape = ["--sequence-length", str(LENGTH), "--group-size", "32", "--method", self.method]
        shape += ["--kv-cache", self.kv_cache]
        return ["quantize", *source, *shape, "--json", "-o", str(self.output)]

    def __call__(self, rank: int) -> None:
        if self.accident is not None and rank == self.victim:
            happen_at_the_second_block(self.accident)
        sys.argv = ["qdeploy", *self.arguments]
        main()


def happen_at_the_second_block(accident: Callable[[], None]) -> None:
    original, blocks = stack.Stack._with_data, count()

    def with_data(self: Any, *args: Any, **kwargs: Any) -> None:
        if next(blocks) == 1:
            accident()
        original(self, *args, **kwargs)

    stack.Stack._with_data = with_data  # type: ignore[method-assign]


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def failed() -> None:
    raise QuantizationError("The layer is cursed.")


@pytest.fixture(scope="module")
def command(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Quantizes the tiny Llama into `two`."""
    folder = tmp_path_factory.mktemp("distributed")
    text = folder / "text.txt"
    text.write_text("".join(f"{n} times {n} is {n * n}, and a little more. " for n in range(120)))
    return Command(tiny_llama, text, folder / "two")


@pytest.fixture(scope="module")
def two(command: Command) -> list[Ended]:
    """What two processes printed who have run `command`."""
    return together(2, command.output.with_name("two.log"), command)


@pytest.fixture(scope="module")
def one(command: Command) -> Path:
    """What one process makes of the same."""
    output = command.output.with_name("one")
    run_alone(replace(command, output=output))
    return output


def run_alone(command: Command) -> None:
    result = CliRunner().invoke(build(), command.arguments, catch_exceptions=False)
    assert result.exit_code == 0


def manifest_of(folder: Path) -> Manifest:
    manifest = load_manifest(folder)
    assert manifest is not None
    return manifest


def test_one_process_speaks(command: Command, two: list[Ended]) -> None:
    assert [ended.code for ended in two] == [0, 0]
    assert json.loads(two[0].stdout) == json.loads((command.output / "qdeploy.json").read_text())
    assert "2/2" in two[0].stderr
    assert (two[1].stdout, two[1].stderr) == ("", "")


@pytest.mark.usefixtures("two")
def test_two_processes_do_as_well_as_one(command: Command, one: Path) -> None:
    alone, shared = manifest_of(one), manifest_of(command.output)
    assert shared.recipe_sha256 == alone.recipe_sha256
    assert shared.calibration == alone.calibration
    assert (alone.provenance["processes"], shared.provenance["processes"]) == (1, 2)
    assert len(shared.modules) == 14
    for ours, theirs in zip(shared.modules, alone.modules, strict=True):
        assert (ours.name, ours.shape, ours.damp) == (theirs.name, theirs.shape, theirs.damp)
        assert ours.fallback is None
        assert ours.relative_error == pytest.approx(theirs.relative_error, rel=0.01)


@pytest.mark.usefixtures("two")
def test_two_processes_choose_the_codes_of_one(command: Command, one: Path) -> None:
    ours, theirs = unpacked(command.output), unpacked(one)
    same = torch.cat([(ours[name].codes == theirs[name].codes).flatten() for name in theirs])
    assert same.float().mean() > 0.99
    assert torch.allclose(logits(command.output), logits(one), rtol=0, atol=0.05 * spread(logits(one)))


def test_two_processes_scale_channels_together(command: Command, tmp_path: Path) -> None:
    stacked = replace(command, method="smoothquant+awq+gptq", output=tmp_path / "two")
    assert [ended.code for ended in together(2, tmp_path / "log", stacked)] == [0, 0]
    run_alone(replace(stacked, output=tmp_path / "one"))
    for ours, theirs in zip(
        manifest_of(tmp_path / "two").modules, manifest_of(tmp_path / "one").modules, strict=True
    ):
        # They look at other tokens, and so may choose other scales.
        assert ours.relative_error == pytest.approx(theirs.relative_error, rel=0.25)


@pytest.mark.parametrize("method", ["incoherence+ldlq", "spqr"])
def test_rows_that_depend_on_each_other_stay_together(method: str, command: Command, tmp_path: Path) -> None:
    asked = replace(command, method=method, output=tmp_path / "two")
    assert [ended.code for ended in together(2, tmp_path / "log", asked)] == [0, 0]
    run_alone(replace(asked, output=tmp_path / "one"))
    ours, theirs = (CheckpointReader(tmp_path / name) for name in ("two", "one"))
    for module in manifest_of(tmp_path / "one").modules:
        name = f"{module.name}.weight"
        # Rounding errors of the sums over two processes move few codes; another basis would move all.
        moved = (ours.get(name).float() - theirs.get(name).float()).norm() / theirs.get(name).float().norm()
        assert moved < 0.1


def test_the_largest_keys_are_those_of_all_processes(command: Command, tmp_path: Path) -> None:
    asked = replace(command, method="rtn", kv_cache="fp8", output=tmp_path / "two")
    assert [ended.code for ended in together(2, tmp_path / "log", asked)] == [0, 0]
    run_alone(replace(asked, output=tmp_path / "one"))
    assert manifest_of(tmp_path / "two").kv_cache
    assert shard_bytes(tmp_path / "two") == shard_bytes(tmp_path / "one")


@torch.no_grad()
def logits(folder: Path) -> Tensor:
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.arange(32)[None]).logits
    assert isinstance(found, Tensor)
    return found


def spread(values: Tensor) -> float:
    return float(values.std())


@pytest.mark.parametrize(("victim", "survivor"), [(1, 0), (0, 1)])
@pytest.mark.usefixtures("two")
def test_a_killed_process_ends_the_other_and_the_command_resumes(
    command: Command, tmp_path: Path, victim: int, survivor: int
) -> None:
    again = replace(command, output=tmp_path / "out")
    ended = together(2, tmp_path / "killed", replace(again, accident=killed, victim=victim))
    assert ended[victim].code == -signal.SIGKILL
    assert ended[survivor].code == 2
    assert f"Process {survivor} of 2 lost another one" in ended[survivor].stderr
    assert "Traceback" not in ended[survivor].stderr
    assert (tmp_path / "out.partial/.shards/model.layers.0.json").exists()
    assert not again.output.exists()

    assert [ended.code for ended in together(2, tmp_path / "resumed", again)] == [0, 0]
    assert shard_bytes(again.output) == shard_bytes(command.output)


@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_in_one_process_ends_both_with_its_message(
    command: Command, tmp_path: Path, victim: int
) -> None:
    cursed = replace(command, output=tmp_path / "out", accident=failed, victim=victim)
    ended = together(2, tmp_path / "log", cursed)
    assert [end.code for end in ended] == [2, 2]
    assert ended[victim].stderr.splitlines()[-1] == "Error: The layer is cursed."
    assert "Error" not in ended[1 - victim].stderr


def test_ctrl_c_says_once_how_to_go_on(command: Command, tmp_path: Path) -> None:
    stopped = replace(command, output=tmp_path / "out", accident=interrupted, victim=0)
    first, second = together(2, tmp_path / "log", stopped)
    assert first.code == 130
    assert "Interrupted after 1 of 2 blocks" in first.stderr
    assert second.code == 2
    assert second.stderr == ""


def test_more_processes_than_samples_are_refused_once(command: Command, tmp_path: Path) -> None:
    ended = together(2, tmp_path / "log", replace(command, output=tmp_path / "out", samples=1))
    assert [end.code for end in ended] == [2, 2]
    said = "".join(end.stderr for end in ended)
    assert said.count("Error:") == 1
    assert "2 processes cannot share 1 calibration samples. Use --nproc-per-node 1 or --samples 2." in said
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("method", ["rtn", "rotation+rtn"])
def test_torchrun_with_a_method_without_data_writes_the_bytes_of_one_process(
    command: Command, tmp_path: Path, method: str
) -> None:
    alone = replace(command, output=tmp_path / "one", method=method)
    run_alone(alone)
    asked = replace(alone, output=tmp_path / "two").arguments
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launcher, "-m", "qdeploy", *asked], check=True, capture_output=True)
    assert shard_bytes(tmp_path / "two") == shard_bytes(tmp_path / "one")


def test_one_process_under_torchrun_writes_the_bytes_of_one_without(
    command: Command, one: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    (ended,) = together(1, tmp_path / "log", replace(command, output=output))
    assert ended.code == 0
    assert shard_bytes(output) == shard_bytes(one)


def test_three_processes_exchange_what_they_hold(tmp_path: Path) -> None:
    ended = together(3, tmp_path / "log", exchange)
    assert [end.code for end in ended] == [0, 0, 0], ended


def exchange(_: int) -> None:
    with processes() as group:
        for whole in (torch.arange(n * 2).reshape(n, 2) for n in range(8)):
            for dtype in (torch.uint8, torch.bfloat16):
                mine = whole.to(dtype)[group.part(len(whole))]
                assert torch.equal(group.join(mine, len(whole)), whole.to(dtype))
        assert group.share(f"from {group.rank}") == "from 0"
        assert group.totals(group.rank, 0.5) == (3, 1.5)
        check_hessian(group)


def check_hessian(group: Group) -> None:
    """Small integers add up exactly in any order."""
    x = torch.randint(-3, 4, (50, STRIP + 7), generator=torch.Generator().manual_seed(0)).float()
    whole, part = Hessian(x.shape[1]), Hessian(x.shape[1])
    whole.add(x)
    part.add(x[group.part(4)])  # parts of 1, 1 and 2 tokens
    part.merge(group)
    assert part.tokens == 4
    part = Hessian(x.shape[1])
    if group.rank != 1:  # one process may have seen nothing
        part.add(x[:25] if group.leads else x[25:])
    part.merge(group)
    assert part.tokens == whole.tokens
    assert torch.equal(part.matrix, whole.matrix)


def test_channels_are_those_of_all_processes(tmp_path: Path) -> None:
    ended = together(2, tmp_path / "log", gather_channels)
    assert [(end.code, end.stderr) for end in ended] == [(0, "")] * 2


def gather_channels(rank: int) -> None:
    with processes() as group:
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
        own = Channels(8, 3)
        own.add(x[group.part(6)])
        own.merge(group)
        assert torch.equal(own.largest, x.abs().amax(0))
        torch.testing.assert_close(own.mean, x.abs().mean(0))
        assert torch.equal(own.sample, x[:3])
