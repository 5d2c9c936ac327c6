"""AdamW over flat float32 buffers: one gradient norm over all ranks, one clip, one fused update.

The buffers, and which ranks hold which part of them, are ``evocore.parallel``'s; here is the arithmetic of a step.
Low-precision parameters receive a rounded copy of the master weights after each step; float32 parameters are the
master weights themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from evocore.checkpoint.boxes import Boxes
from evocore.nn.roles import Role
from evocore.ops.adamw import AdamW
from evocore.parallel.buckets import Bucket
from evocore.parallel.runtime import Runtime
from evocore.parallel.zero import Zero, ZeroOptions
from evocore.training.sums import sum_of_squares

if TYPE_CHECKING:
    from evocore.parallel.fsdp import RowShard


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did.

    ``grad_norm`` is the norm before clipping, without the loss scale. ``applied`` is False if a gradient was not
    finite: nothing was changed, and ``bad_parameter`` is the first parameter with such a gradient.
    """

    grad_norm: float
    applied: bool
    bad_parameter: str | None = None


def is_decayed(role: Role | None, kind: str, no_decay: frozenset[str]) -> bool:
    """Whether weight decay applies to a parameter, given the classes in ``no_decay``: norm, bias, embedding."""
    if kind == "bias":
        return "bias" not in no_decay
    named = {Role.NORM: "norm", Role.HEAD_NORM: "norm", Role.EMBEDDING: "embedding"}
    return role not in named or named[role] not in no_decay


class Optimizer:
    """Owns the buckets and performs the steps.

    Args:
        model: on its device; its parameters are moved into flat buffers.
        adamw: the kernel.
        runtime: who shares what; by default this process has everything.
        options: how gradients and parameters travel.
        weight_decay: for the parameters that are decayed.
        no_decay: classes without decay, of "norm", "bias", "embedding".
        eps, beta1: of AdamW.
    """

    def __init__(
        self,
        model: nn.Module,
        adamw: AdamW,
        *,
        weight_decay: float,
        no_decay: Iterable[str] = (),
        eps: float = 1e-8,
        beta1: float = 0.9,
        runtime: Runtime | None = None,
        options: ZeroOptions | None = None,
    ) -> None:
        self._adamw, self._eps, self._beta1 = adamw, eps, beta1
        self._runtime = runtime or Runtime.alone(model)
        self.steps = 0
        self._buffers = dict(model.named_buffers())
        kept = frozenset(no_decay)
        names = {parameter: name for name, parameter in model.named_parameters()}
        decays = {
            f"{prefix}.{kind}" if prefix else kind: weight_decay
            * is_decayed(getattr(module, "role", None), kind, kept)
            for prefix, module in model.named_modules()
            for kind, parameter in module.named_parameters(recurse=False)
            if names[parameter] == (f"{prefix}.{kind}" if prefix else kind)  # not a further name of a tied one
        }
        self._fsdp = self._runtime.fully_sharded
        shards = [] if self._fsdp is None else self._fsdp.shards(model, decays)
        whole = {name: decay for name, decay in decays.items() if not self._runtime.sharings[name].fully_sharded}
        self._zero = Zero(model, self._runtime.sharings, whole, self._runtime.shards, options or ZeroOptions())
        self.buckets = self._zero.buckets
        self._owned: list[Bucket | RowShard] = [*self.buckets, *shards]
        self._runtime.join(self._zero)

    def zero_grad(self) -> None:
        for part in self._owned:
            part.zero_grad()
        if self._fsdp is not None:
            self._fsdp.begin_gradients()

    @contextmanager
    def last_gradients(self) -> Iterator[None]:
        """Around a backward with the last gradients of some parameters before ``step``: they may be reduced."""
        with self._zero.last_gradients(), nullcontext() if self._fsdp is None else self._fsdp.last_gradients():
            yield

    def step(self, *, lr: float, beta2: float, loss_scale: float = 1.0, clip: float = 0.0) -> StepResult:
        """Reduce, unscale, clip to a global norm of ``clip`` (0 for no clipping), update, publish.

        The norm spans all parameters on all ranks. If it is not finite, nothing changes. Every rank calls it.
        """
        self._zero.finish_gradients()
        if self._fsdp is not None:
            self._fsdp.finish_gradients()
        for bucket in self.buckets:
            if bucket.tied > 1:
                self._runtime.pipeline.sum_of_ends(bucket.reduced)
        norm = self._norm() / loss_scale
        if not math.isfinite(norm):
            return StepResult(norm, applied=False, bad_parameter=self._first_bad_parameter())
        factor = min(1.0, clip / (norm + 1e-6)) if clip > 0 else 1.0
        factor /= loss_scale
        self.steps += 1
        for weight_decay in dict.fromkeys(part.weight_decay for part in self._owned):
            alike = [part for part in self._owned if part.weight_decay == weight_decay]
            gradients = [part.reduced for part in alike]
            if factor != 1.0:
                for gradient in gradients:
                    gradient.mul_(factor)
            self._adamw(
                [part.master for part in alike],
                gradients,
                [part.exp_avg for part in alike],
                [part.exp_avg_sq for part in alike],
                step=self.steps,
                lr=lr,
                beta1=self._beta1,
                beta2=beta2,
                eps=self._eps,
                weight_decay=weight_decay,
            )
        self.publish()
        return StepResult(norm, applied=True)

    def tensors(self) -> dict[str, Tensor | Boxes]:
        """What a checkpoint holds of the optimizer and the model.

        Master weights and moments by parameter name, and the model's buffers, which no gradient changes.
        """
        found: dict[str, Tensor | Boxes] = {f"buffer.{name}": buffer for name, buffer in self._buffers.items()}
        for part in self._owned:
            for member, placement, place in part.own_parts():
                for kind in ("master", "exp_avg", "exp_avg_sq"):
                    found[f"{kind}.{member.name}"] = Boxes.of(placement, getattr(part, kind)[place])
        return found

    def publish(self) -> None:
        """Bring the model in line with the master weights, after they changed or were loaded."""
        self._zero.publish()
        if self._fsdp is not None:
            self._fsdp.forget_gathered()

    def wait(self) -> None:
        """Wait until the whole model may be read; its own forward waits by itself."""
        self._zero.wait_parameters()

    def _norm(self) -> float:
        """Each element counts once, however many ranks hold it."""
        squares = torch.stack([sum_of_squares(part.reduced) / part.copies for part in self._owned]).sum()
        return math.sqrt(float(self._runtime.sum(squares)))

    def _first_bad_parameter(self) -> str | None:
        mine = ""
        for part in reversed(self._owned):
            for member, _, place in part.own_parts():
                if not mine and not bool(part.reduced[place].isfinite().all()):
                    mine = member.name
        named = [name for name in self._runtime.collect(mine) if name]
        return named[0] if named else None  # if none, each gradient is finite and their squares are not
