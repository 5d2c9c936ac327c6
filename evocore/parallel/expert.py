"""Expert parallelism: each rank of a group has some of the experts, and rows travel to them and back.

How many rows go where is decided on the devices, step by step. One small exchange tells each rank how many come to
it, and the host waits for these numbers: the only time that a forward pass waits for its device, once per layer.
Nothing is padded and nothing dropped on the way. Backward takes the same ways back and knows the numbers.

Where tensor parallelism divides a layer as well, there are two ways. Experts are divided, too, each by its features:
then every tensor rank sends all tokens to its part of the experts, and their results add up. Or they are not
(``no_tp``): then each tensor rank sends its own part of the tokens, to more ranks.

Shapes: T tokens, D hidden, E experts of a layer, K experts per token, R = T * K rows, W ranks of the expert group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.nn.router import MicroBatchTokens
from evocore.ops.grouped_linear import Groups
from evocore.parallel.functions import copy, gather, gathered, join, reduce_, scatter_sum, split
from evocore.parallel.groups import Group

Ranges = list[tuple[int, int]]


class ExpertParallel:
    """``evocore.nn.experts.Dispatch`` between ranks.

    Args:
        mode: how the ranks of ``tensor`` share tokens, see ``evocore.parallel.sizes.MODES``.
        tensor: ranks that share a layer.
        divided: whether each expert is divided among these ranks.
        expert: ranks that share the experts, in the order of these.
    """

    def __init__(self, mode: str, tensor: Group, expert: Group, *, divided: bool) -> None:
        self._tensor, self._expert, self._divided = tensor, expert, divided and tensor.size > 1
        self._replicated = mode == "mtp"

    def enter(self, x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        group = self._tensor
        if self._divided and self._replicated:
            return copy(x_TD, group), experts_TK, copy(weights_TK, group)
        if self._divided:
            return gather(x_TD, group), gathered(experts_TK, group), gather(weights_TK, group)
        if self._replicated and group.size > 1:
            return split(x_TD, group), experts_TK.chunk(group.size)[group.rank], split(weights_TK, group)
        return x_TD, experts_TK, weights_TK

    def leave(self, y_TD: Tensor) -> Tensor:
        if self._divided:
            return reduce_(y_TD, self._tensor) if self._replicated else scatter_sum(y_TD, self._tensor)
        return join(y_TD, self._tensor) if self._replicated else y_TD

    def send(self, rows_RD: Tensor, groups: Groups) -> tuple[Tensor, Groups, Callable[[Tensor], Tensor]]:
        group = self._expert
        if group.size == 1:
            return rows_RD, groups, lambda done_RD: done_RD
        sent_We, received_We = self._agree(groups)
        to, come = [sum(row) for row in sent_We], [sum(row) for row in received_We]
        kept, rows = sum(to), len(rows_RD)
        arrived_RD = _Exchange.apply(rows_RD if kept == rows else rows_RD[:kept], group, to, come)
        by_expert = [list(column) for column in zip(*received_We, strict=True)]
        mine_RD = transpose_runs(arrived_RD, received_We)

        def back(done_RD: Tensor) -> Tensor:
            returned_RD: Tensor = _Exchange.apply(transpose_runs(done_RD, by_expert), group, come, to)
            nobodys = rows - kept  # choices that were dropped
            return torch.nn.functional.pad(returned_RD, (0, 0, 0, nobodys)) if nobodys else returned_RD

        return mine_RD, Groups.of([sum(row) for row in by_expert], rows_RD.device), back

    def _agree(self, groups: Groups) -> tuple[list[list[int]], list[list[int]]]:
        """Rows that go to each rank for each of its experts, and that come from each rank for each of ours."""
        sent_E = groups.ends_E.diff(prepend=groups.ends_E.new_zeros(1)).long()
        received_E = torch.empty_like(sent_E)
        self._expert.all_to_all(received_E, sent_E)
        sent_We, received_We = torch.stack([sent_E, received_E]).view(2, self._expert.size, -1).tolist()
        return sent_We, received_We


class SharedTokens(MicroBatchTokens):
    """A micro-batch whose tokens are divided over ranks.

    Args:
        group: these ranks.
        ranges: of how many tokens there are, the runs of tokens that each rank of the group has.
    """

    def __init__(self, group: Group, ranges: Callable[[int], list[Ranges]]) -> None:
        self.parts, self._group, self._ranges = group.size, group, ranges

    def sum(self, x: Tensor) -> Tensor:
        return reduce_(x, self._group)

    def gather(self, x: Tensor) -> Tensor:
        by_rank = gathered(x.contiguous(), self._group)
        ordered = torch.empty_like(by_rank)
        ordered[_places([run for runs in self._ranges(len(by_rank)) for run in runs], x.device)] = by_rank
        return ordered

    def own(self, x: Tensor) -> Tensor:
        return x[_places(self._ranges(len(x))[self._group.rank], x.device)]


def transpose_runs(rows_RD: Tensor, lengths: Sequence[Sequence[int]]) -> Tensor:
    """Rows that are runs ``(i, j)`` of these lengths, one ``i`` after another -> one ``j`` after another."""
    if len(lengths) == 1 or len(lengths[0]) == 1:
        return rows_RD
    runs = rows_RD.split([length for row in lengths for length in row])
    count = len(lengths[0])
    return torch.cat([runs[place] for j in range(count) for place in range(j, len(runs), count)])


def _places(runs: Ranges, device: torch.device) -> Tensor:
    return torch.cat([torch.arange(start, stop, device=device) for start, stop in runs])


class _Exchange(torch.autograd.Function):
    """Rows to ranks, as many as ``to`` says to each, and ``come`` from each."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Group, to: list[int], come: list[int]) -> Tensor:
        ctx.group, ctx.to, ctx.come = group, to, come
        return _exchanged(rows, group, to, come)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchanged(grad, ctx.group, ctx.come, ctx.to), None, None, None


def _exchanged(rows: Tensor, group: Group, to: list[int], come: list[int]) -> Tensor:
    received = rows.new_empty(sum(come), *rows.shape[1:])
    group.all_to_all(received, rows.contiguous(), output_splits=come, input_splits=to)
    return received
