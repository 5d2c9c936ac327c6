"""What the benchmarks of the parallel runtime share: figures with their targets, and the choice of parts."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Collection
from dataclasses import dataclass

from parallel_measures import Timed


@dataclass(frozen=True)
class Figure:
    """A number and its target, None if nothing is asked of it; ``at_most`` says that less is better."""

    name: str
    found: float
    unit: str
    wanted: float | None = None
    at_most: bool = True

    @property
    def met(self) -> bool | None:
        if self.wanted is None:
            return None
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted

    def line(self) -> str:
        target = "" if self.wanted is None else f"{'<=' if self.at_most else '>='} {_told(self.wanted, self.unit)}"
        verdict = {None: "", True: "met", False: "missed"}[self.met]
        return f"{self.name:66} {_told(self.found, self.unit):>10}  {target:12} {verdict}".rstrip()


def add_parts_option(parser: argparse.ArgumentParser, parts: Collection[str]) -> None:
    """``--only``: which parts of a benchmark to run, all by default."""

    def named(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in parts]:
            raise argparse.ArgumentTypeError(f"no part {', '.join(unknown)}: there are {', '.join(parts)}")
        return names

    parser.add_argument("--only", type=named, default=list(parts), metavar="PART,PART", help=", ".join(parts))


def _told(value: float, unit: str) -> str:
    formats = {"%": f"{100 * value:.1f} %", "x": f"{value:.3f} x", "ms": f"{1e3 * value:.1f} ms"}
    return formats[unit] if unit in formats else f"{value / 2**20:.1f} MiB"


class Medians:
    """What all ranks have timed, as the slowest of them, per candidate and round."""

    def __init__(self, ranks: list[dict[str, Timed]]) -> None:
        names = list(ranks[0])
        self.seconds = {name: self._slowest([rank[name].seconds for rank in ranks]) for name in names}
        self.processor = {name: self._slowest([rank[name].processor for rank in ranks]) for name in names}
        self.blocked = {name: self._slowest([rank[name].blocked for rank in ranks]) for name in names}
        self.losses = {name: statistics.mean(rank[name].loss for rank in ranks) for name in names}

    def of(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def median(self, function: Callable[..., float], *series: list[float]) -> float:
        """Of a function of what each round has of each series."""
        return statistics.median(function(*values) for values in zip(*series, strict=True))

    def ratio(self, name: str, other: str) -> float:
        return self.median(lambda a, b: a / b, self.seconds[name], self.seconds[other])

    def ratio_of_processor_time(self, name: str, other: str) -> float:
        return self.median(lambda a, b: a / b, self.processor[name], self.processor[other])

    def steps(self, part: str) -> list[Figure]:
        return [Figure(f"{part}: {name}, a step", self.of(name), "ms") for name in self.seconds]

    def disagreement(self) -> float:
        """How far apart the last losses of candidates are that do the same arithmetic."""
        losses = list(self.losses.values())
        return (max(losses) - min(losses)) / max(losses)

    @staticmethod
    def _slowest(ranks: list[list[float]]) -> list[float]:
        return [max(values) for values in zip(*ranks, strict=True)]
