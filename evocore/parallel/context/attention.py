"""Ring attention (Liu et al., 2023): each rank's queries meet the keys and values of all ranks as these come by.

Every block gives a part of the output, which is merged with the others by the log-sum-exp of its scores. In backward
keys and values travel again: nothing but a rank's own is kept.

Shapes: t tokens that this rank's place in the context group has, N query heads, K key-value heads, H head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.ops.attention import AttentionBlock, CuSeqlens, merge_attention
from evocore.parallel.context.plan import Call, Plan, Plans
from evocore.parallel.context.rings import Homeward, Rings, travelling


class RingAttention:
    """Attention over the ranks of a context group, for all layers of a model."""

    def __init__(self, rings: Rings) -> None:
        self._rings, self._plans = rings, Plans(rings.place)

    def attention(self, kernel: AttentionBlock) -> Callable[..., Tensor]:
        """The contract of ``attention`` for queries ``[t, N, H]``, keys and values ``[t, K, H]`` of this rank.

        The tokens are those that ``own_ranges`` gives a head group of one. Documents are those of the whole sequence,
        the same for queries and keys; attention is causal and has no window. All ranks of the context group call at
        the same time. Softmax statistics, the merged output and the sums of gradients are float32 (float64 for
        float64).

        Raises:
            ValueError: by that function, for documents of keys that are not those of the queries.
        """

        def attention(
            q_tNH: Tensor,
            k_tKH: Tensor,
            v_tKH: Tensor,
            *,
            q_documents: CuSeqlens,
            k_documents: CuSeqlens,
            **options: Any,
        ) -> Tensor:
            if q_documents.host != k_documents.host:
                raise ValueError("ring attention has no cache: the documents of keys must be those of the queries")
            if not options.pop("causal", True) or options.pop("window", None) is not None:
                raise ValueError("ring attention is causal and has no window")
            mixed_tNH: Tensor = _Ring.apply(
                q_tNH, k_tKH, v_tKH, kernel, self._rings, self._plans.of(q_documents), options
            )
            return mixed_tNH

        return attention


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_tNH: Tensor,
        k_tKH: Tensor,
        v_tKH: Tensor,
        kernel: AttentionBlock,
        rings: Rings,
        plan: Plan,
        options: dict[str, Any],
    ) -> Tensor:
        ctx.kernel, ctx.rings, ctx.plan, ctx.options = kernel, rings, plan, options
        blocks = travelling(torch.stack([k_tKH, v_tKH]), rings)
        first, kv_2tKH = next(blocks)
        own = plan[first]
        assert own is not None, "every token sees itself"
        out_tNH, lse_tN = kernel.forward(q_tNH, kv_2tKH[0], kv_2tKH[1], **_of(own), **options)
        out_tNH = out_tNH.to(lse_tN.dtype)
        for owner, kv_2tKH in blocks:
            call = plan[owner]
            if call is not None:
                here, there = call.queries, call.keys
                block = kernel.forward(q_tNH[here], kv_2tKH[0, there], kv_2tKH[1, there], **_of(call), **options)
                out_tNH[here], lse_tN[here] = merge_attention(out_tNH[here], lse_tN[here], *block)
        mixed_tNH = out_tNH.to(q_tNH.dtype)
        ctx.save_for_backward(q_tNH, k_tKH, v_tKH, mixed_tNH, lse_tN)
        return mixed_tNH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_tNH: Tensor) -> tuple[Tensor | None, ...]:
        q_tNH, k_tKH, v_tKH, mixed_tNH, lse_tN = ctx.saved_tensors
        wide = lse_tN.dtype
        grad_q_tNH = torch.zeros_like(q_tNH, dtype=wide)
        own_2tKH = torch.stack([k_tKH, v_tKH])
        homeward = Homeward(own_2tKH, wide, ctx.rings)
        for owner, kv_2tKH in travelling(own_2tKH, ctx.rings):
            call = ctx.plan[owner]
            if call is None:
                homeward.send_on(homeward.arrived())
                continue
            here, there = call.queries, call.keys
            shares = ctx.kernel.backward(
                grad_tNH[here],
                q_tNH[here],
                kv_2tKH[0, there],
                kv_2tKH[1, there],
                mixed_tNH[here],
                lse_tN[here],
                **_of(call),
                **ctx.options,
            )
            grad_q_tNH[here] += shares[0]
            total_2tKH = homeward.arrived()
            total_2tKH[0, there] += shares[1]
            total_2tKH[1, there] += shares[2]
            homeward.send_on(total_2tKH)
        grad_k_tKH, grad_v_tKH = homeward.result().to(k_tKH.dtype)
        return grad_q_tNH.to(q_tNH.dtype), grad_k_tKH, grad_v_tKH, None, None, None, None


def _of(call: Call) -> dict[str, Any]:
    return dict(q_documents=call.q_documents, k_documents=call.k_documents, causal=call.causal)
