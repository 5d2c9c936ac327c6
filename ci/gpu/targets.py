"""The speed that the project asks of its kernels on one device, and whether a run's figures reach it.

A target is met, missed, or unknown because a figure is missing; what it compares are medians of one run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

PUBLISHED_ATTENTION = 308e12
"""FLOP/s of FlashAttention-2, forward and backward, 8K tokens, heads of 128, causal, bf16, on an H100 (published)."""
LARGEST_LOSS_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Target:
    """``found`` is compared with ``wanted`` in the same ``unit``; ``at_most`` says that less is better."""

    name: str
    wanted: float
    found: float | None
    unit: str
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.found is None:
            return None
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted


def evaluate(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target with what was found, as plain data; ``results`` is the content of a measurement's JSON file."""
    kernels = results.get("kernels") or {}
    found = [*_of_kernels(Figures(kernels))] if kernels.get("cases") else []
    training = results.get("training") or {}
    if training:
        found += _of_training(training, _yardstick(kernels, "product_flops_per_second"))
    return [asdict(target) | {"met": target.met} for target in found]


def _yardstick(kernels: dict[str, Any], name: str) -> float | None:
    """The better of what was measured first and last."""
    return max((entry[name] for entry in kernels.get("yardsticks", {}).values()), default=None)


class Figures:
    """Looks up the figures of one run of the kernel benchmark; whatever was not measured is None."""

    def __init__(self, kernels: dict[str, Any]) -> None:
        self._cases = kernels["cases"]
        self.copy = _yardstick(kernels, "copy_bytes_per_second")

    def chosen(self, case: str) -> str | None:
        """The provider that resolution chooses."""
        name: str | None = self._cases.get(case, {}).get("chosen")
        return name

    def row(self, case: str, phase: str, provider: str | None) -> dict[str, Any]:
        for row in self._cases.get(case, {}).get("rows", []):
            if row["phase"] == phase and row["provider"] == provider:
                return dict(row)
        return {}

    def seconds(self, case: str, phase: str, provider: str | None) -> float | None:
        return self.row(case, phase, provider).get("seconds")

    def of_copy(self, case: str, phase: str) -> float | None:
        """Share of the copy bandwidth that the chosen provider moves its ideal bytes at."""
        rate = self.row(case, phase, self.chosen(case)).get("bytes_per_second")
        return _ratio(rate, self.copy)

    def speedup(self, case: str, phase: str, peer: str | None) -> float | None:
        """How many times as fast the chosen provider is as a peer."""
        return _ratio(self.seconds(case, phase, peer), self.seconds(case, phase, self.chosen(case)))

    def fastest(self, case: str, phase: str, prefix: str) -> str | None:
        """The fastest provider whose name starts so."""
        rows = [
            row
            for row in self._cases.get(case, {}).get("rows", [])
            if row["phase"] == phase and row["provider"].startswith(prefix) and "seconds" in row
        ]
        return min(rows, key=lambda row: row["seconds"])["provider"] if rows else None


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _of_kernels(figures: Figures) -> Iterator[Target]:
    share: Callable[..., Target] = partial(Target, unit="of the copy")
    for case in [f"{op} {width}" for op in ("rms_norm", "add_rms_norm") for width in (2048, 4096, 8192)]:
        yield share(f"{case}, forward", 0.9, figures.of_copy(case, "forward"))
        yield share(f"{case}, backward", 0.8, figures.of_copy(case, "backward"))
        yield from _against_peers(figures, case, liger=True, compiled=case in COMPILED)
    for case in ("rotary half", "rotary interleaved", "swiglu"):
        for phase in ("forward", "backward"):
            yield share(f"{case}, {phase}", 0.9, figures.of_copy(case, phase))
        yield from _against_peers(figures, case, liger=case != "rotary interleaved", compiled=True)
    yield share("cross_entropy 128K, both", 0.85, figures.of_copy("cross_entropy 128K", "both"))
    case = "linear_cross_entropy 128K"
    ours, plain = (figures.row(case, "both", name) for name in (figures.chosen(case), "plain"))
    found = _ratio(ours.get("peak_bytes"), plain.get("peak_bytes"))
    yield Target(f"{case}, peak memory", 0.1, found, "of the plain one's", at_most=True)
    case = "attention 8K"
    best = figures.fastest(case, "both", "sdpa-")
    yield Target(f"{case}, both", 1.0, figures.speedup(case, "both", best), f"x {best or 'the best SDPA backend'}")
    rate = figures.row(case, "both", "triton").get("flops_per_second")
    yield Target(
        f"{case}, both, triton",
        0.8,
        _ratio(rate, PUBLISHED_ATTENTION),
        f"of {PUBLISHED_ATTENTION / 1e12:.0f} TFLOP/s",
    )
    for case in ("grouped_linear 8 experts", "grouped_linear 64 experts"):
        yield Target(f"{case}, both", 0.8, figures.speedup(case, "both", "dense"), "of one dense product")


COMPILED = {"rms_norm 2048", "rms_norm 4096", "rms_norm 8192", "add_rms_norm 4096"}
"""Norms that PyTorch's compiler is timed on; each costs it seconds."""


def _against_peers(figures: Figures, case: str, *, liger: bool, compiled: bool) -> Iterator[Target]:
    for phase in ("forward", "backward"):
        if liger:
            yield Target(f"{case}, {phase}", 1.0, figures.speedup(case, phase, "liger"), "x Liger")
        if compiled:
            yield Target(f"{case}, {phase}", 1.2, figures.speedup(case, phase, "torch.compile"), "x torch.compile")


def _of_training(training: dict[str, Any], product: float | None) -> Iterator[Target]:
    rate = training.get("1.8B", {}).get("model_flops_per_second")
    yield Target("1.8B step, MFU", 0.6, _ratio(rate, product), "of the measured product")
    difference = training.get("small, device against CPU", {}).get("largest_difference")
    yield Target(
        "small model, float32, device against CPU", LARGEST_LOSS_DIFFERENCE, difference, "of loss", at_most=True
    )
