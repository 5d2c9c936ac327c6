"""Which stage computes what, in which order: tables of actions, one list per stage, and nothing else.

The model is cut into chunks, numbered from its first layer to its last. Each stage holds one or several of them:

- ``1F1B``: one chunk each. After a warm-up, every forward pass is followed by the backward pass of the oldest
  micro-batch (Narayanan et al., 2019).
- ``interleaved``: several chunks each, dealt round-robin, so that bubbles shrink by their number (Narayanan et al.,
  2021, section 2.2). Micro-batches go through the chunks in rounds.
- ``ZBH1``: as 1F1B, but backward is taken apart: gradients of activations go on at once, those of weights fill what
  would be bubbles, within the memory of 1F1B (Qi et al., 2024a, section 3).
- ``ZBV``: as ZBH1 with two chunks each, laid out as a V: the first stage also holds the last chunk, so that backward
  begins where forward ends (Qi et al., 2024b).

Sizes: P stages, C chunks of a stage, M micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["F", "B", "I", "W"]
SCHEDULES = ("1F1B", "interleaved", "ZBH1", "ZBV")


class Action(NamedTuple):
    """One computation of a stage.

    Attributes:
        kind: ``F`` forward, ``B`` the whole of backward, ``I`` gradients of activations, ``W`` those of weights.
        chunk: number of the chunk, counted through the model.
        micro: number of the micro-batch.
    """

    kind: Kind
    chunk: int
    micro: int

    def __str__(self) -> str:
        return f"{self.kind}{self.chunk}.{self.micro}"

    @property
    def goes_back(self) -> bool:
        """Whether it yields the gradient for which the chunk before waits."""
        return self.kind in ("B", "I")


Table = list[Action]
"""What one stage does, in order."""


@dataclass(frozen=True)
class Schedule:
    """A schedule for a number of stages.

    Args:
        name: one of ``SCHEDULES``.
        stages: P.
        chunks: C, of each stage: 1 for 1F1B and ZBH1, 2 for ZBV.
    """

    name: str
    stages: int
    chunks: int = 1

    def __post_init__(self) -> None:
        fixed = {"1F1B": 1, "ZBH1": 1, "ZBV": 2}
        if self.name not in SCHEDULES or self.stages < 1 or self.chunks < 1:
            raise ValueError(f"{self}: one of {', '.join(SCHEDULES)}, of one stage and chunk or more")
        if self.chunks != fixed.get(self.name, self.chunks):
            raise ValueError(f"{self}: {self.name} has {fixed[self.name]} chunk(s) on each stage")

    @property
    def total_chunks(self) -> int:
        """Of the whole model."""
        return self.stages * self.chunks

    @property
    def splits_backward(self) -> bool:
        """Whether gradients of weights are computed apart from those of activations."""
        return self.name in ("ZBH1", "ZBV")

    def stage_of(self, chunk: int) -> int:
        """Which stage holds a chunk."""
        along, place = divmod(chunk, self.stages)
        return self.stages - 1 - place if self.name == "ZBV" and along == 1 else place

    def chunks_of(self, stage: int) -> tuple[int, ...]:
        """The chunks that a stage holds, ascending."""
        return tuple(chunk for chunk in range(self.total_chunks) if self.stage_of(chunk) == stage)

    def live_bound(self, stage: int) -> int:
        """The most chunks' activations that a stage ever keeps, however many micro-batches there are.

        What waits for the gradients of its weights counts as well.
        """
        if self.name == "1F1B":
            return self.stages - stage
        if self.name == "interleaved":
            return 2 * (self.stages - 1 - stage) + (self.chunks - 1) * (2 * self.stages - 1) + 1
        return self.stages if self.name == "ZBH1" else 2 * self.stages

    def tables(self, micro_batches: int) -> list[Table]:
        """One table per stage for M micro-batches, 1 or more."""
        make = {"1F1B": _one_f_one_b, "interleaved": _interleaved, "ZBH1": _zb_h1, "ZBV": _zb_v}[self.name]
        return [list(make(self, stage, micro_batches)) for stage in range(self.stages)]

    def forward_tables(self, micro_batches: int) -> list[Table]:
        """Likewise for an evaluation, which has no backward."""
        return [[action for action in table if action.kind == "F"] for table in self.tables(micro_batches)]


def _one_f_one_b(schedule: Schedule, stage: int, count: int) -> Iterator[Action]:
    ahead = min(schedule.stages - 1 - stage, count)
    for micro in range(ahead):
        yield Action("F", stage, micro)
    for micro in range(ahead, count):
        yield Action("F", stage, micro)
        yield Action("B", stage, micro - ahead)
    for micro in range(count - ahead, count):
        yield Action("B", stage, micro)


def _interleaved(schedule: Schedule, stage: int, count: int) -> Iterator[Action]:
    rounds = _rounds(count, schedule.stages)
    chunks = schedule.chunks_of(stage)
    forward = [Action("F", chunk, micro) for round_ in rounds for chunk in chunks for micro in round_]
    backward = [Action("B", chunk, micro) for round_ in rounds for chunk in reversed(chunks) for micro in round_]
    # The first backward comes when the first micro-batch has been through all chunks, and to the end and back.
    ahead = (schedule.chunks - 1) * len(rounds[0]) + 2 * (schedule.stages - 1 - stage)
    ahead = min(ahead, len(forward))
    yield from forward[:ahead]
    for begun, ended in zip(forward[ahead:], backward, strict=False):
        yield begun
        yield ended
    yield from backward[len(forward) - ahead :]


def _rounds(count: int, stages: int) -> list[range]:
    """Micro-batches in groups of P or a little more, the larger ones first; one group if they are fewer than P."""
    number = max(1, count // stages)
    size, rest = divmod(count, number)
    edges = [round_ * size + min(round_, rest) for round_ in range(number + 1)]
    return [range(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


def _zb_h1(schedule: Schedule, stage: int, count: int) -> Iterator[Action]:
    ahead = min(schedule.stages - 1 - stage, count)
    waiting = 0  # the micro-batch whose weights' gradients come next
    for action in _one_f_one_b(schedule, stage, count):
        if action.kind == "F":
            yield action
            continue
        yield Action("I", stage, action.micro)
        # While forwards are left, as many gradients of weights are put off as there are bubbles to fill at the end.
        if action.micro - waiting >= stage or action.micro >= count - ahead:
            yield Action("W", stage, waiting)
            waiting += 1
    for micro in range(waiting, count):
        yield Action("W", stage, micro)


def _zb_v(schedule: Schedule, stage: int, count: int) -> Iterator[Action]:
    """A fixed pattern for 2 P - 1 micro-batches or more; of fewer, those that do not exist are left out."""
    for action in _v_pattern(schedule, stage, max(2 * schedule.stages - 1, count)):
        if action.micro < count:
            yield action


def _v_pattern(schedule: Schedule, stage: int, count: int) -> Iterator[Action]:
    down, up = schedule.chunks_of(stage)
    done: dict[tuple[Kind, int], int] = {}

    def each(*actions: tuple[Kind, int]) -> Iterator[Action]:
        """Each of them for the next micro-batch that it was not done for."""
        for kind, chunk in actions:
            micro = done.get((kind, chunk), 0)
            done[kind, chunk] = micro + 1
            yield Action(kind, chunk, micro)

    def left(kind: Kind, chunk: int) -> int:
        return count - done.get((kind, chunk), 0)

    from_end = schedule.stages - stage
    for _ in range(2 * from_end - 1):  # the V fills: down to the last stage ...
        yield from each(("F", down))
    for _ in range(stage):  # ... and up again
        yield from each(("F", up), ("F", down))
    for _ in range(from_end):
        yield from each(("F", up), ("I", up), ("W", up))
    while left("F", up):
        if left("F", down):
            yield from each(("F", down))
        yield from each(("I", down), ("W", down), ("F", up), ("I", up), ("W", up))
    for _ in range(stage):  # the V runs empty: what others wait for comes first
        yield from each(("I", down), ("I", up))
    for _ in range(from_end):
        yield from each(("I", down), ("W", down))
    for chunk in (up, down):
        while left("W", chunk):
            yield from each(("W", chunk))
