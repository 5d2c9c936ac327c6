"""The rules that weight maps are made of: same, stacked, sliced, experts, and the heads of query, key and value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from evocore.nn.weight_map import Part, Rule


def same(ours: str, theirs: str, *, normalised: bool = False) -> Rule:
    """One of ours is one of theirs under another name."""
    return Rule(ours, lambda rows: [Part(theirs, normalised=normalised)])


def stacked(ours: str, *theirs: str) -> Rule:
    """Ours is several of theirs of one size, one after another: gate and up, say."""

    def parts(rows: int) -> Iterator[Part]:
        each = _divided(rows, len(theirs), ours)
        for index, name in enumerate(theirs):
            yield Part(name, range(index * each, (index + 1) * each))

    return Rule(ours, parts)


def sliced(ours: str, theirs: str, index: int, parts: int) -> Rule:
    """Ours is number ``index`` of ``parts`` equal parts of one of theirs."""
    return Rule(ours, lambda rows: [Part(theirs, None, range(index * rows, (index + 1) * rows))])


def experts(ours: str, count: int, *theirs: str) -> Rule:
    """Ours holds, expert by expert, one or more of theirs of one size, whose names have ``{expert}``."""
    return stacked(ours, *(name.replace("{expert}", str(index)) for index in range(count) for name in theirs))


@dataclass(frozen=True)
class Heads:
    """How many heads the rows of query, key and value belong to.

    Attributes:
        interleaved: ours have the two rows of a rotary pair side by side, theirs half a head apart. The rows of one
            head are then dealt out; those of the value never are.
    """

    heads: int
    kv_heads: int
    head_dim: int
    interleaved: bool = False


Place = Callable[[Heads, str, int], tuple[str, int]]
"""``(heads, "q" or "k" or "v", head) -> (name, first row of that head)``."""


def separate(q: str, k: str, v: str) -> Place:
    """A weight each for query, key and value."""
    names = {"q": q, "k": k, "v": v}
    return lambda heads, part, head: (names[part], head * heads.head_dim)


def packed(name: str) -> Place:
    """One weight: all queries, then all keys, then all values."""

    def place(heads: Heads, part: str, head: int) -> tuple[str, int]:
        before = {"q": 0, "k": heads.heads, "v": heads.heads + heads.kv_heads}[part]
        return name, (before + head) * heads.head_dim

    return place


def grouped(name: str) -> Place:
    """One weight: of each key-value head its queries, then the key, then the value (InternLM2)."""

    def place(heads: Heads, part: str, head: int) -> tuple[str, int]:
        queries = heads.heads // heads.kv_heads
        group, within = (head // queries, head % queries) if part == "q" else (head, queries + (part == "v"))
        return name, (group * (queries + 2) + within) * heads.head_dim

    return place


def projections(heads: Heads, ours: Place, theirs: Place) -> list[Rule]:
    """Query, key and value, wherever each side has them, head by head."""
    found: dict[str, list[Part]] = {}
    for part, count in (("q", heads.heads), ("k", heads.kv_heads), ("v", heads.kv_heads)):
        for head in range(count):
            (our_name, our_start), (their_name, their_start) = ours(heads, part, head), theirs(heads, part, head)
            for mine, yours in _head_rows(heads, part != "v"):
                found.setdefault(our_name, []).append(
                    Part(their_name, _moved(mine, our_start), _moved(yours, their_start))
                )
    return [Rule(name, _always(_joined(parts))) for name, parts in found.items()]


def _head_rows(heads: Heads, rotates: bool) -> list[tuple[range, range]]:
    size, pairs = heads.head_dim, heads.head_dim // 2
    if not (heads.interleaved and rotates):
        return [(range(size), range(size))]
    return [(range(0, size, 2), range(pairs)), (range(1, size, 2), range(pairs, size))]


def _moved(rows: range, start: int) -> range:
    return range(rows.start + start, rows.stop + start, rows.step)


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Neighbours that go on where the one before ends on both sides, as one."""
    found: list[Part] = []
    for part in parts:
        assert part.ours_rows is not None and part.theirs_rows is not None
        last = found[-1] if found else None
        if last is not None and last.theirs == part.theirs and last.ours_rows and last.theirs_rows:
            steps = {rows.step for rows in (last.ours_rows, last.theirs_rows, part.ours_rows, part.theirs_rows)}
            goes_on = last.ours_rows.stop == part.ours_rows.start and last.theirs_rows.stop == part.theirs_rows.start
            if steps == {1} and goes_on:
                found[-1] = Part(
                    part.theirs,
                    range(last.ours_rows.start, part.ours_rows.stop),
                    range(last.theirs_rows.start, part.theirs_rows.stop),
                )
                continue
        found.append(part)
    return found


def _always(parts: Sequence[Part]) -> Callable[[int], Iterable[Part]]:
    return lambda rows: parts


def _divided(rows: int, parts: int, name: str) -> int:
    if rows % parts:
        raise ValueError(f"{rows} rows of {name} are not {parts} equal parts")
    return rows // parts
