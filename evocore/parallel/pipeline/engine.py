"""Executes a stage's table: computes, and exchanges with other stages what lies between two chunks.

Nothing here waits for a message that was sent, and the next one to be received is asked for before a computation
starts, so that messages travel while the stage computes. Messages to higher and to lower stages have channels of
their own: of two ranks one only sends on a channel and the other only receives, so that libraries that keep the order
of what a pair exchanges cannot lock.

What is kept of a micro-batch is what its backward needs: its inputs and the graph, not its outputs, which are only
held until they have arrived. All of it is gone as soon as the table says so, whatever the number of micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from evocore.ops.collectives import Handle
from evocore.parallel.groups import Group
from evocore.parallel.pipeline.deferral import WeightGradients, Work
from evocore.parallel.pipeline.messages import Message, Program, Step, compile_tables
from evocore.parallel.pipeline.schedules import Action, Schedule

Tensors = tuple[Tensor, ...]
ASKED_AHEAD = 4
"""Messages that are asked for before they are needed: whoever sends what nobody has asked for yet must come back to
it in the middle of a computation, which makes it late."""


class Chunks(Protocol):
    """What is computed: the chunks of one stage, for the micro-batches of one step or one part of an evaluation."""

    def forward(self, chunk: int, micro: int, carried: Tensors | None) -> Tensors:
        """Run a chunk on what the chunk before carries to it: None for the first chunk.

        Returns:
            What is carried on to the next chunk; of the last chunk the loss alone, a scalar to be differentiated.
        """
        ...

    def begin_backward(self, micro: int) -> None:
        """What comes next is a backward of this micro-batch, in which parts of its forward may be repeated."""
        ...

    def carried(self, micro: int) -> Tensors:
        """Tensors on the meta device like those between two chunks, the same for all chunks of a micro-batch."""
        ...


class _Arriving(NamedTuple):
    tensors: Tensors
    handles: list[Handle]


class Pipeline:
    """One stage among the stages of a pipeline; a model that is not cut is a pipeline of one stage.

    Args:
        schedule: of all stages.
        up: the ranks of the pipeline, in the order of their stages, for messages to higher stages.
        down: likewise, for messages to lower stages, over which nothing else travels.
        gradients: where backward leaves the gradients of weights if the schedule splits backward.
        finish_backward: waits for what a backward has left under way; called after each, before its result is sent.

    Attributes:
        stage: of this rank.
        is_last: whether it holds the last chunk, and so has the loss.
        watch: entered around what each action computes, without its messages: for clocks and profilers.
    """

    def __init__(
        self,
        schedule: Schedule,
        up: Group,
        down: Group,
        gradients: WeightGradients | None = None,
        finish_backward: Callable[[], None] = lambda: None,
    ) -> None:
        assert up.size == down.size == schedule.stages, (up, down, schedule)
        assert schedule.splits_backward == (gradients is not None), schedule
        self.schedule, self.stage = schedule, up.rank
        self._up, self._down, self._gradients = up, down, gradients
        self._finish_backward = finish_backward
        self.is_last = schedule.stage_of(schedule.total_chunks - 1) == self.stage
        self.watch: Callable[[Action], AbstractContextManager[None]] = lambda action: nullcontext()

    def open_channels(self, device: torch.device) -> None:
        """Exchange one number with the neighbours over each channel.

        Libraries connect two ranks at their first message, and both wait for it: here, where no one waits for another
        in a circle, instead of in the middle of a schedule.
        """
        number = torch.zeros(1, device=device)
        for group, ranks in ((self._up, range(self._up.size)), (self._down, range(self._down.size)[::-1])):
            for source, target in _pairs(list(ranks)):
                if self.stage == source:
                    group.send(number, target).wait()
                elif self.stage == target:
                    group.recv(number, source).wait()

    def train(
        self,
        chunks: Chunks,
        micro_batches: int,
        device: torch.device,
        *,
        last_gradients: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Forward and backward of all micro-batches of a step.

        Args:
            last_gradients: entered around what yields the last gradients of some parameters: the last backward of
                each chunk, and where backward is split the last computation of its weights' gradients, too.
        """
        program = _programs(self.schedule, micro_batches)[self.stage]
        self._run(program, chunks, device, last_gradients)

    def evaluate(self, chunks: Chunks, micro_batches: int, device: torch.device) -> None:
        """Forward of all of them, without gradients."""
        with torch.no_grad():
            program = _programs(self.schedule, micro_batches, backward=False)[self.stage]
            self._run(program, chunks, device, nullcontext)

    def _run(
        self,
        program: Program,
        chunks: Chunks,
        device: torch.device,
        last_gradients: Callable[[], AbstractContextManager[None]],
    ) -> None:
        run = _Run(self, program, chunks, device)
        last = _last_of_chunks(program.steps)
        for place, step in enumerate(program.steps):
            with last_gradients() if place in last else nullcontext():
                run.step(step)
        run.end()

    def sum_of_ends(self, tensor: Tensor) -> None:
        """Add up in place what the first and the last stage have, who call it at the same time."""
        first, last = 0, self.schedule.stages - 1
        theirs, other = torch.empty_like(tensor), last if self.stage == first else first
        arriving = self.group_to(other, self.stage).recv(theirs, other)
        self.group_to(self.stage, other).send(tensor, other).wait()
        arriving.wait()
        torch.add(tensor, theirs, out=tensor)

    def group_to(self, source: int, target: int) -> Group:
        """The channel from one stage to another."""
        return self._up if source < target else self._down

    @property
    def gradients(self) -> WeightGradients:
        """Of a schedule that splits backward."""
        assert self._gradients is not None
        return self._gradients

    def finish_backward(self) -> None:
        """Wait for what backward has left under way."""
        self._finish_backward()


@lru_cache(maxsize=64)
def _programs(schedule: Schedule, micro_batches: int, *, backward: bool = True) -> list[Program]:
    tables = schedule.tables(micro_batches) if backward else schedule.forward_tables(micro_batches)
    return compile_tables(schedule, tables)


def _pairs(stages: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Neighbours in an order of stages; the pair that closes the ring has the other direction."""
    yield from zip(stages, stages[1:], strict=False)
    if len(stages) > 2:
        yield stages[0], stages[-1]


def _last_of_chunks(steps: Sequence[Step]) -> set[int]:
    last: dict[tuple[int, str], int] = {}
    for place, step in enumerate(steps):
        if step.action.goes_back:
            last[step.action.chunk, "activations"] = place
        elif step.action.kind == "W":
            last[step.action.chunk, "weights"] = place
    return set(last.values())


class _Run:
    """What a stage holds between the first and the last action of a table."""

    def __init__(self, pipeline: Pipeline, program: Program, chunks: Chunks, device: torch.device) -> None:
        self._pipeline, self._program, self._chunks, self._device = pipeline, program, chunks, device
        self._asked = dict.fromkeys(program.incoming, 0)  # messages of each source that are on their way or here
        self._arriving: dict[Message, _Arriving] = {}
        self._local: dict[Message, Tensors] = {}
        self._sent: dict[Message, _Arriving] = {}
        self._inputs: dict[tuple[int, int], Tensors] = {}
        self._graphs: dict[tuple[int, int], Sequence[Tensor | GradientEdge]] = {}
        self._weights: dict[tuple[int, int], list[Work]] = {}
        self._places = {
            message: (source, place)
            for source, many in program.incoming.items()
            for place, message in enumerate(many)
        }
        self._order = [step.needs for step in program.steps if step.needs is not None]
        self._taken = 0

    def step(self, step: Step) -> None:
        """Run one action with what comes in before it and goes out after it."""
        self._ask()
        given = self._take(step)
        with self._pipeline.watch(step.action):
            found = self._compute(step.action, given)
        if step.sends is not None:
            message, target = step.sends
            self._send(message, target, found)
        elif step.kept is not None:
            self._local[step.kept] = found

    def end(self) -> None:
        """Wait until everything that was sent has arrived."""
        for sent in self._sent.values():
            for handle in sent.handles:
                handle.wait()
        assert not (self._arriving or self._local or self._inputs or self._graphs or self._weights)

    # --- messages ---------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Start to receive what is needed next, and what its senders send before it."""
        for needed in self._order[self._taken : self._taken + ASKED_AHEAD]:
            source, place = self._places[needed]
            group = self._pipeline.group_to(source, self._pipeline.stage)
            while self._asked[source] <= place:
                message = self._program.incoming[source][self._asked[source]]
                self._asked[source] += 1
                like = self._chunks.carried(message.micro)
                tensors = tuple(torch.empty_like(one, device=self._device) for one in like)
                self._arriving[message] = _Arriving(tensors, [group.recv(one, source) for one in tensors])

    def _take(self, step: Step) -> Tensors | None:
        """The input of an action, whether it comes from another stage or from this one."""
        if step.needs is None:
            kind, chunk, micro = step.action
            return None if kind == "W" else self._local.pop(Message("F" if kind == "F" else "I", chunk, micro), None)
        self._taken += 1
        found = self._arriving.pop(step.needs)
        for handle in found.handles:
            handle.wait()
        for message in step.arrived:
            for handle in self._sent.pop(message).handles:
                handle.wait()  # it has arrived: this only lets go of it
        return found.tensors

    def _send(self, message: Message, target: int, tensors: Tensors) -> None:
        group = self._pipeline.group_to(self._pipeline.stage, target)
        tensors = tuple(one.contiguous() for one in tensors)
        self._sent[message] = _Arriving(tensors, [group.send(one, target) for one in tensors])

    # --- computation ------------------------------------------------------------------------------------------------

    def _compute(self, action: Action, given: Tensors | None) -> Tensors:
        kind, chunk, micro = action
        if kind == "F":
            return self._forward(chunk, micro, given)
        if kind != "W":
            return self._backward(chunk, micro, given, split=kind == "I")
        with torch.no_grad():
            for work in self._weights.pop((chunk, micro)):
                work()
        self._pipeline.finish_backward()
        return ()

    def _forward(self, chunk: int, micro: int, given: Tensors | None) -> Tensors:
        grads = torch.is_grad_enabled()
        if given is not None and grads:
            self._inputs[chunk, micro] = given = tuple(one.detach().requires_grad_() for one in given)
        found = self._chunks.forward(chunk, micro, given)
        if chunk == self._pipeline.schedule.total_chunks - 1:
            if grads:
                self._graphs[chunk, micro] = found
            return ()
        if grads:
            self._graphs[chunk, micro] = [get_gradient_edge(one) for one in found]
        return tuple(one.detach() for one in found)

    def _backward(self, chunk: int, micro: int, given: Tensors | None, *, split: bool) -> Tensors:
        if split:
            self._pipeline.gradients.put_off()
        self._chunks.begin_backward(micro)
        torch.autograd.backward(self._graphs.pop((chunk, micro)), given)  # type: ignore[arg-type]
        if split:
            self._weights[chunk, micro] = self._pipeline.gradients.take()
        self._pipeline.finish_backward()
        inputs = self._inputs.pop((chunk, micro), ())
        return tuple(torch.zeros_like(one) if one.grad is None else one.grad for one in inputs)
