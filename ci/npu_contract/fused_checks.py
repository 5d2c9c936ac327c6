"""Checks of the stand-in's fused operators, called through torch_npu.

The expected values come from PyTorch's autograd over the plain formulas, not from the stand-in's kernels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import torch_npu
from checking import NPU, agree, randn, refuses
from torch import Tensor


def norms() -> None:
    def formula(x: Tensor, w: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w

    for dtype in (torch.float32, torch.bfloat16):
        agree(lambda x, w: torch_npu.npu_rms_norm(x, w, 1e-6)[0], formula, (randn(6, 32), randn(32)), dtype)
    x = randn(2, 4).to(NPU)
    refuses("gamma", lambda: torch_npu.npu_rms_norm(x, torch.ones(3, device=NPU)))
    refuses("dtype", lambda: torch_npu.npu_rms_norm(x, torch.ones(4, device=NPU, dtype=torch.float16)))


def rotary() -> None:
    angles = randn(5, 4)

    def half(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def pairs(x: Tensor) -> Tensor:
        turned = (
            torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)[:, None]
        )
        return torch.view_as_real(turned).flatten(-2)

    for mode, formula in (("half", half), ("interleave", pairs)):
        full = torch.cat((angles, angles), -1) if mode == "half" else angles.repeat_interleave(2, -1)
        cos, sin = (f(full)[:, None].to(NPU) for f in (torch.cos, torch.sin))
        agree(lambda x, c=cos, s=sin, m=mode: torch_npu.npu_rotary_mul(x, c, s, m), formula, (randn(5, 2, 8),))
    refuses("as wide as x", lambda: torch_npu.npu_rotary_mul(randn(5, 2, 8).to(NPU), cos[..., :4], sin[..., :4]))


def gated_activations() -> None:
    def swiglu(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    agree(torch_npu.npu_swiglu, swiglu, (randn(6, 32),))
    for code, name in enumerate(("none", "tanh")):
        for left in (False, True):

            def geglu(x: Tensor, name: str = name, left: bool = left) -> Tensor:
                first, second = x.chunk(2, -1)
                return F.gelu(first, approximate=name) * second if left else first * F.gelu(second, approximate=name)

            agree(lambda x, code=code, left=left: torch_npu.npu_geglu(x, -1, code, left)[0], geglu, (randn(6, 32),))
    refuses("even", lambda: torch_npu.npu_swiglu(randn(2, 5).to(NPU)))


def sdpa(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
    """``[N, S, D]``; keys and values are shared by neighbouring query heads."""
    k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], 0) for x in (k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return torch.nan_to_num(scores.softmax(-1)) @ v


COMPRESSED = torch.ones(2048, 2048, dtype=torch.bool).triu(1)


def hidden_of(queries: int, keys: int, window: int | None) -> Tensor:
    i, j = torch.arange(queries)[:, None] + keys - queries, torch.arange(keys)[None]
    return (j > i) if window is None else (j > i) | (j <= i - window)


def dense_attention() -> None:
    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.stack([sdpa(*qkv, hidden_of(6, 6, None)) for qkv in zip(q, k, v, strict=True)])

    inputs = (randn(2, 4, 6, 16), randn(2, 2, 6, 16), randn(2, 2, 6, 16) + 1)
    mask = COMPRESSED.to(NPU)
    agree(
        lambda q, k, v: torch_npu.npu_fusion_attention(
            q, k, v, 4, "BNSD", atten_mask=mask, scale=0.25, sparse_mode=3
        )[0],
        formula,
        inputs,
    )
    transposed = [x.transpose(1, 2).contiguous() for x in inputs]
    agree(
        lambda q, k, v: torch_npu.npu_fusion_attention(
            q, k, v, 4, "BSND", atten_mask=mask, scale=0.25, sparse_mode=2
        )[0],
        lambda q, k, v: formula(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2),
        transposed,
    )


def packed_attention() -> None:
    q_ends, k_ends = [3, 10, 16], [5, 12, 14]  # the last document has more queries than keys: rows that see nothing
    inputs = (randn(16, 4, 16), randn(14, 2, 16), randn(14, 2, 16) - 1)
    mask = COMPRESSED.to(NPU)
    for window in (None, 3):
        mode = (
            {"sparse_mode": 3} if window is None else {"sparse_mode": 4, "pre_tockens": window - 1, "next_tockens": 0}
        )

        def formula(q: Tensor, k: Tensor, v: Tensor, window: int | None = window) -> Tensor:
            pieces = []
            for a, b, c, d in zip([0, *q_ends], q_ends, [0, *k_ends], k_ends, strict=False):
                one = (q[a:b].transpose(0, 1), k[c:d].transpose(0, 1), v[c:d].transpose(0, 1))
                pieces.append(sdpa(*one, hidden_of(b - a, d - c, window)).transpose(0, 1))
            return torch.cat(pieces)

        for layout in ("", "TND"):

            def fused(q: Tensor, k: Tensor, v: Tensor, mode: dict[str, int] = mode, layout: str = layout) -> Tensor:
                out: Tensor = torch_npu.npu_fusion_attention(
                    q, k, v, 4, "TND", atten_mask=mask, scale=0.25, softmax_layout=layout,
                    actual_seq_qlen=q_ends, actual_seq_kvlen=k_ends, **mode,
                )[0]  # fmt: skip
                return out

            agree(fused, formula, inputs)
    q, k, v = (x.to(NPU) for x in inputs)
    call = torch_npu.npu_fusion_attention
    packed = {"actual_seq_qlen": q_ends, "actual_seq_kvlen": k_ends, "scale": 0.25}
    by_head, by_token = (call(q, k, v, 4, "TND", softmax_layout=layout, **packed)[1] for layout in ("", "TND"))
    first = by_head[: q_ends[0]].reshape(4, q_ends[0], 8)
    assert torch.equal(first.transpose(0, 1), by_token[: q_ends[0]]), "statistics: head by head, or as the input"
    refuses("triu", lambda: call(q, k, v, 4, "TND", atten_mask=~mask, sparse_mode=3, **packed))
    refuses("2048 x 2048", lambda: call(q, k, v, 4, "TND", atten_mask=mask[:8, :8], sparse_mode=3, **packed))
    refuses("last of the 16 tokens", lambda: call(q, k, v, 4, "TND", **packed | {"actual_seq_qlen": [3, 10, 15]}))
    refuses("one dtype", lambda: call(q, k.half(), v, 4, "TND", **packed))


def attention_drops_the_same_in_backward() -> None:
    """The output is linear in the values: its gradient, found by backward, predicts its change."""
    q, k = (randn(1, 2, 8, 16).to(NPU) for _ in range(2))
    v = randn(1, 2, 8, 16).to(NPU).requires_grad_()

    def total(values: Tensor) -> Tensor:
        torch.npu.manual_seed(3)
        out: Tensor = torch_npu.npu_fusion_attention(q, k, values, 2, "BNSD", scale=0.25, keep_prob=0.75)[0]
        return out.sum()

    (grad,) = torch.autograd.grad(total(v), v)
    change = randn(1, 2, 8, 16).to(NPU)
    predicted = (grad * change).sum().item()
    assert math.isclose((total(v + change) - total(v)).item(), predicted, rel_tol=1e-3, abs_tol=1e-3)


def grouped_products() -> None:
    sizes = [3, 0, 5]
    ends = torch.tensor(sizes).cumsum(0)
    x, w, dy = randn(8, 6), randn(3, 6, 4), randn(8, 4)
    pieces = torch.split(x, sizes)
    rows = torch.cat([a @ b for a, b in zip(pieces, w, strict=True)])
    inner = torch.stack([a.t() @ b for a, b in zip(pieces, torch.split(dy, sizes), strict=True)])

    def product(a: Tensor, b: Tensor, group_list: Tensor, **options: int) -> Tensor:
        out: Tensor = torch_npu.npu_grouped_matmul([a], [b], group_list=group_list.to(NPU), split_item=3, **options)[
            0
        ]
        return out.cpu()

    for kind, numbers in ((0, ends), (1, torch.tensor(sizes))):
        found = product(x.to(NPU), w.to(NPU), numbers, group_type=0, group_list_type=kind)
        torch.testing.assert_close(found, rows)
        found = product(x.to(NPU).t(), dy.to(NPU), numbers, group_type=2, group_list_type=kind)
        torch.testing.assert_close(found, inner)
    refuses("the groups end", lambda: product(x.to(NPU), w.to(NPU), ends - 1, group_type=0, group_list_type=0))
    leaf = x.to(NPU).requires_grad_()
    torch_npu.npu_grouped_matmul([leaf], [w.to(NPU)], group_list=ends.to(NPU), split_item=3, group_type=0)[
        0
    ].sum().backward()
    assert leaf.grad is None, "torch_npu has learned to differentiate npu_grouped_matmul: say so in its kernel"


def experts() -> None:
    chosen = torch.tensor([[2, 0], [1, 2], [0, 1], [2, 1]])
    order = chosen.flatten().argsort(stable=True)
    place = order.argsort()
    agree(
        lambda x: torch_npu.npu_moe_token_permute(x, chosen.to(NPU))[0],
        lambda x: x.repeat_interleave(2, 0)[order],
        (randn(4, 8),),
        torch.bfloat16,
    )
    agree(
        lambda rows, p: torch_npu.npu_moe_token_unpermute(rows, place.int().to(NPU), probs=p),
        lambda rows, p: (rows[place].view(4, 2, 8) * p[..., None]).sum(1),
        (randn(8, 8), randn(4, 2)),
        torch.bfloat16,
    )
    refuses("bfloat16", lambda: torch_npu.npu_moe_token_permute(randn(4, 8).to(NPU), chosen.to(NPU)))


CHECKS = (
    norms,
    rotary,
    gated_activations,
    dense_attention,
    packed_attention,
    attention_drops_the_same_in_backward,
    grouped_products,
    experts,
)
