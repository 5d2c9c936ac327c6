"""Times the candidates for one case in turns, so that a busy or a throttling machine slows all of them alike.

A candidate that fails is a row with its error; the others go on.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from case import Case
from clocks import Clock, Step, in_turns, told
from torch import Tensor

from evocore.ops.kernel import Kernel

PHASES = ("forward", "backward", "both")


@dataclass
class Candidate:
    """One way to compute a case.

    ``kind`` is "kernel" or "peer". A peer may take ``inputs`` and ``options`` of its own; ``overwrites`` says that it
    writes into its inputs, which are copied for it; ``compared`` whether its outputs are laid out as the case's.
    """

    name: str
    function: Callable[..., Any]
    kind: str = "peer"
    inputs: list[Any] | None = None
    options: dict[str, Any] | None = None
    overwrites: bool = False
    compared: bool = True


class BrokenDeviceError(Exception):
    """The device does not answer this process any more since ``candidate`` ran."""

    def __init__(self, candidate: str, cause: str) -> None:
        super().__init__(cause)
        self.candidate, self.cause = candidate, cause


def usable_kernels(
    case: Case, offers: Iterable[Kernel], device_type: str
) -> tuple[dict[str, Kernel], dict[str, str]]:
    """Kernels that can serve a case, by label, the one that resolution chooses first; and why others cannot.

    The label is the provider; where it offers the op twice, once in a form that repeats itself to the bit, the one of
    lower priority says which it is.
    """
    usable: dict[str, Kernel] = {}
    refused: dict[str, str] = {}
    mine = [offer for offer in offers if offer.op == case.request.op and device_type in offer.devices]
    for offer in sorted(mine, key=lambda offer: (-offer.priority, offer.provider)):
        label = offer.provider
        if label in usable or label in refused:
            label += ", deterministic" if offer.deterministic else ", not deterministic"
        reason = offer.why_not(case.request, device_type)
        if reason is None:
            usable[label] = offer
        else:
            refused[label] = reason
    return usable, refused


def measure(
    case: Case,
    candidates: list[Candidate],
    device: torch.device,
    clock: Clock,
    *,
    phases: Iterable[str] = PHASES,
    seconds: float = 1.0,
) -> list[dict[str, Any]]:
    """One row per candidate and phase; a candidate that fails is one row with its error, of phase "all".

    The first candidate is taken to be right: ``difference`` is the others' distance from its outputs and gradients.

    Raises:
        BrokenDeviceError: if the device fails with a candidate, as after an access out of bounds.
    """
    phases = list(phases) if case.differentiable else ["forward"]
    ready: dict[str, dict[str, Step]] = {}
    facts: dict[str, dict[str, Any]] = {}
    expected: list[Tensor] | None = None
    for candidate in candidates:
        try:
            steps, results, peak = _prepare(candidate, case, device, phases)
            clock.settle()
        except Exception as error:  # noqa: BLE001 - a stranger's kernel can raise anything; it becomes a row
            facts[candidate.name] = {"error": told(error)}
            del error  # it holds what the candidate allocated
            if not answers(device):
                raise BrokenDeviceError(candidate.name, facts[candidate.name]["error"]) from None
            continue
        ready[candidate.name], facts[candidate.name] = steps, {"peak_bytes": peak}
        if candidate is candidates[0]:
            expected = results
        elif expected is not None and case.checked and candidate.compared:
            facts[candidate.name]["difference"] = max(map(_difference, results, expected), default=0.0)
        del results
    del expected
    rows = []
    for phase in phases:
        steps_now = {name: steps[phase] for name, steps in ready.items() if "error" not in facts[name]}
        taken, errors = in_turns(steps_now, clock, seconds / len(phases))
        for name, text in errors.items():
            facts[name] = {"error": text}
        rows += [
            {
                "phase": phase,
                "provider": candidate.name,
                "kind": candidate.kind,
                **facts[candidate.name],
                **_figures(taken[candidate.name], case, phase),
            }
            for candidate in candidates
            if candidate.name in taken
        ]
    rows += [
        {"phase": "all", "provider": candidate.name, "kind": candidate.kind, **facts[candidate.name]}
        for candidate in candidates
        if "error" in facts[candidate.name]
    ]
    return rows


def _figures(taken: list[float], case: Case, phase: str) -> dict[str, Any]:
    median, cost = statistics.median(taken), case.cost(phase)
    low, _, high = statistics.quantiles(taken, n=4) if len(taken) > 1 else (median,) * 3
    return {
        "seconds": median,
        "quartiles": [low, high],
        "repetitions": len(taken),
        "bytes_per_second": cost.bytes / median,
        "flops_per_second": cost.flops / median,
    }


def _prepare(
    candidate: Candidate, case: Case, device: torch.device, phases: list[str]
) -> tuple[dict[str, Step], list[Tensor], int | None]:
    """Warm up; return a step per phase, outputs and gradients of the first call, and bytes at the peak of another."""
    given = case.inputs if candidate.inputs is None else candidate.inputs
    options = case.options if candidate.options is None else candidate.options
    inputs = [_copy(value) for value in given] if candidate.overwrites else given
    wanted = [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]

    def forward() -> list[Tensor]:
        result = candidate.function(*inputs, **options)
        outputs = result if isinstance(result, tuple) else (result,)
        return [out for out in outputs if isinstance(out, Tensor) and out.requires_grad]

    if not wanted:
        for _ in range(2):
            forward()
        return {"forward": forward}, [], None
    first = forward()
    seeds = [_seed(out) for out in first]
    results = [out.detach() for out in first]
    results += torch.autograd.grad(first, wanted, seeds)
    del first
    if candidate.overwrites:
        results = [result.clone() for result in results]
        for value, original in zip(inputs, given, strict=True):
            if isinstance(value, Tensor):
                value.data.copy_(original)
    outputs = forward() if "backward" in phases else []

    def backward() -> object:
        return torch.autograd.grad(outputs, wanted, seeds, retain_graph=True)

    def both() -> object:
        return torch.autograd.grad(forward(), wanted, seeds)

    steps: dict[str, Step] = {"forward": forward, "backward": backward, "both": both}
    peak = _peak_bytes(both, device)
    for phase in phases:
        steps[phase]()
    return {phase: steps[phase] for phase in phases}, results, peak


def _seed(out: Tensor) -> Tensor:
    """The gradient that arrives: 1 for a loss, as in training, otherwise the same random numbers for all."""
    if out.ndim == 0:
        return torch.ones_like(out)
    draw = torch.Generator(out.device).manual_seed(0)
    return torch.randn(out.shape, dtype=out.dtype, device=out.device, generator=draw)


def _copy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _peak_bytes(step: Step, device: torch.device) -> int | None:
    """Bytes that a step allocates at its peak on top of its inputs, None where PyTorch does not count them."""
    module: Any = torch.get_device_module(device)
    if not hasattr(module, "reset_peak_memory_stats"):
        step()
        return None
    module.synchronize()
    module.reset_peak_memory_stats()
    before = module.memory_allocated()
    step()
    module.synchronize()
    return int(module.max_memory_allocated() - before)


def _difference(result: Tensor, expected: Tensor) -> float:
    """``|result - expected| / |expected|``; infinite for another shape or a number that is none."""
    if result.shape != expected.shape:
        return float("inf")
    wide = expected.float()
    distance = float((result.float() - wide).norm() / wide.norm().clamp_min(1e-30))
    return distance if distance == distance else float("inf")


def answers(device: torch.device) -> bool:
    """Give back what a failed candidate took; False if the device is of no more use to this process."""
    gc.collect()
    if device.type == "cpu":
        return True
    module: Any = torch.get_device_module(device)
    try:
        module.synchronize()
        module.empty_cache()
        torch.ones(1, device=device).item()
    except Exception:  # noqa: BLE001 - whatever a broken device raises
        return False
    return True
