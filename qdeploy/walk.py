"""Quantizing one block: its linear layers in the order in which they run, each on what it will really read.

With true-sequential order (GPTQ, arXiv 2210.17323) o_proj is calibrated on what quantized q, k and v make of
the text. Layers that read the same tensor share one Hessian. Activations are float32, though products may be
rounded to bfloat16 (`qdeploy.modeling.products`), and stay so where engines
will round what layers read: see docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from qdeploy.distributed import ALONE, Group
from qdeploy.folding import Folding
from qdeploy.gathered import Gathered
from qdeploy.halting import Halting, halting
from qdeploy.kv_cache import cache_scales
from qdeploy.methods.base import Quantized, needs_reference
from qdeploy.methods.temporaries import solving_bytes
from qdeploy.methods.tuning import TunedLayer, tunes
from qdeploy.modeling.activations import BATCH_TOKENS, Activations, footprint
from qdeploy.modeling.blocks import Block, set_weight, shared_inputs
from qdeploy.modeling.followed import EVERY, Followed
from qdeploy.modeling.inputs import BlockCall, stopped
from qdeploy.modeling.residual import Reference, Targets
from qdeploy.planned import Plan
from qdeploy.quantized import QuantizedLinear
from qdeploy.solved import Solved, SolvedBlock
from qdeploy.solving import scaled, solve_layer
from qdeploy.stopwatch import part
from qdeploy.tuned import tuned

SOME_TOKENS = 1024
"""Tokens that are run beside the others, for what transforms compare."""


@part("solve")
def quantize_without_data(block: Block, plan: Plan, *, group: Group = ALONE) -> SolvedBlock:
    """Solve the layers of a materialized block whose methods look at weights alone."""
    linears = block.linears()
    return SolvedBlock(
        {name: solve_layer(name, linears, None, plan, group) for name in linears if name in plan}
    )


def quantize_with_data(
    call: BlockCall,
    activations: Activations,
    plan: Plan,
    *,
    true_sequential: bool,
    outputs: bool,
    reference: Reference | None = None,
    kv_cache: bool = False,
    group: Group = ALONE,
) -> SolvedBlock:
    """Solve the layers of a materialized block and put the quantized weights in place.

    Args:
        call: how the block is called.
        activations: the block's inputs for this process's samples.
        plan: see `Plan`.
        true_sequential: let each layer see the quantized layers before it, not the 16-bit ones.
        outputs: replace `activations` with the quantized block's outputs.
        reference: the 16-bit model's hidden states, for methods that want a target; run on.
        kv_cache: find scales for the keys and values of the quantized block.
        group: the processes that have the other samples.
    """
    if not any(plan[name].needs_data for name in call.block.linears() if name in plan):
        return _quantize_unseen(call, activations, plan, outputs, reference, kv_cache, group)
    run = _Run(call, activations, plan, reference, group, in_order=true_sequential, kv_cache=kv_cache)
    at_once = true_sequential and not run.is_tuned
    with run.targets.watching():
        if true_sequential:
            states = activations.resident_bytes + (reference.resident_bytes if reference else 0)
            room = activations.budget.inside(states)
            run.solve_in_order(run.may_halt(room), outputs=outputs and at_once)
        else:
            run.solve_together()
    if run.is_tuned and reference:
        run.tune(reference.outputs)
    run.see_cache()
    if outputs and not at_once:
        propagate(call, activations)
    return run.result()


def _quantize_unseen(
    call: BlockCall,
    activations: Activations,
    plan: Plan,
    outputs: bool,
    reference: Reference | None,
    kv_cache: bool,
    group: Group,
) -> SolvedBlock:
    """The same where no layer's method looks at data, but later blocks, or scales for the cache, need it."""
    if reference:
        reference.run(call, activations)
    solved, linears = quantize_without_data(call.block, plan, group=group), call.block.linears()
    for name, found in solved.layers.items():
        set_weight(linears[name], found.solution.quantized.dequantize())
    if kv_cache:
        solved = replace(solved, kv_cache=cache_scales(call, activations, group))
    if outputs:
        propagate(call, activations)
    return solved


@part("forward")
def propagate(call: BlockCall, activations: Activations, batches: Iterable[slice] | None = None) -> None:
    """Run the block and put its outputs in the place of its inputs, in some micro-batches or all."""
    device = _device(call.block)
    for samples in activations.batches() if batches is None else batches:
        activations[samples] = call(activations[samples].to(device)).cpu()


def followed_every(plan: Plan) -> int | None:
    """Of how many samples one runs through the 16-bit model too, beside the quantized one; None for none."""
    if any(tunes(planned.rounder) for planned in plan.values()):
        return 1
    return EVERY if any(needs_reference(planned.rounder) for planned in plan.values()) else None


def reference_for(
    plan: Plan, activations: Activations, offset: int = 0, group: Group = ALONE
) -> Reference | None:
    """The 16-bit model beside the quantized one, if a method needs it; arguments as of `Reference`."""
    every = followed_every(plan)
    if every is None:
        return None
    return Reference(activations, offset, group, every=every, always=every == 1)


class _Run:
    """One block being quantized: ways to get at the inputs of its layers, and what is solved so far."""

    def __init__(
        self,
        call: BlockCall,
        activations: Activations,
        plan: Plan,
        reference: Reference | None,
        processes: Group,
        *,
        in_order: bool,
        kv_cache: bool,
    ) -> None:
        self.kv_cache: dict[str, Tensor] | None = None if kv_cache else {}
        self.call, self.activations, self.plan, self.processes = call, activations, plan, processes
        self.device = _device(call.block)
        self.linears = call.block.linears()
        self.solved: dict[str, Solved] = {}
        self.tuned: dict[str, TunedLayer] = {}
        self.targets = self._targets(reference, in_order)
        with part("forward"):
            seen = shared_inputs(call.block, lambda: call(activations[:1].to(self.device)))
        groups = processes.share(seen)
        called = {name for group in groups for name in group}
        self.groups = [group for group in groups if any(name in plan for name in group)]
        self.idle = [name for name in self.linears if name not in called]
        some = partial(_some_inputs, activations, self.targets, self.device)
        with part("forward"):
            self.folding = Folding(call, some, groups, plan, processes)

    def result(self) -> SolvedBlock:
        """What the block becomes, once all its layers are solved."""
        layers, divided = dict(self.solved), self.folding.divided
        for name in layers.keys() & divided.keys():
            layers[name] = layers[name].divided_by(divided[name])
        return SolvedBlock(layers, divided, self.folding.plus_one, self.kv_cache or {})

    def see_cache(self) -> None:
        """Find scales for keys and values if they are wanted and not found yet: before inputs are lost."""
        if self.kv_cache is None:
            with self.targets.aside():
                self.kv_cache = cache_scales(self.call, self.activations, self.processes)

    @property
    def is_tuned(self) -> bool:
        """Whether some of the block's layers are tuned together once all are solved."""
        return any(name in self.plan and tunes(self.plan[name].rounder) for name in self.linears)

    @part("tune")
    def tune(self, outputs: Activations) -> None:
        """Let methods that work on the whole block change what was solved, toward these outputs."""
        self.solved |= tuned(
            self.call, self.activations, outputs, self.tuned, self.solved, self.plan, self.processes
        )

    def _inputs(self, group: Sequence[str]) -> Gathered:
        samples, length, _ = self.activations.shape
        static = any(name in self.plan and self.plan[name].scheme.needs_data for name in group)
        tokens = samples * length if static or self.folding.transforms(group) else 0
        return Gathered(group, self.linears, self.targets, tokens)

    def _targets(self, reference: Reference | None, in_order: bool) -> Targets:
        """For all writers in order; together, none would see what another makes up for, so for the last."""
        after = reference.run(self.call, self.activations) if reference else {}
        asked = {
            writer: held
            for writer, held in after.items()
            if writer.name in self.plan and needs_reference(self.plan[writer.name].rounder)
        }
        if not in_order:
            asked = dict(list(asked.items())[-1:])
        return Targets(self.call, self.activations, asked, reference.followed if reference else Followed(0))

    def may_halt(self, room: int) -> int:
        """How many micro-batches may halt inside the block in `room` bytes."""
        batches = sum(1 for _ in self.activations.batches())
        found = footprint(self.call.block.features, self.activations.shape)
        return found.halting(batches, room, solving_bytes(self.linears, self.plan))

    def solve_in_order(self, halting_batches: int, *, outputs: bool) -> None:
        """Group after group of layers, each seeing the quantized ones before it.

        As many micro-batches as there is memory for run once, halting at each group until it is quantized;
        the others run again for each group, up to it. Either way a Hessian takes in the same inputs in the
        same order, so that the codes do not depend on the memory.
        """
        batches = list(self.activations.batches())
        once, again = batches[:halting_batches], batches[halting_batches:]
        with halting(self._forwards(once)) as forwards:
            for group in self.groups:
                inputs = self._inputs(group)
                self._advance(zip(forwards, once, strict=True), group, inputs)
                self._take_in([group], [inputs], again)
                self._solve(group, inputs)
            self._solve(self.idle, None)
            if outputs:
                self.see_cache()
                self._end(forwards)
                propagate(self.call, self.activations, again)

    @staticmethod
    @part("forward")
    def _end(forwards: Sequence[Halting]) -> None:
        """Let each forward go on to the block's output."""
        for forward in forwards:
            forward.advance()

    @part("forward")
    def _advance(
        self, forwards: Iterable[tuple[Halting, slice]], group: Sequence[str], inputs: Gathered
    ) -> None:
        """Let the forward of each micro-batch go on to `group` and halt there."""

        def observe(_: int, x: Tensor) -> None:
            inputs.add(x)
            Halting.halt()

        with self._watched([group], observe):
            for forward, samples in forwards:
                self.targets.at(samples)
                forward.advance()

    def solve_together(self) -> None:
        """From one forward of the 16-bit block."""
        inputs = [self._inputs(group) for group in self.groups]
        self._take_in(self.groups, inputs, self.activations.batches())
        for group, seen in zip(self.groups, inputs, strict=True):
            self._solve(group, seen)
        self._solve(self.idle, None)

    @part("forward")
    def _take_in(
        self, groups: Sequence[Sequence[str]], inputs: Sequence[Gathered], batches: Iterable[slice]
    ) -> None:
        """Add what the groups read to their Hessians; the block runs only as far as the last group."""
        for samples in batches:
            self.targets.at(samples)
            with stopped() as stop:

                def observe(group: int, x: Tensor, stop: Callable[[], None] = stop) -> None:
                    inputs[group].add(x)
                    if group == len(inputs) - 1:
                        stop()

                with self._watched(groups, observe):
                    self.call(self.activations[samples].to(self.device))
            self.targets.forget()

    @contextmanager
    def _watched(
        self, groups: Sequence[Sequence[str]], observe: Callable[[int, Tensor], None]
    ) -> Iterator[None]:
        """Call `observe` with the position of a group and its input before its first layer runs."""

        def watch(group: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda _, args: observe(group, args[0])

        handles = [
            self.linears[names[0]].register_forward_pre_hook(watch(group))
            for group, names in enumerate(groups)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _forwards(self, batches: Iterable[slice]) -> list[Callable[[], None]]:
        """One forward for each micro-batch, which puts its output in the place of its input."""

        def forward(samples: slice) -> None:
            states = self.activations[samples].to(self.device)
            self.activations[samples] = self.call(states).cpu()

        return [partial(forward, samples) for samples in batches]

    @part("solve")
    def _solve(self, names: Sequence[str], inputs: Gathered | None) -> None:
        s = left_out = None
        solved: dict[str, Quantized] = {}
        if inputs is not None:
            inputs.merge(self.processes)
            s, left_out = self._scale(names, inputs), self.folding.left_out(names)
        for name in names:
            if name not in self.plan:
                continue
            found = solve_layer(name, self.linears, inputs, self.plan, self.processes, s)
            self.solved[name] = found.with_word(left_out and f"{self.plan[name].method}: {name}: {left_out}")
            solved[name] = found.solution.quantized
        for name, quantized in solved.items():
            if isinstance(quantized, QuantizedLinear) and tunes(self.plan[name].rounder):
                whole, share = scaled(self.linears[name], s), inputs.hessian.share if inputs else 0.0
                self.tuned[name] = TunedLayer(self.linears[name], whole, quantized, s, share)
            weight = quantized.dequantize()
            set_weight(self.linears[name], weight if s is None else weight / s)

    def _scale(self, names: Sequence[str], inputs: Gathered) -> Tensor | None:
        """Let the transforms of layers that share an input scale its channels; returns s [K] if they do."""
        if inputs.channels is None:
            return None
        quantized = {name: found.solution.quantized for name, found in self.solved.items()}
        s = self.folding.scale(names, inputs.channels, inputs.hessian, quantized)
        if s is not None:
            inputs.divide(s)
        return s


def _some_inputs(activations: Activations, targets: Targets, device: torch.device) -> Iterator[Tensor]:
    """Micro-batches of a block's inputs, for forwards beside those that the walk needs."""
    few = -(-SOME_TOKENS // BATCH_TOKENS)
    with targets.aside():
        for samples in islice(activations.batches(), few):
            yield activations[samples].to(device)


def _device(block: Block) -> torch.device:
    return next(block.module.parameters()).device
