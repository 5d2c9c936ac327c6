"""Attention over a grid of ranks, on processes or on threads, and what one rank makes of the same sequence."""

import queue
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import torch
import torch.distributed as dist

from evocore.backend import Backend
from evocore.backends.cpu.device import CPUBackend
from evocore.kernels.attention import blocked, reference
from evocore.ops.attention import CuSeqlens
from evocore.ops.collectives import FINISHED, Collectives
from evocore.parallel.context import RingAttention, Rings, own_ranges
from evocore.parallel.groups import Groups
from evocore.parallel.isp import wrap_attention
from evocore.parallel.recording import RecordingCollectives
from evocore.parallel.sharding import Part
from evocore.parallel.topology import Sizes, Topology

KERNELS = {"reference": reference.attention_block, "blocked": blocked.attention_block}


@dataclass(frozen=True)
class Case:
    """One grid and one sequence: ``cuts`` are the cumulative lengths of its documents."""

    cuts: tuple[int, ...]
    head: int = 1
    context: int = 2
    window: int = 1
    head_first: bool = True
    interleaved: bool = False
    heads: int = 4
    kv_heads: int = 2
    softcap: float | None = None
    kernel: str = "blocked"
    dtype: torch.dtype = torch.float32

    @property
    def ranks(self):
        return self.head * self.context

    @property
    def options(self):
        documents = CuSeqlens.of(self.cuts)
        return dict(q_documents=documents, k_documents=documents, softcap=self.softcap, scale=0.4)

    def topology(self):
        return Topology(
            Sizes(
                world=self.ranks, mode="isp", tensor=self.ranks, context=self.context, window=self.window,
                head_first=self.head_first, interleaved=self.interleaved,
            )
        )  # fmt: skip

    def inputs(self):
        """Queries, keys, values and the gradient of the result, of the whole sequence."""
        generator = torch.Generator().manual_seed(7)
        shapes = [(self.cuts[-1], heads, 8) for heads in (self.heads, self.kv_heads, self.kv_heads, self.heads)]
        return [torch.randn(shape, generator=generator).to(self.dtype) for shape in shapes]


def whole(case, dtype):
    """Result and gradients of one rank that has everything, by the reference."""
    *inputs, grad = (x.to(dtype) for x in case.inputs())
    inputs = [x.requires_grad_() for x in inputs]
    out = reference.attention(*inputs, **case.options)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


class OnRank:
    """One rank of a grid."""

    def __init__(self, case, rank, backend, collectives, kernel=None):
        groups = Groups(case.topology(), rank, backend, collectives)
        self.case = case
        self.rings = Rings.of(groups)
        self.ring = RingAttention(self.rings)
        head = groups.get("head")
        self.attention = wrap_attention(self.ring.attention(kernel or KERNELS[case.kernel]), head)
        ranges = own_ranges(case.cuts[-1], Part(head.rank, head.size), self.rings.place)
        self.tokens = torch.cat([torch.arange(*run) for run in ranges])

    def inputs(self):
        *inputs, grad = (x[self.tokens] for x in self.case.inputs())
        return [x.requires_grad_() for x in inputs], grad

    def attend(self):
        """Own tokens; result and gradients of these."""
        inputs, grad = self.inputs()
        out = self.attention(*inputs, **self.case.options)
        return self.tokens, [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def joined(of_ranks):
    """What the ranks have, in the order of the sequence."""
    order = torch.cat([tokens for tokens, _ in of_ranks]).argsort()
    return [torch.cat(parts)[order] for parts in zip(*(results for _, results in of_ranks), strict=True)]


# --- on processes -------------------------------------------------------------------------------------------------


def attend(cases):
    """On every rank of the pool."""
    return [OnRank(case, dist.get_rank(), CPUBackend(), None).attend() for case in cases]


def record(case):
    """What one rank exchanges in one forward and in one backward, with a mark for each call of the kernel."""
    recorder = RecordingCollectives(CPUBackend().collectives())
    kernel = KERNELS[case.kernel]

    def marking(function):
        def marked(*args, **options):
            recorder.mark("compute")
            return function(*args, **options)

        return marked

    rank = OnRank(case, dist.get_rank(), CPUBackend(), recorder, type(kernel)(*map(marking, kernel)))
    inputs, grad = rank.inputs()
    out = rank.attention(*inputs, **case.options)
    forward = list(recorder.events)
    recorder.clear()
    out.backward(grad)
    return forward, list(recorder.events)


# --- on threads ---------------------------------------------------------------------------------------------------

PATIENCE = 20.0
"""Seconds after which a message counts as never fetched."""


class Hand(Collectives):
    """Messages between threads, from hand to hand: a send is over when it was fetched, a receive when it has come.

    The strictest library there can be: whoever waits in a circle here waits for ever.
    """

    def __init__(self, rank, boxes):
        self._rank, self._boxes = rank, boxes

    def send(self, tensor, destination, group=None):
        letters, receipts = self._boxes[group, self._rank, destination]
        letters.put(tensor.clone())
        receipts.get(timeout=PATIENCE)
        return FINISHED

    def recv(self, tensor, source, group=None):
        letters, receipts = self._boxes[group, source, self._rank]
        tensor.copy_(letters.get(timeout=PATIENCE))
        receipts.put(None)
        return FINISHED


class Boxes(dict):
    """By group, sender and receiver; ``setdefault`` is atomic, ``defaultdict`` is not."""

    def __missing__(self, key):
        return self.setdefault(key, (queue.Queue(), queue.Queue()))


class Counting(Backend):
    """Names groups by the order in which every rank makes them."""

    def __init__(self):
        self._numbers = count()

    def new_group(self, ranks):
        return next(self._numbers)


def on_threads(case, function):
    """``function(rank)`` on every rank of a grid of one head, in rank order."""
    boxes = Boxes()
    ranks = [OnRank(case, rank, Counting(), Hand(rank, boxes)) for rank in range(case.ranks)]
    with ThreadPoolExecutor(case.ranks) as pool:
        return list(pool.map(function, ranks))
