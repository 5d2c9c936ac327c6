"""What a stage sends and receives, derived from the tables of all stages.

Between two stages messages travel in the order in which the sender has them, so the receiver takes them in that
order, also those that it needs later. Nobody is told shapes or numbers: both ends know the tables.

A stage must keep what it sends until it has arrived, but never waits to find out: some later message from the same
stage was sent after that stage had used it. The tables say which; until then the message is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from evocore.parallel.pipeline.schedules import Action, Schedule, Table


class Message(NamedTuple):
    """What one chunk hands to the next, or its gradient to the one before.

    Attributes:
        kind: ``F`` an activation, ``I`` a gradient of one.
        chunk: which receives it.
        micro: number of the micro-batch.
    """

    kind: Literal["F", "I"]
    chunk: int
    micro: int


@dataclass(frozen=True)
class Step:
    """One action of a stage with what comes in before it and goes out after it.

    Attributes:
        needs: what it waits for; None if its input is on this stage.
        sends: what it yields for another stage, and for which one.
        kept: what it yields for this stage itself.
        arrived: earlier messages of this stage of which the arrival of ``needs`` tells that they have arrived.
    """

    action: Action
    needs: Message | None
    sends: tuple[Message, int] | None
    kept: Message | None
    arrived: tuple[Message, ...]


@dataclass(frozen=True)
class Program:
    """What one stage does and in which order messages come to it.

    Attributes:
        incoming: messages by sending stage, in the order in which they are sent.
    """

    steps: tuple[Step, ...]
    incoming: dict[int, tuple[Message, ...]]


def input_of(action: Action, schedule: Schedule) -> Message | None:
    """What an action gets from the chunk before it, or behind it."""
    if action.kind == "F":
        return Message("F", action.chunk, action.micro) if action.chunk else None
    if action.goes_back and action.chunk < schedule.total_chunks - 1:
        return Message("I", action.chunk, action.micro)
    return None


def output_of(action: Action, schedule: Schedule) -> Message | None:
    """What an action yields for the chunk behind it, or before it."""
    if action.kind == "F":
        return Message("F", action.chunk + 1, action.micro) if action.chunk < schedule.total_chunks - 1 else None
    return Message("I", action.chunk - 1, action.micro) if action.goes_back and action.chunk else None


def compile_tables(schedule: Schedule, tables: Sequence[Table]) -> list[Program]:
    """The program of each stage."""
    used, made = {}, {}
    for stage, table in enumerate(tables):
        for place, action in enumerate(table):
            if (message := input_of(action, schedule)) is not None:
                used[message] = stage, place
            if (message := output_of(action, schedule)) is not None:
                made[message] = stage, place
    return [_program(schedule, stage, table, used, made) for stage, table in enumerate(tables)]


_Places = dict[Message, tuple[int, int]]
"""Of the action that uses or makes a message: stage and place in its table."""


def _program(schedule: Schedule, stage: int, table: Table, used: _Places, made: _Places) -> Program:
    sent = [message for message, (source, _) in made.items() if source == stage and used[message][0] != stage]
    received = [message for message, (user, _) in used.items() if user == stage and made[message][0] != stage]
    received.sort(key=lambda message: made[message])
    incoming = {
        source: tuple(message for message in received if made[message][0] == source)
        for source in dict.fromkeys(made[message][0] for message in received)
    }
    tells: dict[Message, list[Message]] = {}
    for message in sent:
        other, place = used[message]
        later = [answer for answer in incoming.get(other, ()) if made[answer][1] >= place]
        if later:
            tells.setdefault(min(later, key=lambda answer: used[answer][1]), []).append(message)
    steps = []
    for action in table:
        needed, yielded = input_of(action, schedule), output_of(action, schedule)
        comes = needed is not None and made[needed][0] != stage
        goes = yielded is not None and used[yielded][0] != stage
        steps.append(
            Step(
                action,
                needs=needed if comes else None,
                sends=(yielded, used[yielded][0]) if goes and yielded is not None else None,
                kept=yielded if not goes else None,
                arrived=tuple(tells.get(needed, ())) if needed is not None else (),
            )
        )
    return Program(tuple(steps), incoming)
