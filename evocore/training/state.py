"""What a checkpoint holds of a run besides its weights, and how weights and state are saved and brought back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from evocore.checkpoint.boxes import Boxes
from evocore.training.optimizer import Optimizer
from evocore.training.schedules import LossScale


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        steps: steps begun, counting those that were not applied; the schedules follow it.
        batches: batches taken from the data, skipped ones included.
        tokens: tokens trained on, over all ranks.
        skipped_steps: steps whose gradients were not finite.
    """

    steps: int = 0
    batches: int = 0
    tokens: int = 0
    skipped_steps: int = 0


def run_state(
    progress: Progress, optimizer: Optimizer, scale: LossScale, data: dict[str, int], seed: int
) -> dict[str, Any]:
    """Everything but tensors, as plain JSON. Random numbers need no entry: each step seeds them anew."""
    return {
        "progress": asdict(progress),
        "optimizer_steps": optimizer.steps,
        "loss_scale": scale.state_dict(),
        "data": data,
        "seed": seed,
    }


def restore(
    state: dict[str, Any], content: set[str], progress: Progress, optimizer: Optimizer, scale: LossScale
) -> None:
    """Put back the parts named in ``content`` (InternEvo's words: model, optimizer, scheduler, sampler, or all)."""
    everything = "all" in content
    if everything or "optimizer" in content:
        optimizer.steps = int(state["optimizer_steps"])
        scale.load_state_dict(state["loss_scale"])
    if everything or "scheduler" in content:
        for entry in fields(Progress):
            setattr(progress, entry.name, int(state["progress"][entry.name]))


def tensors_for(content: set[str], optimizer: Optimizer) -> dict[str, Tensor | Boxes]:
    """The tensors that loading ``content`` fills: weights and buffers, and the moments if the optimizer is wanted."""
    tensors = optimizer.tensors()
    if "all" in content or "optimizer" in content:
        return tensors
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("exp_avg")}
