"""The part of ``evocore topology`` that draws a pipeline schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def show_schedule(
    name: str, stages: int, micro: int, chunks: int | None, svg: Path | None, *, as_json: bool = False
) -> None:
    """Print who computes what when, or draw it into a file.

    Args:
        name: one of ``SCHEDULES``, in any case.
        chunks: of each stage; None is what the schedule needs.

    Raises:
        UserError: if there is no such schedule, or not with so many chunks.
    """
    from evocore.cli.output import print_json
    from evocore.errors import UserError
    from evocore.parallel.pipeline.checking import bubble, peak_live, timeline
    from evocore.parallel.pipeline.drawing import svg as drawn
    from evocore.parallel.pipeline.drawing import text_rows

    schedule = _schedule(name, stages, chunks)
    tables = schedule.tables(micro)
    timed = timeline(schedule, tables)
    facts: dict[str, Any] = {
        "schedule": schedule.name,
        "stages": stages,
        "chunks": schedule.chunks,
        "micro_batches": micro,
        "bubble": bubble(timed, stages),
        "live_chunks": [peak_live(table) for table in tables],
        "actions": [
            {"stage": one.stage, **one.action._asdict(), "start": one.start, "end": one.end} for one in timed
        ],
    }
    title = (
        f"{schedule.name}: {stages} stages of {schedule.chunks} chunk{'s' * (schedule.chunks > 1)}, {micro} "
        f"micro-batches, bubble {facts['bubble']:.1%}"
    )
    if svg is not None:
        try:
            svg.write_text(drawn(timed, schedule, title))
        except OSError as error:
            raise UserError(
                f"--svg {svg}: {error.strerror}", "a file that can be written", "name another one"
            ) from None
    if as_json:
        print_json(facts)
    elif svg is not None:
        print(svg)
    else:
        print(title)
        print(f"most chunks kept at a time: {' '.join(map(str, facts['live_chunks']))}")
        print("F forward, B backward = I gradients of activations + W gradients of weights; F, I and W take as long")
        print()
        for stage, row in enumerate(text_rows(timed, schedule)):
            print(f"stage {stage:<{len(str(stages - 1))}}  {row}")


def _schedule(name: str, stages: int, chunks: int | None) -> Any:
    from evocore.errors import UserError
    from evocore.parallel.pipeline.schedules import SCHEDULES, Schedule

    known = {one.lower(): one for one in SCHEDULES}
    if name.lower() not in known:
        raise UserError(f"--schedule {name}", f"one of {', '.join(SCHEDULES)}", "name one of them")
    usual = {"interleaved": 2, "ZBV": 2}.get(known[name.lower()], 1)
    try:
        return Schedule(known[name.lower()], stages, usual if chunks is None else chunks)
    except ValueError:
        raise UserError(
            f"--chunks {chunks} with --schedule {name}", f"{usual} chunk(s) on each stage", "leave out --chunks"
        ) from None
