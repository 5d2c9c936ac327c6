"""Pictures of a schedule: who computes what when, and where nobody does."""

from __future__ import annotations

from collections.abc import Sequence

from evocore.parallel.pipeline.checking import Timed
from evocore.parallel.pipeline.schedules import Schedule

COLOURS = {"F": "#7aa6d8", "B": "#8cc084", "I": "#a9d6b0", "W": "#e8b46a"}
MEANINGS = {"F": "forward", "B": "backward", "I": "gradients of activations", "W": "gradients of weights"}
UNIT, ROW, LEFT, TOP = 28, 30, 72, 34
"""Pixels: of a unit of time, of a stage, and of what stands left and above."""


def label(timed: Timed, schedule: Schedule) -> str:
    """Kind and micro-batch, and which of a stage's chunks if it has several: ``F0``, ``B3b``."""
    name = f"{timed.action.kind}{timed.action.micro}"
    if schedule.chunks == 1:
        return name
    return name + chr(ord("a") + schedule.chunks_of(timed.stage).index(timed.action.chunk))


def text_rows(timed: Sequence[Timed], schedule: Schedule) -> list[str]:
    """One line per stage; every unit of time has the same width, and a bubble is dots. Times are whole numbers."""
    width = max(len(label(one, schedule)) for one in timed) + 1
    end = int(max(one.end for one in timed))
    rows = [["." * (width - 1) + " "] * end for _ in range(schedule.stages)]
    for one in timed:
        start, stop = int(one.start), int(one.end)
        shown = label(one, schedule).ljust(width * (stop - start) - 1, "-" if stop - start > 1 else " ") + " "
        rows[one.stage][start:stop] = [shown[place : place + width] for place in range(0, len(shown), width)]
    return ["".join(row).rstrip() for row in rows]


def svg(timed: Sequence[Timed], schedule: Schedule, title: str) -> str:
    """The same as a drawing; a stage's later chunks are lighter."""
    end = max(one.end for one in timed)
    width, bottom = LEFT + UNIT * end + 10, TOP + ROW * schedule.stages
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{bottom + 36:g}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="20" font-size="13">{title}</text>',
    ]
    for stage in range(schedule.stages):
        y = TOP + ROW * stage
        parts.append(f'<text x="8" y="{y + 18}">stage {stage}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{UNIT * end:g}" height="{ROW - 4}" fill="#eeeeee"/>')
    for one in timed:
        x, y, span = LEFT + UNIT * one.start, TOP + ROW * one.stage, UNIT * (one.end - one.start)
        place = schedule.chunks_of(one.stage).index(one.action.chunk)
        opacity = 1 - 0.5 * place / max(1, schedule.chunks - 1) if schedule.chunks > 1 else 1.0
        name = f"{MEANINGS[one.action.kind]}, chunk {one.action.chunk}, micro-batch {one.action.micro}"
        parts.append(
            f"<g><title>{name}: {one.start:g} to {one.end:g}</title>"
            f'<rect x="{x:g}" y="{y}" width="{span:g}" height="{ROW - 4}" fill="{COLOURS[one.action.kind]}" '
            f'fill-opacity="{opacity:.2f}" stroke="white"/>'
            f'<text x="{x + span / 2:g}" y="{y + 17}" text-anchor="middle">{one.action.micro}</text></g>'
        )
    x = LEFT
    for kind in [kind for kind in MEANINGS if any(one.action.kind == kind for one in timed)]:
        parts.append(f'<rect x="{x}" y="{bottom + 10}" width="14" height="14" fill="{COLOURS[kind]}"/>')
        parts.append(f'<text x="{x + 20}" y="{bottom + 21}">{MEANINGS[kind]}</text>')
        x += 40 + 7 * len(MEANINGS[kind])
    return "\n".join([*parts, "</svg>", ""])
