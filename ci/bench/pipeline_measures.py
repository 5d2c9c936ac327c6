"""What the ranks of the benchmark of pipelines do: train by evocore's engine and by PyTorch's, and time each action.

Both engines run the same chunks of the same model on the same micro-batches; neither updates weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from parallel_measures import Timed, Turns, in_turns
from parallel_trainings import Sizes, Training, backend_named, built
from torch import Tensor, nn
from torch.distributed import pipelining

from evocore.ops.attention import CuSeqlens
from evocore.parallel.pipeline.engine import Pipeline
from evocore.parallel.pipeline.schedules import Action, Schedule

PYTORCHS = {"1F1B": pipelining.Schedule1F1B, "interleaved": pipelining.ScheduleInterleaved1F1B}
Tensors = tuple[Tensor, ...]


def against_pytorch(sizes: Sizes, turns: Turns, name: str) -> dict[str, Timed]:
    """A step of a schedule by both engines."""
    part = Part.of(sizes, name)
    candidates = {"evocore": part.ours(), "PyTorch": part.pytorchs()}
    return in_turns(candidates, turns, backend_named(sizes.backend))


@dataclass(frozen=True)
class Watched:
    """A step on one rank.

    Attributes:
        begin: when its first action began, on a clock that all processes of the machine share, in seconds.
        end: when all was done, likewise.
        seconds: of each action of this rank's table.
    """

    begin: float
    end: float
    seconds: dict[Action, float]


def watched(sizes: Sizes, turns: Turns, name: str, *, processor: bool) -> list[Watched]:
    """Steps of a schedule by evocore's engine.

    Args:
        processor: count the seconds in which this thread computes, not those that pass: what an action would take on
            a core of its own where ranks share cores.
    """
    part, clock = Part.of(sizes, name), time.thread_time if processor else time.perf_counter
    step, seconds, begins = part.ours().step, dict[Action, float](), list[float]()

    @contextmanager
    def watch(action: Action) -> Iterator[None]:
        begins.append(time.perf_counter())
        start = clock()
        yield
        seconds[action] = clock() - start

    part.engine.watch = watch
    found = []
    for number in range(turns.rounds + 1):
        dist.barrier()
        begins.clear()
        step()
        if number:  # the first one warms up
            found.append(Watched(begins[0], time.perf_counter(), dict(seconds)))
    return found


class Part(nn.Module):
    """This rank's chunks of a decoder, the micro-batches, and the engine that has connected them."""

    def __init__(self, sizes: Sizes, model: nn.Module, engine: Pipeline, chunks: list[range], device: Any) -> None:
        super().__init__()
        self.model, self.engine, self._chunks, self._device = model, engine, chunks, device
        batches = [sizes.batch(0, number) for number in range(sizes.micro_batches)]
        self._tokens = [batch.tokens_T.to(device) for batch in batches]
        self._labels = [batch.labels_T.to(device) for batch in batches]
        self._positions_T = batches[0].positions_T.to(device)
        self._documents = CuSeqlens.of(batches[0].cu_seqlens, device)
        self._weights_T = torch.full((sizes.tokens,), 1 / sizes.tokens / sizes.micro_batches, device=device)
        self.total = torch.zeros((), device=device)

    @classmethod
    def of(cls, sizes: Sizes, name: str) -> Part:
        """The part of a model of ``sizes`` that this rank has in the schedule ``name``."""
        mode = "1F1B" if name == "interleaved" else name
        _, runtime, model, device = built(sizes, pipeline=dict(size=dist.get_world_size(), mode=mode))
        assert runtime.layout.schedule.name == name, runtime.layout.schedule
        if runtime.layout.schedule.splits_backward:
            runtime.pipeline.gradients.deliver = _accumulate
        return cls(sizes, model, runtime.pipeline, list(runtime.layout.chunks), device)

    # --- what evocore's engine asks for -----------------------------------------------------------------------------

    def forward(self, chunk: int, micro: int, carried: Tensors | None) -> Tensors:
        found = self.run(chunk, self._tokens[micro], carried)
        if chunk < len(self._chunks) - 1:
            return found
        loss = self.loss(found, self._labels[micro])
        self.total += loss.detach()
        return (loss,)

    def begin_backward(self, micro: int) -> None:
        """Nothing here depends on it."""

    def carried(self, micro: int) -> Tensors:
        found: Tensors = self.model.carried(len(self._tokens[micro]))  # type: ignore[operator]
        return found

    # --- the model --------------------------------------------------------------------------------------------------

    def run(self, chunk: int, tokens_T: Tensor, carried: Tensors | None) -> Any:
        """What a chunk carries on, or the last one's output."""
        return self.model(tokens_T, self._positions_T, self._documents, layers=self._chunks[chunk], carried=carried)

    def loss(self, found: Any, labels_T: Tensor) -> Tensor:
        """The part of a micro-batch in the mean over all targets."""
        total: Tensor = self.model.loss(found, labels_T, self._weights_T).total  # type: ignore[operator]
        return total

    # --- candidates -------------------------------------------------------------------------------------------------

    def ours(self) -> Training:
        """A step by evocore's engine."""

        def train() -> None:
            self.engine.train(self, len(self._tokens), self._device)

        return self._training(train)

    def pytorchs(self) -> Training:
        """The same by PyTorch's."""
        schedule, count = self.engine.schedule, len(self._tokens)
        own = schedule.chunks_of(self.engine.stage)
        stages = [
            pipelining.PipelineStage(_Chunk(self, chunk), chunk, schedule.total_chunks, self._device) for chunk in own
        ]
        stages_or_one: Any = stages if schedule.name == "interleaved" else stages[0]
        engine = PYTORCHS[schedule.name](stages_or_one, n_microbatches=count, loss_fn=self.loss, scale_grads=False)
        inputs = [torch.cat(self._tokens)] if 0 in own else []
        last = dict(target=torch.cat(self._labels)) if schedule.total_chunks - 1 in own else {}

        def train() -> None:
            losses: list[Tensor] = []
            engine.step(*inputs, **last, **(dict(losses=losses) if last else {}))
            for loss in losses:
                self.total += loss.detach()

        return self._training(train)

    def _training(self, train: Callable[[], None]) -> Training:
        def step() -> Tensor:
            self.model.zero_grad()
            self.total.zero_()
            train()
            return self.total.clone()

        return Training(step)


class _Chunk(nn.Module):
    """A chunk as PyTorch's stages want one: what the chunk before carries, or tokens, to what it carries on."""

    def __init__(self, part: Part, chunk: int) -> None:
        super().__init__()
        self._part, self._chunk, self._none = [part], chunk, torch.empty(0, dtype=torch.long)

    def forward(self, *given: Tensor) -> Any:
        (part,) = self._part  # in a list, so that the chunk does not have all parameters of the stage
        return part.run(self._chunk, self._none if self._chunk else given[0], given if self._chunk else None)


def _accumulate(parameter: nn.Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def schedule_of(name: str, stages: int) -> Schedule:
    """With two chunks of each stage where there are several."""
    return Schedule(name, stages, chunks_of(name))


def chunks_of(name: str) -> int:
    """Chunks of each stage that the benchmark gives a schedule."""
    return 2 if name in ("interleaved", "ZBV") else 1
