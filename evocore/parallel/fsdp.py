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

In a pipeline each stage shards what it has. The ranks that share it walk through one table of actions, and so gather
and reduce in the same order, whichever micro-batches are under way. Blocks are gathered ahead within a chunk only:
behind its last block most often comes the same chunk again. What a schedule puts off of backward is reduced by
``evocore.parallel.fsdp_deferral``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
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
from evocore.parallel.blocks import units_by_part
from evocore.parallel.buckets import Member
from evocore.parallel.fsdp_deferral import DeferredRows
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
        starts: with which of the model's blocks, counted from 0, a chunk of the pipeline begins.

    Attributes:
        deferred: takes gradients that do not come by way of autograd.
    """

    def __init__(
        self,
        model: nn.Module,
        sharings: Mapping[str, Sharing],
        zero: Group,
        replicas: Group,
        device: torch.device,
        communicate: torch.dtype | None = None,
        starts: Collection[int] = (0,),
    ) -> None:
        self._sharings, self._copies = sharings, replicas.size
        self._shards: dict[str, RowShard] = {}
        self._computed_in = _make_float32(model, sharings)
        travel = communicate or torch.float32
        # Sums over micro-batches would be in the dtype in which they travel.
        self._waits_for_last, self._announced = replicas.size > 1 and travel == torch.float32, 0
        ignored = {parameter for name, parameter in model.named_parameters() if name not in sharings}
        options: dict[str, Any] = dict(
            mesh=_mesh(zero, replicas, device),
            mp_policy=MixedPrecisionPolicy(self._computed_in, travel, cast_forward_inputs=False),
            ignored_params=ignored,
        )
        runs = [[unit for unit in part if {*unit.parameters()} - ignored] for part in units_by_part(model, starts)]
        last = runs[-1][-1]  # backward begins with it: it stays gathered
        chunks = [[_sharded(unit, reshard_after_forward=unit is not last, **options) for unit in run] for run in runs]
        self._chunks, self._units = len(chunks), [unit for chunk in chunks for unit in chunk]
        self._root = _sharded(model, **options)
        for unit in self._units:
            if isinstance(unit, Embedding):
                unit.set_unshard_in_backward(False)  # its gradient does not depend on it
            if isinstance(unit, Head):
                register_fsdp_forward_method(unit, "loss")
        for chunk in chunks:
            for before, after in pairwise(chunk):
                before.set_modules_to_forward_prefetch([after])
                after.set_modules_to_backward_prefetch([before])
            # Left to PyTorch, the first would gather what ran before it, the end of another micro-batch.
            chunk[0].set_modules_to_backward_prefetch([chunk[0]])
        self.deferred = DeferredRows(zero, replicas, travel, lambda name: self._shards[name].reduced)
        delivered = {name for name, sharing in sharings.items() if sharing.delivered}
        for prefix, module in model.named_modules():
            if module in self._units:
                _when_it_runs(module, prefix, delivered, self.deferred.gathered)

    @staticmethod
    def held(parameter: Tensor) -> Tensor:
        """What this rank owns of a sharded parameter, and any other as it is; memory, not a copy."""
        with torch.no_grad():
            return parameter.to_local() if isinstance(parameter, DTensor) else parameter

    def shards(self, model: nn.Module, weight_decays: Mapping[str, float]) -> list[RowShard]:
        """What the optimizer updates, once the model has its initial weights, in the order of ``weight_decays``."""
        parameters = dict(model.named_parameters())
        self._shards = {
            name: RowShard(
                Member(name, parameters[name], self._sharings[name], 0),
                weight_decay=decay,
                copies=self._sharings[name].duplicates * self._copies,
                computed_in=self._computed_in,
            )
            for name, decay in weight_decays.items()
            if name in self._sharings
        }
        return list(self._shards.values())

    def begin_gradients(self) -> None:
        """Call before the first backward of a step."""
        self._announced = 0
        self._root.set_requires_all_reduce(not self._waits_for_last)

    @contextmanager
    def last_gradients(self) -> Iterator[None]:
        """Around the last backward of a step, in a pipeline of each chunk: its gradients go to the replicas, too."""
        self._announced += 1
        self._root.set_requires_all_reduce(True)
        yield
        self._root.set_requires_all_reduce(not self._waits_for_last)

    def finish_backward(self) -> None:
        """Call after each backward, and after each part of one that was put off."""
        self.deferred.start()

    def finish_gradients(self) -> None:
        """Call after the last backward; ``RowShard.reduced`` is valid then."""
        complete = self._announced >= self._chunks or not self._waits_for_last
        assert complete, "the last backward was not announced: replicas lack its gradients"
        self.deferred.finish()

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


def _when_it_runs(
    unit: nn.Module, prefix: str, names: Collection[str], gathered: Callable[[str, dict[str, nn.Parameter]], None]
) -> None:
    """Whenever a unit called ``prefix`` runs, pass on its name and what it has gathered of the named parameters."""
    places = {}
    for own, _ in unit.named_parameters():
        layer, _, kind = own.rpartition(".")
        if f"{prefix}.{own}" in names:
            places[f"{prefix}.{own}"] = unit.get_submodule(layer), kind

    def tell(module: nn.Module, args: Any) -> None:
        gathered(prefix, {name: getattr(layer, kind) for name, (layer, kind) in places.items()})

    if places:
        unit.register_forward_pre_hook(tell)  # behind the hook that gathers


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
