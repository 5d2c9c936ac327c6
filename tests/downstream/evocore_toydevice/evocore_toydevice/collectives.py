"""The collectives: gloo on host views of the device's memory. evocore/ops/collectives.py is their contract."""

import torch.distributed as dist
from torch_toydevice import to_host

from evocore.ops.collectives import FINISHED, Collectives, check_reduce_scatter, group_size


def on_host(name):
    """The method of ``Collectives``, given host views of the tensors."""

    def call(self, *args, **options):
        options = {key: to_host(x) for key, x in options.items()}
        return getattr(Collectives, name)(self, *map(to_host, args), **options)

    return call


class Sum:
    """Adds up what has been gathered, when it is waited for."""

    def __init__(self, gathering, parts, shard, op):
        self.gathering, self.parts, self.shard, self.op = gathering, parts, shard, op

    def wait(self):
        if self.parts is not None:  # waiting again does nothing
            self.gathering.wait()
            total = sum(self.parts[1:], self.parts[0])
            self.shard.copy_(total / len(self.parts) if self.op == "avg" else total)
            self.parts = None


class ToyCollectives(Collectives):
    all_reduce = on_host("all_reduce")
    all_gather = on_host("all_gather")
    all_to_all = on_host("all_to_all")
    broadcast = on_host("broadcast")
    send = on_host("send")
    recv = on_host("recv")

    def reduce_scatter(self, shard, tensor, group=None, *, op="sum", asynchronous=False):
        """The library has none: gather everything, then add up this rank's parts in the order of ranks."""
        check_reduce_scatter(shard, tensor, group, op)
        ranks, rank = group_size(group), dist.get_rank(group) if dist.is_initialized() else 0
        gathered = tensor.new_empty(ranks * tensor.shape[0], *tensor.shape[1:])
        gathering = self.all_gather(gathered, tensor, group, asynchronous=asynchronous)
        parts = gathered.view(ranks, ranks, *shard.shape)[:, rank]  # [source, destination, ...]
        work = Sum(gathering, parts, shard, op)
        return work if asynchronous else work.wait() or FINISHED
