"""Whether tables of actions are a schedule, and what they look like in time: by simulation, without any rank.

A table is right if every chunk sees every micro-batch once forwards and once backwards, and if the stages, each in
its own order, never wait for one another in a circle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evocore.parallel.pipeline.schedules import Action, Schedule, Table


class ScheduleError(ValueError):
    """Tables that cannot be executed, or do not compute everything once."""


@dataclass(frozen=True)
class Timed:
    """An action and when it runs, in the units of the durations."""

    stage: int
    action: Action
    start: float
    end: float


DURATIONS: Mapping[str, float] = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}
"""Of a chunk, where a stage has one: backward takes twice as long as forward, half of it for the weights."""


def needs(action: Action, schedule: Schedule) -> list[tuple[str, int, int]]:
    """What must have been computed before: (F, I or W, chunk, micro-batch); ``I`` stands for ``B``, too."""
    kind, chunk, micro = action
    if kind == "F":
        return [("F", chunk - 1, micro)] if chunk else []
    if kind == "W":
        return [("I", chunk, micro)]
    last = chunk == schedule.total_chunks - 1
    return [("F", chunk, micro)] if last else [("F", chunk, micro), ("I", chunk + 1, micro)]


def timeline(
    schedule: Schedule,
    tables: Sequence[Table],
    durations: Mapping[str, float] | Callable[[Action], float] = DURATIONS,
    message: float = 0.0,
) -> list[Timed]:
    """When each action runs if it starts as soon as its stage and its inputs are there, in order of time.

    Args:
        durations: of the actions of each kind, or of each action.
        message: from the end of an action on one stage until another stage has its result.

    Raises:
        ScheduleError: if stages wait for one another in a circle, or for what nobody computes.
    """
    lasts = durations if callable(durations) else lambda action: durations[action.kind]
    done: dict[tuple[str, int, int], tuple[float, int]] = {}
    free = [0.0] * schedule.stages
    places = [0] * schedule.stages
    found: list[Timed] = []
    while any(place < len(table) for place, table in zip(places, tables, strict=True)):
        progressed = False
        for stage, table in enumerate(tables):
            while places[stage] < len(table):
                action = table[places[stage]]
                wanted = needs(action, schedule)
                if any(one not in done for one in wanted):
                    break
                there = [end + message * (source != stage) for end, source in (done[one] for one in wanted)]
                start = max([free[stage], *there])
                end = start + lasts(action)
                done["I" if action.kind == "B" else action.kind, action.chunk, action.micro] = end, stage
                found.append(Timed(stage, action, start, end))
                free[stage], places[stage], progressed = end, places[stage] + 1, True
        if not progressed:
            stuck = {
                stage: str(table[place])
                for stage, (place, table) in enumerate(zip(places, tables, strict=True))
                if place < len(table)
            }
            raise ScheduleError(f"stages wait for ever: the next actions are {stuck}")
    return sorted(found, key=lambda timed: (timed.start, timed.stage))


def check(schedule: Schedule, tables: Sequence[Table], micro_batches: int, *, backward: bool = True) -> None:
    """Refuse tables that do not compute a step of ``micro_batches``, or an evaluation without ``backward``.

    Raises:
        ScheduleError: naming what is wrong.
    """
    for stage, table in enumerate(tables):
        own = schedule.chunks_of(stage)
        done: dict[tuple[int, int], str] = {}
        for action in table:
            key = action.chunk, action.micro
            if action.chunk not in own or not 0 <= action.micro < micro_batches:
                raise ScheduleError(f"stage {stage} has {action}: it holds chunks {own}")
            before = done.get(key, "")
            if action.kind not in {"": "F", "F": "BI", "FI": "W"}.get(before, ""):
                raise ScheduleError(f"stage {stage} has {action} after {before or 'nothing'} of the same")
            done[key] = before + action.kind
        complete = {"FB", "FIW"} if backward else {"F"}
        missing = [
            f"{chunk}.{micro}"
            for chunk in own
            for micro in range(micro_batches)
            if done.get((chunk, micro)) not in complete
        ]
        if missing:
            raise ScheduleError(f"stage {stage} does not complete {', '.join(missing)}")
        for chunk in own:
            _check_ends(stage, chunk, table)
    timeline(schedule, tables)


def _check_ends(stage: int, chunk: int, table: Table) -> None:
    """A chunk's last gradients of activations and of weights must be known: reductions start with them."""
    of_chunk = [action for action in table if action.chunk == chunk]
    ends = [action for action in of_chunk if action.kind in "BI"]
    weights = [action for action in of_chunk if action.kind in "BW"]
    if ends and ends[-1].kind == "B" and weights[-1].kind != "B":
        raise ScheduleError(f"stage {stage} has {weights[-1]} after the last backward of chunk {chunk}, {ends[-1]}")


def peak_live(table: Table) -> int:
    """The most (chunk, micro-batch) pairs whose activations are kept at a time: from F to B, or to W."""
    live = peak = 0
    for action in table:
        live += {"F": 1, "B": -1, "I": 0, "W": -1}[action.kind]
        peak = max(peak, live)
    return peak


def bubble(timed: Sequence[Timed], stages: int) -> float:
    """The share of all stages' time, from the first start to the last end, in which they compute nothing."""
    span = max(one.end for one in timed) - min(one.start for one in timed)
    busy = sum(one.end - one.start for one in timed)
    return 1.0 - busy / (span * stages)
