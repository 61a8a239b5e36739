"""The residual stream: which linear layers write to it, and what it would hold in the 16-bit model.

A decoder block adds to the hidden states that it is handed what some of its layers put out; in most models
o_proj and down_proj. Such a layer can make up for errors that are in the stream already, those of earlier
blocks too (see `qdeploy.methods.correction`), if it is known what the stream would be without any. For that
the 16-bit model runs beside the quantized one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qdeploy.distributed import ALONE, Group
from qdeploy.modeling.activations import Activations
from qdeploy.modeling.followed import EVERY, Followed
from qdeploy.modeling.inputs import BlockCall
from qdeploy.stopwatch import part


@dataclass(frozen=True, slots=True)
class Writer:
    """A linear layer whose output is added to the residual stream as it is.

    Attributes:
        name: full name of the layer.
        before: module in the block that reads the stream before that; "" where it is the block's input.
        after: module in the block that reads it afterwards; "" where it is the block's output.
    """

    name: str
    before: str
    after: str


def find_writers(call: BlockCall, states: Tensor) -> list[Writer]:
    """The writers of a block, in order, found by running it on hidden states [B, T, D].

    A layer is one if the stream plus its output is, to the last bit, what another module reads or what the
    block puts out. Where outputs are scaled, normalized or chosen among before they are added there is none.
    """
    inputs: list[tuple[str, Tensor]] = []
    outputs: list[tuple[str, Tensor]] = []
    linears = {id(linear): name for name, linear in call.block.linears().items()}
    handles = []
    for name, module in call.block.module.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(_recorder(name, inputs)))
        if id(module) in linears:
            handles.append(module.register_forward_hook(_output_recorder(linears[id(module)], outputs)))
    try:
        inputs.append(("", call(states)))
    finally:
        for handle in handles:
            handle.remove()
    return list(_match(states, inputs, outputs))


def _recorder(name: str, seen: list[tuple[str, Tensor]]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args:
            seen.append((name, args[0]))

    return hook


def _output_recorder(
    name: str, seen: list[tuple[str, Tensor]]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    return lambda _, __, y: seen.append((name, y))


def _match(
    stream: Tensor, inputs: Sequence[tuple[str, Tensor]], outputs: Sequence[tuple[str, Tensor]]
) -> Iterator[Writer]:
    before = ""
    for layer, y in outputs:
        if y.shape != stream.shape:
            continue
        total = stream + y
        after = next((name for name, x in inputs if torch.equal(x, total)), None)
        if after is not None:
            yield Writer(layer, before, after)
            stream, before = total, after


class Reference:
    """The residual stream of the 16-bit model, from block to block, for the samples that it follows.

    Args:
        activations: this process's, which enter the first block.
        offset: how many samples the processes before this one have.
        group: the processes that have the other samples.
        every: of so many samples one is followed.
        always: run every block, even if none has a writer.
    """

    def __init__(
        self,
        activations: Activations,
        offset: int = 0,
        group: Group = ALONE,
        *,
        every: int = EVERY,
        always: bool = False,
    ) -> None:
        self.followed, self._group, self._always = Followed(offset, every), group, always
        self._states = activations.like(self.followed.count(activations.shape[0]))
        for batch in activations.batches():
            states = activations[batch][self.followed.chosen(batch)]
            if len(states):
                self._states[self.followed.place(batch)] = states
        self._inside: dict[int, Activations] = {}
        self._useful: bool | None = None

    @property
    def resident_bytes(self) -> int:
        """RAM that it takes."""
        return self._states.resident_bytes + sum(held.resident_bytes for held in self._inside.values())

    @property
    def outputs(self) -> Activations:
        """What the last block that was run puts out for the samples that are followed."""
        return self._states

    @part("reference")
    def run(self, call: BlockCall, activations: Activations) -> Mapping[Writer, Activations]:
        """Run the next block, which must hold its 16-bit weights.

        Args:
            call: how it is called.
            activations: this process's, which enter the block of the quantized model.

        Returns:
            Writer → the 16-bit model's stream after it, valid until the next run. Where the first block has
            no writer, the model is taken to have none and no block is run, unless always.
        """
        if self._useful is False:
            return {}
        device = next(call.block.module.parameters()).device
        writers = self._group.share(find_writers(call, activations[:1].to(device)))
        if self._useful is None:
            self._useful = self._always or bool(writers)
        after = {writer: self._place(i, writer) for i, writer in enumerate(writers)}
        if self._useful:
            self._forward(call, {writer.after: held for writer, held in after.items()}, device)
        return after

    def _place(self, position: int, writer: Writer) -> Activations:
        """Where the stream after a writer is kept; after the last one it is the block's output."""
        if not writer.after:
            return self._states
        if position not in self._inside:
            self._inside[position] = self._states.like(self._states.shape[0])
        return self._inside[position]

    def _forward(self, call: BlockCall, kept: Mapping[str, Activations], device: torch.device) -> None:
        for batch in self._states.batches():

            def keep(name: str, x: Tensor, batch: slice = batch) -> None:
                kept[name][batch] = x.cpu()

            with _reading(call, kept, keep):
                self._states[batch] = call(self._states[batch].to(device)).cpu()


class Targets:
    """What writers of one block should put out for the block's inputs as they now are.

    Args:
        call: how the block is called.
        activations: its inputs.
        after: writer → the 16-bit model's stream after it.
        followed: the samples for which that is known.
    """

    def __init__(
        self,
        call: BlockCall,
        activations: Activations,
        after: Mapping[Writer, Activations],
        followed: Followed,
    ) -> None:
        self._call, self._activations, self._followed = call, activations, followed
        self._after = {writer.name: (writer.before, held) for writer, held in after.items()}
        self._before: dict[tuple[int, str], Tensor] = {}
        self._now = slice(0, 0)

    def __contains__(self, layer: str) -> bool:
        return layer in self._after

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep what is needed of the forwards that run meanwhile."""

        def keep(name: str, x: Tensor) -> None:
            # The block itself holds on to it until the writer has run.
            self._before[self._now.start, name] = x

        with _reading(self._call, [before for before, _ in self._after.values()], keep):
            yield

    def at(self, batch: slice) -> None:
        """Say which micro-batch runs from now on."""
        self._now = batch

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Keep nothing of the forwards that run meanwhile: they belong to no micro-batch."""
        now, self._now = self._now, slice(-1, -1)
        try:
            yield
        finally:
            self.forget()
            self._now = now

    def forget(self) -> None:
        """Drop what is kept of the micro-batch that runs."""
        self._before = {key: x for key, x in self._before.items() if key[0] != self._now.start}

    def target(self, layer: str, device: torch.device) -> tuple[Tensor, slice]:
        """The output that makes this writer's stream the 16-bit model's; asked once for each micro-batch.

        Returns:
            float32 [B, T, D], and which samples of the micro-batch it is for; they may be none.
        """
        before, after = self._after[layer]
        stream = self._before.pop((self._now.start, before)) if before else self._activations[self._now]
        chosen = self._followed.chosen(self._now)
        return after[self._followed.place(self._now)].to(device) - stream[chosen].to(device), chosen


@contextmanager
def _reading(call: BlockCall, names: Iterable[str], keep: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Tell `keep` what these modules of the block are called with; "" is none."""

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: keep(name, args[0])

    modules = {name: call.block.module.get_submodule(name) for name in names if name}
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
