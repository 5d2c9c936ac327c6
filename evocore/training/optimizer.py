"""AdamW over flat float32 buffers: one gradient norm, one clip, one fused update, one all-reduce.

All parameters of a group live in flat buffers (master weights, gradients, two moments); what a model, a checkpoint or
a message sees are views by parameter name. Low-precision parameters keep their own storage and receive a rounded copy
of the master weights after each step; float32 parameters are views of the master weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evocore.nn.roles import Role
from evocore.ops.adamw import AdamW

ALIGNMENT = 16
"""Elements to which each parameter's place in a flat buffer is aligned, so that vector loads stay aligned."""


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
    named = {Role.NORM: "norm", Role.EMBEDDING: "embedding"}
    return role not in named or named[role] not in no_decay


class ParameterGroup:
    """Parameters that share their hyper-parameters, laid out in flat float32 buffers.

    Buffers are ``[n]`` with n the padded number of elements: ``master``, ``gradient``, ``exp_avg``, ``exp_avg_sq``.
    """

    def __init__(self, named: list[tuple[str, nn.Parameter]], *, weight_decay: float) -> None:
        self.weight_decay = weight_decay
        self.parameters = dict(named)
        starts, size = {}, 0
        for name, parameter in named:
            starts[name] = size
            size += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        device = named[0][1].device
        self.master, self.gradient, self.exp_avg, self.exp_avg_sq = (
            torch.zeros(size, dtype=torch.float32, device=device) for _ in range(4)
        )
        self._starts = starts
        self._install()

    def view(self, buffer: Tensor, name: str) -> Tensor:
        """The part of one of the flat buffers that belongs to a parameter, in its shape."""
        parameter = self.parameters[name]
        return buffer[self._starts[name] :][: parameter.numel()].view(parameter.shape)

    def publish(self) -> None:
        """Copy the master weights to the parameters that have a storage of their own."""
        for name, parameter in self.parameters.items():
            if parameter.dtype != torch.float32:
                parameter.data.copy_(self.view(self.master, name))

    def _install(self) -> None:
        for name, parameter in self.parameters.items():
            master, gradient = self.view(self.master, name), self.view(self.gradient, name)
            master.copy_(parameter.data)
            if parameter.dtype == torch.float32:
                parameter.data, parameter.grad = master, gradient  # autograd adds to an existing gradient in place
            else:
                parameter.register_post_accumulate_grad_hook(_add_to(gradient))


def _add_to(gradient: Tensor) -> Callable[[Tensor], None]:
    """Accumulate in float32 whatever the parameter's dtype, and free the low-precision gradient at once."""

    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient.add_(parameter.grad)
        parameter.grad = None

    return hook


class Optimizer:
    """Owns the groups and performs the steps.

    Args:
        model: on its device; its float32 parameters are moved into the flat buffers.
        adamw: the kernel.
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
    ) -> None:
        self._adamw, self._eps, self._beta1 = adamw, eps, beta1
        self.steps = 0
        kept = frozenset(no_decay)
        decayed: list[tuple[str, nn.Parameter]] = []
        plain: list[tuple[str, nn.Parameter]] = []
        for prefix, module in model.named_modules():
            for kind, parameter in module.named_parameters(recurse=False):
                name = f"{prefix}.{kind}" if prefix else kind
                group = decayed if is_decayed(getattr(module, "role", None), kind, kept) else plain
                group.append((name, parameter))
        self.groups = [
            ParameterGroup(named, weight_decay=decay)
            for named, decay in ((decayed, weight_decay), (plain, 0.0))
            if named
        ]

    def gradients(self) -> list[Tensor]:
        """The flat gradient buffers, for a reduction across data-parallel ranks."""
        return [group.gradient for group in self.groups]

    def zero_grad(self) -> None:
        for group in self.groups:
            group.gradient.zero_()

    def step(self, *, lr: float, beta2: float, loss_scale: float = 1.0, clip: float = 0.0) -> StepResult:
        """Unscale, clip to a global norm of ``clip`` (0 for no clipping), update, publish.

        The norm spans all parameters of all groups. If it is not finite, nothing changes.
        """
        norms = torch.stack([group.gradient.norm() for group in self.groups])
        norm = float(norms.norm()) / loss_scale
        if not _is_finite(norm):
            return StepResult(norm, applied=False, bad_parameter=self._first_bad_parameter())
        factor = min(1.0, clip / (norm + 1e-6)) if clip > 0 else 1.0
        factor /= loss_scale
        self.steps += 1
        for group in self.groups:
            if factor != 1.0:
                group.gradient.mul_(factor)
            self._adamw(
                [group.master],
                [group.gradient],
                [group.exp_avg],
                [group.exp_avg_sq],
                step=self.steps,
                lr=lr,
                beta1=self._beta1,
                beta2=beta2,
                eps=self._eps,
                weight_decay=group.weight_decay,
            )
            group.publish()
        return StepResult(norm, applied=True)

    def tensors(self) -> dict[str, Tensor]:
        """Master weights and moments by parameter name: what a checkpoint holds of the optimizer and the model."""
        found = {}
        for group in self.groups:
            for name in group.parameters:
                found[f"master.{name}"] = group.view(group.master, name)
                found[f"exp_avg.{name}"] = group.view(group.exp_avg, name)
                found[f"exp_avg_sq.{name}"] = group.view(group.exp_avg_sq, name)
        return found

    def publish(self) -> None:
        """Bring the model in line with the master weights after they were loaded."""
        for group in self.groups:
            group.publish()

    def _first_bad_parameter(self) -> str | None:
        for group in self.groups:
            for name in group.parameters:
                if not bool(group.view(group.gradient, name).isfinite().all()):
                    return name
        return None  # each gradient is finite, their squares are not


def _is_finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
