"""Learning rate, beta2 and loss scale as functions of how many optimizer steps have been made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from evocore.config import Config


@dataclass(frozen=True)
class CosineWithWarmup:
    """InternEvo's schedule: idle, linear warm-up, cosine to ``eta_min`` at ``total_steps``.

    Args:
        base: peak learning rate.
        total_steps: optimizer steps of the whole run.
        init_steps: steps at the start with learning rate 0.
        warmup_ratio: share of ``total_steps`` that warms up.
        eta_min: learning rate at the end.
    """

    base: float
    total_steps: int
    init_steps: int = 0
    warmup_ratio: float = 0.01
    eta_min: float = 1e-5

    def __call__(self, step: int) -> float:
        """Learning rate of step ``step``, counted from 0."""
        warmup = int(self.total_steps * self.warmup_ratio)
        since_start = step - self.init_steps
        if since_start < 0:
            return 0.0
        if since_start < warmup:
            return self.base * (since_start + 1) / warmup
        length = max(1, self.total_steps - self.init_steps - warmup)
        share = min(1.0, (since_start - warmup) / length)
        return self.eta_min + (self.base - self.eta_min) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class Beta2Schedule:
    """``max(start, 1 - step ** -c)``, growing with the step (Shazeer and Stern, 2018, section 7.2); c = 0: fixed."""

    start: float
    c: float = 0.0

    def __call__(self, step: int) -> float:
        """beta2 of step ``step``, counted from 0."""
        return max(self.start, 1 - (step + 1) ** -self.c) if self.c > 0 else self.start


class LossScale:
    """Dynamic loss scale for float16 (Micikevicius et al., 2018, section 3.2); 1 where none is needed.

    Args:
        initial: first scale.
        growth_interval: good steps in a row after which the scale grows.
        hysteresis: bad steps that are tolerated before it shrinks.
    """

    def __init__(
        self,
        initial: float,
        *,
        growth_interval: int = 1000,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        minimum: float = 1.0,
        maximum: float = 2.0**24,
        hysteresis: int = 2,
        dynamic: bool = True,
    ) -> None:
        self.scale = initial
        self._interval, self._growth, self._backoff = growth_interval, growth_factor, backoff_factor
        self._minimum, self._maximum, self._hysteresis, self._dynamic = minimum, maximum, hysteresis, dynamic
        self._good_steps, self._patience = 0, hysteresis

    @classmethod
    def of(cls, config: Config, dtype: torch.dtype) -> LossScale:
        """float16 needs a dynamic scale; bfloat16 only if asked for as InternEvo does it; float32 never."""
        settings = config.grad_scaler
        needed = dtype == torch.float16 or (dtype == torch.bfloat16 and settings.bf16)
        return cls(
            settings.fp16.initial_scale if needed else 1.0,
            growth_interval=settings.fp16.growth_interval,
            growth_factor=settings.growth_factor,
            backoff_factor=settings.backoff_factor,
            minimum=settings.fp16.min_scale if settings.fp16.min_scale is not None else 1.0,
            maximum=settings.max_scale if settings.max_scale is not None else math.inf,
            hysteresis=settings.hysteresis,
            dynamic=needed,
        )

    def update(self, *, overflow: bool) -> None:
        """Tell whether the gradients of a step were not finite."""
        if not self._dynamic:
            return
        if overflow:
            self._good_steps = 0
            self._patience -= 1
            if self._patience <= 0:
                self.scale = max(self._minimum, self.scale * self._backoff)
            return
        self._good_steps += 1
        if self._good_steps == self._interval:
            self._good_steps, self._patience = 0, self._hysteresis
            self.scale = min(self._maximum, self.scale * self._growth)

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale, "good_steps": self._good_steps, "patience": self._patience}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale, self._good_steps = float(state["scale"]), int(state["good_steps"])
        self._patience = int(state["patience"])
