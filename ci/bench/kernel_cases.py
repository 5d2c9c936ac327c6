"""The cases of the kernel benchmarks, one per op and variant, at any shapes, in any dtype, on any device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from case import Case, Cost, Maker
from torch import Tensor

from evocore.ops.adamw import AdamWRequest
from evocore.ops.attention import AttentionRequest, CuSeqlens
from evocore.ops.cross_entropy import CrossEntropyRequest, LinearCrossEntropyRequest
from evocore.ops.glu import GeGLURequest, SwiGLURequest
from evocore.ops.grouped_linear import GroupedLinearRequest, Groups
from evocore.ops.kernel import Request
from evocore.ops.layer_norm import LayerNormRequest
from evocore.ops.moe import MoEPermuteRequest, MoEUnpermuteRequest, Permutation, permutation_of
from evocore.ops.rms_norm import AddRMSNormRequest, RMSNormRequest
from evocore.ops.rotary import RotaryRequest

LARGEST_MASK = 4096
"""Tokens up to which plain attention is one call with a mask; beyond, it is one call per document."""


def attention(maker: Maker, window: int | None = None, softcap: float | None = None, ragged: bool = False) -> Case:
    shapes, device = maker.shapes, maker.device
    T, N, K, H = shapes.tokens, shapes.heads, shapes.kv_heads, shapes.head_dim
    lengths = shapes.lengths(ragged)
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    documents = CuSeqlens.of(ends, device)
    one_call = T <= LARGEST_MASK

    def masked(mask: Tensor, q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        if softcap is not None:
            k, v = (x.repeat_interleave(N // K, 1) for x in (k, v))
            scores = softcap * torch.tanh(q @ k.mT * (H**-0.5 / softcap))
            return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v)[0].transpose(0, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=N != K)[0].transpose(0, 1)

    def by_document(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        outputs = []
        for start, end in pairwise(ends):
            one_q, one_k, one_v = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
            out = F.scaled_dot_product_attention(one_q, one_k, one_v, is_causal=True, enable_gqa=N != K)
            outputs.append(out[0].transpose(0, 1))
        return torch.cat(outputs)

    if not one_call and (window is not None or softcap is not None):
        raise ValueError(f"plain attention with a window or a softcap takes {LARGEST_MASK} tokens at most, not {T}")
    product = 2 * N * H * sum(_visible_pairs(length, window) for length in lengths)
    q_bytes, k_bytes = maker.nbytes(T * N * H), maker.nbytes(T * K * H)
    return Case(
        AttentionRequest(maker.dtype, N, K, H, window=window, softcap=softcap),
        [maker.leaf(T, N, H), maker.leaf(T, K, H), maker.leaf(T, K, H)],
        partial(masked, _attention_mask(lengths, window).to(device)) if one_call else by_document,
        {"q_documents": documents, "k_documents": documents, "window": window, "softcap": softcap},
        forward=Cost(2 * q_bytes + 2 * k_bytes, 2 * product),
        backward=Cost(4 * q_bytes + 4 * k_bytes, 5 * product),
    )


def _attention_mask(lengths: list[int], window: int | None) -> Tensor:
    of = torch.repeat_interleave(torch.tensor(lengths))
    age = torch.arange(len(of))[:, None] - torch.arange(len(of))
    return (of[:, None] == of) & (age >= 0) & (age < (window or len(of)))


def _visible_pairs(length: int, window: int | None) -> int:
    seen = min(window or length, length)
    return seen * (seen + 1) // 2 + (length - seen) * seen


def rms_norm(maker: Maker) -> Case:
    T, D = maker.shapes.tokens, maker.shapes.hidden
    return Case(
        RMSNormRequest(maker.dtype, D),
        [maker.leaf(T, D), maker.leaf(D)],
        _plain_rms,
        {"eps": 1e-5},
        forward=Cost(maker.nbytes(2 * T * D)),
        backward=Cost(maker.nbytes(3 * T * D)),
    )


def add_rms_norm(maker: Maker) -> Case:
    T, D = maker.shapes.tokens, maker.shapes.hidden

    def plain(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
        s = x + residual
        return _plain_rms(s, weight, eps=eps), s

    return Case(
        AddRMSNormRequest(maker.dtype, D),
        [maker.leaf(T, D), maker.leaf(T, D), maker.leaf(D)],
        plain,
        {"eps": 1e-5},
        forward=Cost(maker.nbytes(4 * T * D)),
        backward=Cost(maker.nbytes(4 * T * D)),  # both inputs have the same gradient
    )


def _plain_rms(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def layer_norm(maker: Maker) -> Case:
    T, D = maker.shapes.tokens, maker.shapes.hidden

    def plain(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
        return F.layer_norm(x, (D,), weight, bias, eps)

    return Case(
        LayerNormRequest(maker.dtype, D),
        [maker.leaf(T, D), maker.leaf(D), maker.leaf(D)],
        plain,
        {"eps": 1e-5},
        forward=Cost(maker.nbytes(2 * T * D)),
        backward=Cost(maker.nbytes(3 * T * D)),
    )


def rotary(maker: Maker, interleaved: bool = False) -> Case:
    T, N, H = maker.shapes.tokens, maker.shapes.heads, maker.shapes.head_dim
    angles = torch.arange(T, device=maker.device)[:, None] * 1e4 ** -torch.linspace(0, 1, H // 2, device=maker.device)

    def half(x: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> Tensor:
        a, b = x.chunk(2, -1)
        cos, sin = (torch.cat((c, c), -1)[:, None].to(x.dtype) for c in (cos, sin))
        return x * cos + torch.cat((-b, a), -1) * sin

    def pairs(x: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> Tensor:
        turned = torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * torch.complex(cos, sin)[:, None]
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)

    cos, sin = angles.cos(), angles.sin()
    one_way = Cost(maker.nbytes(2 * T * N * H) + cos.nbytes + sin.nbytes)
    return Case(
        RotaryRequest(maker.dtype, H, H // 2, interleaved),
        [maker.leaf(T, N, H), cos, sin],
        pairs if interleaved else half,
        {"interleaved": interleaved},
        forward=one_way,
        backward=one_way,
    )


def swiglu(maker: Maker) -> Case:
    return _glu(maker, SwiGLURequest(maker.dtype, maker.shapes.ffn), F.silu, {})


def geglu(maker: Maker, approximate: str = "tanh") -> Case:
    request, options = GeGLURequest(maker.dtype, maker.shapes.ffn, approximate), {"approximate": approximate}
    return _glu(maker, request, F.gelu, options)


def _glu(maker: Maker, request: Request, activation: Callable[..., Tensor], options: dict[str, Any]) -> Case:
    T, ffn = maker.shapes.tokens, maker.shapes.ffn
    return Case(
        request,
        [maker.leaf(T, ffn), maker.leaf(T, ffn)],
        lambda gate, up, **kw: activation(gate, **kw) * up,
        options,
        forward=Cost(maker.nbytes(3 * T * ffn)),
        backward=Cost(maker.nbytes(5 * T * ffn)),
    )


def cross_entropy(maker: Maker) -> Case:
    T, V = maker.shapes.tokens, maker.shapes.vocab
    return Case(
        CrossEntropyRequest(maker.dtype, V),
        [maker.leaf(T, V), torch.randint(V, (T,), device=maker.device)],
        lambda x, labels: F.cross_entropy(x.float(), labels, reduction="sum"),
        forward=Cost(maker.nbytes(T * V)),
        backward=Cost(maker.nbytes(T * V)),
    )


def linear_cross_entropy(maker: Maker) -> Case:
    T, D, V = maker.shapes.tokens, maker.shapes.hidden, maker.shapes.vocab
    weight = (torch.randn(V, D, dtype=maker.dtype, device=maker.device) * D**-0.5).requires_grad_()
    return Case(
        LinearCrossEntropyRequest(maker.dtype, D, V),
        [maker.leaf(T, D), weight, torch.randint(V, (T,), device=maker.device)],
        lambda x, w, labels: F.cross_entropy(F.linear(x, w).float(), labels, reduction="sum"),
        forward=Cost(flops=2 * T * D * V),
        backward=Cost(flops=4 * T * D * V),
    )


def grouped_linear(maker: Maker) -> Case:
    shapes = maker.shapes
    R, D, ffn, E = shapes.tokens, shapes.hidden, shapes.ffn, shapes.experts
    sizes = shapes.group_sizes()

    def plain(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
        return torch.cat([part @ w.T for part, w in zip(x.split(sizes), weight, strict=True)])

    return Case(
        GroupedLinearRequest(maker.dtype, D, ffn, E),
        [maker.leaf(R, D), maker.leaf(E, ffn, D), Groups.of(sizes, maker.device)],
        plain,
        forward=Cost(flops=2 * R * D * ffn),
        backward=Cost(flops=4 * R * D * ffn),
    )


def moe_permute(maker: Maker) -> Case:
    shapes = maker.shapes
    T, D, E, k = shapes.tokens, shapes.hidden, shapes.experts, shapes.top_k

    def plain(x: Tensor, experts_TK: Tensor, *, experts: int) -> Tensor:
        return x[experts_TK.flatten().argsort(stable=True) // k]

    return Case(
        MoEPermuteRequest(maker.dtype, D, k, E),
        [maker.leaf(T, D), _choices(maker)],
        plain,
        {"experts": E},
        forward=Cost(maker.nbytes((1 + k) * T * D)),
        backward=Cost(maker.nbytes((1 + k) * T * D)),
    )


def moe_unpermute(maker: Maker) -> Case:
    shapes = maker.shapes
    T, D, E, k = shapes.tokens, shapes.hidden, shapes.experts, shapes.top_k
    weights = torch.rand(T, k, dtype=maker.dtype, device=maker.device, requires_grad=True)

    def plain(rows: Tensor, permutation: Permutation, weights: Tensor) -> Tensor:
        return (rows[permutation.row_TK] * weights[..., None]).sum(1)

    return Case(
        MoEUnpermuteRequest(maker.dtype, D, k, E),
        [maker.leaf(T * k, D), permutation_of(_choices(maker), E), weights],
        plain,
        forward=Cost(maker.nbytes((k + 1) * T * D)),
        backward=Cost(maker.nbytes((2 * k + 1) * T * D)),
    )


def _choices(maker: Maker) -> Tensor:
    """``[T, k]`` different experts of each token."""
    shapes = maker.shapes
    return torch.rand(shapes.tokens, shapes.experts, device=maker.device).topk(shapes.top_k).indices


def adamw(maker: Maker) -> Case:
    shapes, dtype = maker.shapes, torch.promote_types(maker.dtype, torch.float32)
    sizes = [(shapes.hidden, shapes.ffn)] * 3 + [(shapes.vocab, shapes.hidden)] + [(shapes.hidden,)] * 2
    lists = [[torch.rand(size, dtype=dtype, device=maker.device) for size in sizes] for _ in range(4)]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(p) for p in lists[0]])
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.rand_like(p)
    return Case(
        AdamWRequest(dtype),
        list(lists),
        lambda *_, **__: optimizer.step(),
        {"step": 3, "lr": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1},
        forward=Cost(7 * sum(p.nbytes for p in lists[0])),
        checked=False,  # every candidate updates the same parameters
    )


CASES: dict[str, Callable[[Maker], Case]] = {
    "attention": attention,
    "attention ragged": lambda maker: attention(maker, ragged=True),
    "attention window": lambda maker: attention(maker, maker.shapes.window),
    "attention softcap": lambda maker: attention(maker, softcap=30.0),
    "rms_norm": rms_norm,
    "add_rms_norm": add_rms_norm,
    "layer_norm": layer_norm,
    "rotary": rotary,
    "rotary interleaved": lambda maker: rotary(maker, interleaved=True),
    "swiglu": swiglu,
    "geglu": geglu,
    "geglu erf": lambda maker: geglu(maker, "none"),
    "cross_entropy": cross_entropy,
    "linear_cross_entropy": linear_cross_entropy,
    "grouped_linear": grouped_linear,
    "moe_permute": moe_permute,
    "moe_unpermute": moe_unpermute,
    "adamw": adamw,
}
