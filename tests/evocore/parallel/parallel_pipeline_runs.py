"""Pipelines of toy blocks on the ranks of a test: by our engine, by PyTorch's schedules, and in one process."""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed import pipelining

from evocore.backends.cpu.collectives import CPUCollectives
from evocore.backends.cpu.device import CPUBackend
from evocore.nn.layers import Linear
from evocore.nn.projecting import Projecting
from evocore.nn.roles import Role
from evocore.parallel.groups import Groups
from evocore.parallel.pipeline.deferral import DeferredProjections, WeightGradients
from evocore.parallel.pipeline.engine import Pipeline
from evocore.parallel.pipeline.schedules import Schedule
from evocore.parallel.recording import RecordingCollectives
from evocore.parallel.sizes import Sizes
from evocore.parallel.topology import Topology

WIDTH, TOKENS, MICRO_BATCHES = 8, 6, 4
CPU = torch.device("cpu")


class Block(Projecting):
    """A gated residual block; ``number`` seeds its weights."""

    def __init__(self, number: int, live: weakref.WeakSet | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(number)
            options = dict(dtype=torch.float32, init_std=0.3)
            self.up = Linear(WIDTH, 2 * WIDTH, role=Role.UP, bias=True, **options)
            self.down = Linear(2 * WIDTH, WIDTH, role=Role.DOWN, **options)
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=0.3)
        self.scale = nn.Parameter(torch.full((WIDTH,), 1.5))
        self.live, self.backwards, self.gradients = live, 0, None

    def forward(self, x_TD):
        scaled_TD = x_TD * self.scale
        if self.live is not None and torch.is_grad_enabled():
            scaled_TD = _Watched.apply(scaled_TD, self)
        (y_TF,) = self.fan_out(scaled_TD, [self.up])
        return x_TD + self.fan_in(F.gelu(y_TF), self.down)


class _Token:
    """Lives as long as what backward needs of one forward pass."""


class _Watched(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, block):
        ctx.block, ctx.token = block, _Token()
        block.live.add(ctx.token)
        block.peak = max(getattr(block, "peak", 0), len(block.live))
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        ctx.block.backwards += 1
        if ctx.block.gradients is not None:
            token = ctx.token
            ctx.block.gradients.do(lambda: token)
        return grad, None


def micro_batch(number, tokens=TOKENS):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(tokens, WIDTH, generator=generator), torch.randn(tokens, WIDTH, generator=generator)


def loss_of(y_TD, target_TD):
    return ((y_TD - target_TD) ** 2).sum()


class Stage:
    """Toy chunks for the engine; ``lengths`` are tokens of each micro-batch."""

    def __init__(self, blocks, lengths):
        self.blocks, self.lengths, self.losses, self.order = blocks, lengths, {}, []

    def forward(self, chunk, micro, carried):
        x, target = micro_batch(micro, self.lengths[micro])
        y = self.blocks[chunk](x if carried is None else carried[0])
        if chunk < max(self.blocks):
            self.order.append((chunk, micro))
        if chunk < dist.get_world_size() * len(self.blocks) - 1:
            return (y,)
        loss = loss_of(y, target)
        self.losses[micro] = loss.item()
        return (loss,)

    def begin_backward(self, micro):
        pass

    def carried(self, micro):
        return (torch.empty(self.lengths[micro], WIDTH, device="meta"),)


def _pipeline(schedule, collectives=None):
    """The engine of this rank and where its weights' gradients go."""
    world = dist.get_world_size()
    groups = Groups(
        Topology(Sizes(world=world, pipeline=world)), dist.get_rank(), CPUBackend(), collectives or CPUCollectives()
    )
    gradients = WeightGradients() if schedule.splits_backward else None
    engine = Pipeline(schedule, groups.get("pipeline"), groups.get("pipeline_down"), gradients)
    engine.open_channels(CPU)
    return engine, gradients


def _blocks(engine, gradients, live=None):
    blocks = {chunk: Block(chunk, live) for chunk in engine.schedule.chunks_of(engine.stage)}
    if gradients is not None:
        gradients.deliver = _deliver
        deferred = DeferredProjections(gradients)
        for block in blocks.values():
            block.fan_out, block.fan_in, block.gradients = deferred.fan_out, deferred.fan_in, gradients
    return blocks


def _deliver(parameter, gradient):
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def ours(name, chunks, lengths, *, steps=1):
    """Losses of the last step by micro-batch, gradients by chunk, and losses of an evaluation in between."""
    engine, gradients = _pipeline(Schedule(name, dist.get_world_size(), chunks))
    blocks = _blocks(engine, gradients)
    for _ in range(steps):
        for block in blocks.values():
            block.zero_grad()
        evaluated = Stage(blocks, lengths)
        engine.evaluate(evaluated, len(lengths), CPU)
        stage = Stage(blocks, lengths)
        engine.train(stage, len(lengths), CPU)
    return stage.losses, _gradients(blocks), evaluated.losses


def theirs(name, chunks, count):
    """Likewise by PyTorch, with one shape."""
    world, rank = dist.get_world_size(), dist.get_rank()
    place = Schedule(name, world, chunks)
    blocks = {chunk: Block(chunk) for chunk in place.chunks_of(rank)}
    stages = [
        pipelining.PipelineStage(block, chunk, world * chunks, CPU, input_args=micro_batch(0)[:1])
        for chunk, block in blocks.items()
    ]
    kinds = {
        "1F1B": pipelining.Schedule1F1B,
        "interleaved": pipelining.ScheduleInterleaved1F1B,
        "ZBV": pipelining.ScheduleZBVZeroBubble,
    }
    schedule = kinds[name](
        stages[0] if chunks == 1 else stages, n_microbatches=count, loss_fn=loss_of, scale_grads=False
    )
    batches = [micro_batch(number) for number in range(count)]
    x, target = (torch.cat(parts) for parts in zip(*batches, strict=True))
    losses = []
    first, last = 0 in blocks, world * chunks - 1 in blocks
    schedule.step(*([x] if first else []), **(dict(target=target, losses=losses) if last else {}))
    return dict(enumerate(loss.item() for loss in losses)), _gradients(blocks)


def alone(chunks, lengths):
    """All chunks in one process."""
    blocks = {chunk: Block(chunk) for chunk in range(chunks)}
    losses = {}
    for number, length in enumerate(lengths):
        x, target = micro_batch(number, length)
        for block in blocks.values():
            x = block(x)
        loss = loss_of(x, target)
        loss.backward()
        losses[number] = loss.item()
    return losses, _gradients(blocks)


def _gradients(blocks):
    return {
        (chunk, name): parameter.grad
        for chunk, block in blocks.items()
        for name, parameter in block.named_parameters()
    }


def watched(name, chunks, count):
    """The most live passes at a time, the bound, and how often each block's own backward ran."""
    engine, gradients = _pipeline(Schedule(name, dist.get_world_size(), chunks))
    live: weakref.WeakSet = weakref.WeakSet()
    blocks = _blocks(engine, gradients, live)
    gc.collect()
    gc.disable()  # what is kept is kept by references, not by circles of them
    try:
        engine.train(Stage(blocks, [TOKENS] * count), count, CPU)
        left = len(live)
    finally:
        gc.enable()
    peak = max(block.peak for block in blocks.values())
    return peak, engine.schedule.live_bound(engine.stage), [block.backwards for block in blocks.values()], left


def last_of(name, chunks, count):
    """Gradients of each parameter that arrived outside and inside of what was announced as the last."""
    engine, gradients = _pipeline(Schedule(name, dist.get_world_size(), chunks))
    blocks = _blocks(engine, gradients)
    inside, told = [False], {}

    @contextmanager
    def last():
        inside[0] = True
        yield
        inside[0] = False

    names = {}
    for chunk, block in blocks.items():
        for key, parameter in block.named_parameters():
            names[parameter] = chunk, key
            if gradients is None or "weight" not in key:
                parameter.register_post_accumulate_grad_hook(
                    lambda parameter: told.setdefault(names[parameter], []).append(inside[0])
                )
    if gradients is not None:
        gradients.deliver = lambda parameter, _: told.setdefault(names[parameter], []).append(inside[0])
    engine.train(Stage(blocks, [TOKENS] * count), count, CPU, last_gradients=last)
    return told


def messages(name, chunks, count):
    """Exchanges of a step by kind, and whether a receive was ever under way while a chunk computed."""
    recorder = RecordingCollectives(CPUCollectives())
    engine, gradients = _pipeline(Schedule(name, dist.get_world_size(), chunks), recorder)
    recorder.clear()
    blocks = _blocks(engine, gradients)
    for block in blocks.values():
        block.register_forward_pre_hook(lambda *_: recorder.mark("computes"))
    engine.train(Stage(blocks, [TOKENS] * count), count, CPU)
    counts, under_way, overlapped = {}, set(), 0
    for event in recorder.events:
        if event.kind == "mark":
            overlapped += bool(under_way)
        elif event.kind == "start":
            counts[event.op] = counts.get(event.op, 0) + 1
            under_way |= {event.number} if event.op == "recv" else set()
        else:
            under_way.discard(event.number)
    return counts, overlapped
