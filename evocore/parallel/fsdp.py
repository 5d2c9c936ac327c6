"""Fully sharded data parallelism: the ranks of a ZeRO group share the weights, too, and gather each block to use it.

PyTorch's ``fully_shard`` does it (Zhao et al., 2023): it keeps the rows of each matrix that this rank owns, gathers
those of a block before the block runs, forwards and backwards, and reduce-scatters their gradients after it. Where
there is more than one ZeRO group, gradients are then all-reduced over the replicas (hybrid sharding).

Matrices are kept in float32 and cast to the dtype in which the model computes as they are gathered: what the rank
owns *is* the master weight, nothing has to be published after a step, and reduced gradients are not rounded. Norms
and biases stay whole and go through the buckets of ``evocore.parallel.zero``, whatever their dtype.

Gradients are reduce-scattered after every micro-batch, not only after the last: putting it off would need a whole
float32 gradient on each rank, more memory than sharding the weights saves. What is put off is the all-reduce over the
replicas, which has the longer way and the shards only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from evocore.nn.head import Head
from evocore.nn.layers import Embedding
from evocore.parallel.buckets import Member
from evocore.parallel.groups import Group
from evocore.parallel.placement import Placement
from evocore.parallel.sharding import Sharing


class FullySharded:
    """The matrices of a model, sharded over ``zero`` and replicated over ``replicas``.

    Args:
        model: on the meta device; its matrices become float32 and sharded, block by block.
        sharings: of the parameters to shard, by name: ``Sharing.fully_sharded``.
        zero, replicas: this rank's groups; ``zero`` has more than one rank.
        device: where the model is going to be.
        communicate: dtype in which gradients travel; None for float32.
    """

    def __init__(
        self,
        model: nn.Module,
        sharings: Mapping[str, Sharing],
        zero: Group,
        replicas: Group,
        device: torch.device,
        communicate: torch.dtype | None = None,
    ) -> None:
        self._sharings, self._copies = sharings, replicas.size
        self._computed_in = _make_float32(model, sharings)
        travel = communicate or torch.float32
        # Sums over micro-batches would be in the dtype in which they travel.
        self._waits_for_last, self._withholds = replicas.size > 1 and travel == torch.float32, False
        options: dict[str, Any] = dict(
            mesh=_mesh(zero, replicas, device),
            mp_policy=MixedPrecisionPolicy(self._computed_in, travel, cast_forward_inputs=False),
            ignored_params={parameter for name, parameter in model.named_parameters() if name not in sharings},
        )
        units = list(_units(model, options["ignored_params"]))
        # Backward begins with the last one, which stays gathered for it.
        self._units = [_sharded(unit, reshard_after_forward=unit is not units[-1], **options) for unit in units]
        self._root = _sharded(model, **options)
        for unit in self._units:
            if isinstance(unit, Embedding):
                unit.set_unshard_in_backward(False)  # its gradient does not depend on it
            if isinstance(unit, Head):
                register_fsdp_forward_method(unit, "loss")
        for before, after in pairwise(self._units):
            before.set_modules_to_forward_prefetch([after])
            after.set_modules_to_backward_prefetch([before])

    @staticmethod
    def held(parameter: Tensor) -> Tensor:
        """What this rank owns of a sharded parameter, and any other as it is; memory, not a copy."""
        with torch.no_grad():
            return parameter.to_local() if isinstance(parameter, DTensor) else parameter

    def shards(self, model: nn.Module, weight_decays: Mapping[str, float]) -> list[RowShard]:
        """What the optimizer updates, once the model has its initial weights, in the order of ``weight_decays``."""
        parameters = dict(model.named_parameters())
        return [
            RowShard(
                Member(name, parameters[name], self._sharings[name], 0),
                weight_decay=decay,
                copies=self._sharings[name].duplicates * self._copies,
                computed_in=self._computed_in,
            )
            for name, decay in weight_decays.items()
            if name in self._sharings
        ]

    def expect_more(self) -> None:
        """The backward that comes next is the first of a step, and not known to be the last."""
        self._withholds = self._waits_for_last
        self._root.set_requires_all_reduce(not self._withholds)

    def expect_last(self) -> None:
        """The backward that comes next is the last of the step: its gradients go to the replicas, too."""
        self._withholds = False
        self._root.set_requires_all_reduce(True)

    def finish_gradients(self) -> None:
        """Call after the last backward; ``RowShard.reduced`` is valid then."""
        assert not self._withholds, "the last backward was not announced: replicas lack its gradients"

    def forget_gathered(self) -> None:
        """Let the next use of a matrix gather it again, as what the ranks own has changed."""
        for unit in self._units:
            unit.reshard()


class RowShard:
    """This rank's rows of one matrix, as the optimizer sees them: flat and in float32.

    Attributes:
        master: ``[n]``, the memory of the parameter itself.
        exp_avg, exp_avg_sq: ``[n]``.
        copies: ranks of the pipeline stage that own the same rows.
    """

    def __init__(self, member: Member, *, weight_decay: float, copies: int, computed_in: torch.dtype) -> None:
        self.member, self.weight_decay, self.copies = member, weight_decay, copies
        self.master = FullySharded.held(member.parameter).detach().view(-1)
        # Begin with what the model computes with, as where parameters are kept in that dtype.
        self.master.copy_(self.master.to(computed_in))
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.master), torch.zeros_like(self.master)

    def zero_grad(self) -> None:
        own = FullySharded.held(self.member.parameter)
        assert own.data_ptr() == self.master.data_ptr(), f"PyTorch has moved {self.member.name}"
        self.member.parameter.grad = None

    @property
    def reduced(self) -> Tensor:
        """``[n]`` the gradient, summed over micro-batches and ranks: valid after the last backward of a step."""
        if self.member.parameter.grad is None:  # nothing depends on it
            self.member.parameter.grad = torch.zeros_like(self.member.parameter)
        return FullySharded.held(self.member.parameter.grad).view(-1)

    def own_parts(self) -> Iterator[tuple[Member, Placement, slice]]:
        """As ``Bucket.own_parts``."""
        if len(self.master):
            yield self.member, self.member.sharing.placement, slice(0, len(self.master))


def _sharded(module: nn.Module, **options: Any) -> FSDPModule:
    """The same module, whose gradients are added up: sums are also what every library of collectives has."""
    sharded = fully_shard(module, **options)
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)
    return sharded


def _make_float32(model: nn.Module, sharings: Mapping[str, Sharing]) -> torch.dtype:
    """Keep the parameters that are to be sharded in float32; return the dtype in which the model computes."""
    dtypes: set[torch.dtype] = set()
    for name in sharings:
        prefix, _, kind = name.rpartition(".")
        module = model.get_submodule(prefix)
        parameter = getattr(module, kind)
        dtypes.add(parameter.dtype)
        setattr(module, kind, nn.Parameter(parameter.detach().float()))
    assert len(dtypes) == 1, dtypes
    return dtypes.pop()


def _units(model: nn.Module, ignored: Collection[nn.Parameter]) -> Iterator[nn.Module]:
    """What is gathered at once: embedding, each block, head; in the order in which forward uses them."""
    for child in model.children():
        for unit in child if isinstance(child, nn.ModuleList) else [child]:
            if any(parameter not in ignored for parameter in unit.parameters()):
                yield unit


def _mesh(zero: Group, replicas: Group, device: torch.device) -> DeviceMesh:
    """The two groups as PyTorch's mesh, on their own process groups."""
    shard_group = _process_group(zero)
    if replicas.size == 1:
        return DeviceMesh.from_group(shard_group, device.type)
    own = zero.ranks[zero.rank]
    ranks = [[first - own + rank for rank in zero.ranks] for first in replicas.ranks]
    groups = [_process_group(replicas), shard_group]
    return DeviceMesh.from_group(groups, device.type, ranks, mesh_dim_names=("replicas", "zero"))


def _process_group(group: Group) -> dist.ProcessGroup:
    found = group.process_group or dist.group.WORLD
    assert found is not None  # a group of more than one rank is connected
    return found
