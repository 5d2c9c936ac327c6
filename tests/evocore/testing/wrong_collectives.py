"""Collectives that are wrong, each in one way, and backends that have them: what the conformance kit must find.

They are at the top of a module, as the processes of the ranks import them.
"""

from __future__ import annotations

import multiprocessing
import os
import time

import torch
import torch.distributed as dist

from evocore.backends.cpu.collectives import CPUCollectives
from evocore.backends.cpu.device import CPUBackend
from evocore.ops.collectives import FINISHED, Collectives


class AvgIsSum(CPUCollectives):
    def all_reduce(self, tensor, group=None, *, op="sum", asynchronous=False):
        return super().all_reduce(tensor, group, op="sum" if op == "avg" else op, asynchronous=asynchronous)


class GathersBackwards(CPUCollectives):
    def all_gather(self, output, shard, group=None, *, asynchronous=False):
        handle = super().all_gather(output, shard, group, asynchronous=asynchronous)
        if not asynchronous:
            output.copy_(output.flip(0))
        return handle


class GathersMemory(CPUCollectives):
    """What lies there, whatever the strides are."""

    def all_gather(self, output, shard, group=None, *, asynchronous=False):
        plain = shard.as_strided(shard.shape, torch.empty_like(shard, memory_format=torch.contiguous_format).stride())
        return super().all_gather(output, plain, group, asynchronous=asynchronous)


class ScattersToTheNext(CPUCollectives):
    def reduce_scatter(self, shard, tensor, group=None, *, op="sum", asynchronous=False):
        rows = tensor.shape[0] // dist.get_world_size(group)
        return super().reduce_scatter(shard, tensor.roll(rows, 0), group, op=op, asynchronous=asynchronous)


class ReducesInPlace(CPUCollectives):
    def reduce_scatter(self, shard, tensor, group=None, *, op="sum", asynchronous=False):
        self.all_reduce(tensor.view(-1) if tensor.is_contiguous() else tensor.contiguous(), group, op=op)
        shard.copy_(tensor.chunk(dist.get_world_size(group))[dist.get_rank(group)])
        return FINISHED


class WritesBeforeItReads(CPUCollectives):
    def reduce_scatter(self, shard, tensor, group=None, *, op="sum", asynchronous=False):
        shard.zero_()
        return super().reduce_scatter(shard, tensor, group, op=op, asynchronous=asynchronous)


class SplitsEvenly(CPUCollectives):
    """The rows that come are in the order of ranks, but each source has as many as any other."""

    def all_to_all(self, output, tensor, group=None, *, output_splits=None, input_splits=None, asynchronous=False):
        splits = {"output_splits": output_splits, "input_splits": input_splits}
        handle = super().all_to_all(output, tensor, group, **splits, asynchronous=asynchronous)
        if output_splits is not None and len(set(output_splits)) > 1:
            output.copy_(output.roll(1, 0))
        return handle


class LeavesOutWhoSendsNothing(CPUCollectives):
    def all_to_all(self, output, tensor, group=None, *, output_splits=None, input_splits=None, **options):
        if not len(tensor):
            return FINISHED
        splits = {"output_splits": output_splits, "input_splits": input_splits}
        return super().all_to_all(output, tensor, group, **splits, **options)


class BroadcastsFromTheFirst(CPUCollectives):
    def broadcast(self, tensor, source, group=None, *, asynchronous=False):
        return super().broadcast(tensor, 0, group, asynchronous=asynchronous)


class SendsOutOfOrder(CPUCollectives):
    """Of four messages the fourth second."""

    def __init__(self):
        self.kept = []

    def send(self, tensor, destination, group=None):
        self.kept.append(tensor.contiguous())
        if len(self.kept) == 4:
            for index in (0, 3, 2, 1):
                super().send(self.kept[index], destination, group).wait()
            self.kept.clear()
        return FINISHED


class RefusesWhatIsEmpty(CPUCollectives):
    def all_gather(self, output, shard, group=None, *, asynchronous=False):
        if not shard.numel():
            raise RuntimeError("nothing to gather")
        return super().all_gather(output, shard, group, asynchronous=asynchronous)


class AddsUpCoarsely(CPUCollectives):
    def all_reduce(self, tensor, group=None, *, op="sum", asynchronous=False):
        handle = super().all_reduce(tensor, group, op=op)
        if tensor.dtype == torch.float32:
            tensor.copy_(tensor.bfloat16())
        return handle


class EachItsOwnSum(CPUCollectives):
    def all_reduce(self, tensor, group=None, *, op="sum", asynchronous=False):
        handle = super().all_reduce(tensor, group, op=op)
        if tensor.dtype == torch.float32:
            tensor.mul_(1 + 1.2e-7 * dist.get_rank())
        return handle


class HandleReturnsAtOnce(CPUCollectives):
    def __init__(self):
        super().__init__()
        self.under_way = []

    def all_gather(self, output, shard, group=None, *, asynchronous=False):
        self.under_way.append(super().all_gather(output, shard, group, asynchronous=asynchronous))
        return FINISHED


class NeverAsynchronous(CPUCollectives):
    def all_reduce(self, tensor, group=None, *, op="sum", asynchronous=False):
        return super().all_reduce(tensor, group, op=op)


class AsksEverybody(CPUCollectives):
    def all_reduce(self, tensor, group=None, *, op="sum", asynchronous=False):
        return super().all_reduce(tensor, op=op, asynchronous=asynchronous)


class LetsPass(CPUCollectives):
    def barrier(self, group=None):
        return None


class AgreesWithItself(CPUCollectives):
    def agree(self, mine, group=None):
        return [mine] * dist.get_world_size(group)


class TakesGaps(CPUCollectives):
    def all_reduce(self, tensor, group=None, *, op="sum", asynchronous=False):
        return super().all_reduce(tensor.contiguous(), group, op=op, asynchronous=asynchronous)


class ClaimsWhatItLacks(CPUCollectives):
    def dtypes(self):
        return super().dtypes() | {torch.int16}


class ClaimsNothing(CPUCollectives):
    def dtypes(self):
        return frozenset()


class NeverReturns(CPUCollectives):
    def broadcast(self, tensor, source, group=None, *, asynchronous=False):
        time.sleep(60)


class Dies(CPUCollectives):
    def broadcast(self, tensor, source, group=None, *, asynchronous=False):
        if dist.get_rank() == 1:
            os._exit(7)
        return super().broadcast(tensor, source, group, asynchronous=asynchronous)


class LostAlone(CPUCollectives):
    def all_gather(self, output, shard, group=None, *, asynchronous=False):
        return FINISHED


class WrongBackend(CPUBackend):
    name = "wrong"
    offers: type[Collectives]

    def collectives(self):
        return self.offers()


def backend_with(offers: type[Collectives]) -> CPUBackend:
    """Its class is found in this module by every process."""
    return globals()[f"{offers.__name__}Backend"]()


for _offers in [kind for kind in CPUCollectives.__subclasses__() if kind.__module__ == __name__]:
    _name = f"{_offers.__name__}Backend"
    globals()[_name] = type(_name, (WrongBackend,), {"offers": _offers, "__module__": __name__})


class OnlyHere(CPUBackend):
    """Not available in another process."""

    def why_unavailable(self):
        return "there is one already" if multiprocessing.parent_process() else None


class OneDevice(CPUBackend):
    def device(self, local_rank=0):
        return torch.device("cpu", local_rank)

    def device_count(self):
        return 1
