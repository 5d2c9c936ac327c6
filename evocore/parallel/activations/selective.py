"""Blocks that compute everything again in backward but attention (Korthikanti et al., 2022; Li et al., 2024).

Attention is the part of a block whose cost grows with the square of a document, and what it takes to not repeat it is
little: its output, and whatever else its kernel keeps for its backward besides queries, keys and values (flash
attention: the log-sum-exp of each query). Queries, keys and values are computed again like everything else.

A recomputed block is PyTorch's checkpoint without reentry: its first pass throws away what autograd wants to keep,
and the first node of its backward that asks for some of it runs the block again. The call of attention stands apart:

- In the first pass the kernel runs as it is, under hooks of its own. Of what it saves, views of its inputs become
  places in these, and everything else is kept. The node of the graph that it made stays.
- Behind it stands a node that saves the inputs, as far as the checkpoint is concerned the only thing that is saved
  there. It comes first in backward, and hands the inputs that were computed again to the kernel's node.
- In the second pass the kernel is not called: the kept output takes its place.

This serves every kernel that keeps tensors by autograd's means, whatever it keeps, and ring attention like a kernel:
its messages are not sent again either. Around it, heads are exchanged for tokens again: to keep the queries, keys and
values that came by the exchange would take the memory that recomputation is there to save.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

AttentionFunction = Callable[..., Tensor]
Kept = Callable[[], Tensor]
"""A tensor, wherever it is kept; called, it is on the device."""
Keep = Callable[[Tensor], Kept]


def keep_here(x: Tensor) -> Kept:
    """On the device."""
    return lambda: x


class KeptAttention:
    """Lets recomputed blocks keep what attention has computed, for all blocks of a model."""

    def __init__(self) -> None:
        self._calls: _FirstPass | _SecondPass | None = None

    def contexts(self, keep: Keep) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """Of one block and micro-batch: what to run its first and what to run its second pass in.

        Args:
            keep: of each tensor that attention keeps.
        """
        calls: list[_Call] = []
        return _Within(self, lambda: _FirstPass(calls, keep)), _Within(self, lambda: _SecondPass(iter(calls)))

    def wrap(self, function: AttentionFunction) -> AttentionFunction:
        """As the contract of ``attention``: the function itself outside of these contexts."""

        def attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
            calls = self._calls
            if calls is None:
                return function(q, k, v, **options)
            call, out = calls.run(function, (q, k, v), options)
            mixed: Tensor = _Inputs.apply(call, out, q, k, v)
            return mixed

        return attention


class _Within(AbstractContextManager[None]):
    """Sets ``_calls`` inside; may be entered again."""

    def __init__(self, kept: KeptAttention, make: Callable[[], _FirstPass | _SecondPass]) -> None:
        self._kept, self._make = kept, make

    def __enter__(self) -> None:
        assert self._kept._calls is None, "blocks do not lie in one another"
        self._kept._calls = self._make()

    def __exit__(self, *exception: object) -> None:
        self._kept._calls = None


class _FirstPass:
    def __init__(self, calls: list[_Call], keep: Keep) -> None:
        self._calls, self._keep = calls, keep

    def run(
        self, function: AttentionFunction, inputs: Sequence[Tensor], options: dict[str, Any]
    ) -> tuple[_Call, Tensor]:
        restored = _Restored()
        with saved_tensors_hooks(_packing(inputs, restored, self._keep), lambda kept: kept()):
            out = function(*inputs, **options)
        call = _Call(restored, self._keep(out.detach()))
        self._calls.append(call)
        return call, out


class _SecondPass:
    def __init__(self, calls: Iterator[_Call]) -> None:
        self._calls = calls

    def run(
        self, function: AttentionFunction, inputs: Sequence[Tensor], options: dict[str, Any]
    ) -> tuple[_Call, Tensor]:
        call = next(self._calls)
        return call, call.output()


class _Restored:
    """Inputs of attention: gone after the first pass, there again after the second, for the kernel's backward."""

    tensors: Sequence[Tensor] | None = None


class _Call:
    """One call of attention. Only the kernel's own node keeps the inputs, as long as its backward needs them."""

    def __init__(self, restored: _Restored, out: Kept) -> None:
        self._restored = ref(restored)
        self._out: Kept | None = out

    def output(self) -> Tensor:
        if self._out is None:
            raise RuntimeError("a block that keeps its attention can be differentiated once")
        return self._out()

    def restore(self, inputs: Sequence[Tensor]) -> None:
        """The second pass is over."""
        self._out = None
        restored = self._restored()
        if restored is not None:
            restored.tensors = inputs


def _packing(inputs: Sequence[Tensor], restored: _Restored, keep: Keep) -> Keep:
    """What becomes of a tensor that the kernel saves."""
    places = [(x.untyped_storage().data_ptr(), x.dtype, int(x.storage_offset()), x.stride()) for x in inputs]

    def pack(x: Tensor) -> Kept:
        memory = x.untyped_storage().data_ptr(), x.dtype
        for number, (storage, dtype, offset, stride) in enumerate(places):
            if memory == (storage, dtype) and x.numel():  # what is empty has no place in memory
                return _view(restored, number, stride, x.shape, x.stride(), int(x.storage_offset()) - offset)
        return keep(x.detach())

    return pack


def _view(
    restored: _Restored,
    number: int,
    input_stride: Sequence[int],
    shape: Sequence[int],
    stride: Sequence[int],
    behind: int,
) -> Kept:
    """A view of an input: ``behind`` elements further in the same memory."""

    def view() -> Tensor:
        assert restored.tensors is not None, "backward of attention comes after that of what follows it"
        x = restored.tensors[number]
        assert x.stride() == input_stride, "computed again, an input lies in memory as it did"
        return x.as_strided(shape, stride, x.storage_offset() + behind)

    return view


class _Inputs(torch.autograd.Function):
    """The output of attention as it is; saves the inputs, which a checkpoint drops and computes again."""

    @staticmethod
    def forward(ctx: Any, call: _Call, out: Tensor, *inputs: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*inputs)
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors  # this may be where recomputation takes place
        ctx.call.restore(inputs)
        return None, grad, *(None for _ in inputs)
