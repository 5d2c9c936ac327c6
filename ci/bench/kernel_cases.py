"""What ``kernels.py`` times: for each op its inputs, the plain PyTorch expression and its ideal cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evocore.ops.adamw import AdamWRequest
from evocore.ops.attention import AttentionRequest, CuSeqlens
from evocore.ops.cross_entropy import CrossEntropyRequest, LinearCrossEntropyRequest
from evocore.ops.glu import GeGLURequest, SwiGLURequest
from evocore.ops.kernel import Request
from evocore.ops.layer_norm import LayerNormRequest
from evocore.ops.rms_norm import AddRMSNormRequest, RMSNormRequest
from evocore.ops.rotary import RotaryRequest


class Shapes(NamedTuple):
    """Sizes of everything; ``document`` is the length of a document, the last one is shorter."""

    tokens: int = 1024
    hidden: int = 512
    ffn: int = 1536
    vocab: int = 4096
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 64
    document: int = 300
    window: int = 128

    def documents(self) -> CuSeqlens:
        return CuSeqlens.of([*range(0, self.tokens, self.document), self.tokens])


@dataclass
class Case:
    """``bytes`` and ``flops`` are what forward and backward must move and compute at least."""

    request: Request
    inputs: list[Tensor]
    plain: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    bytes: float = 0
    flops: float = 0
    plain_steps_itself: bool = False

    def step(self, function: Callable[..., Any]) -> Callable[[], object]:
        """Forward and backward of ``function``, without the accumulation into ``.grad``."""
        wanted = [tensor for tensor in self.inputs if tensor.requires_grad]
        if not wanted:
            return lambda: function(*self.inputs, **self.options)
        outputs = [out for out in _tensors(function(*self.inputs, **self.options)) if out.requires_grad]
        seeds = [torch.rand_like(out) for out in outputs]

        def forward_backward() -> object:
            outputs = [out for out in _tensors(function(*self.inputs, **self.options)) if out.requires_grad]
            return torch.autograd.grad(outputs, wanted, seeds)

        return forward_backward


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def attention(shapes: Shapes, dtype: torch.dtype, window: int | None = None, softcap: float | None = None) -> Case:
    T, N, K, H = shapes.tokens, shapes.heads, shapes.kv_heads, shapes.head_dim
    documents = shapes.documents()
    position = torch.arange(T)
    of = torch.bucketize(position, documents.device[1:].long(), right=True)
    age = position[:, None] - position
    mask = (of[:, None] == of) & (age >= 0) & (age < (window or T))

    def plain(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        if softcap is not None:
            k, v = (x.repeat_interleave(N // K, 1) for x in (k, v))
            scores = softcap * torch.tanh(q @ k.mT * (H**-0.5 / softcap))
            return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v)[0].transpose(0, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)

    return Case(
        AttentionRequest(dtype, N, K, H, window=window, softcap=softcap),
        [_leaf(T, N, H, dtype=dtype), _leaf(T, K, H, dtype=dtype), _leaf(T, K, H, dtype=dtype)],
        plain,
        {"q_documents": documents, "k_documents": documents, "window": window, "softcap": softcap},
        flops=(4 + 10) * int(mask.sum()) * N * H,  # 2 products forward, 5 backward
    )


def rms_norm(shapes: Shapes, dtype: torch.dtype) -> Case:
    T, D = shapes.tokens, shapes.hidden
    inputs = [_leaf(T, D, dtype=dtype), _leaf(D, dtype=dtype)]
    return Case(RMSNormRequest(dtype, D), inputs, _plain_rms, {"eps": 1e-5}, bytes=5 * T * D * dtype.itemsize)


def add_rms_norm(shapes: Shapes, dtype: torch.dtype) -> Case:
    T, D = shapes.tokens, shapes.hidden
    inputs = [_leaf(T, D, dtype=dtype), _leaf(T, D, dtype=dtype), _leaf(D, dtype=dtype)]

    def plain(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
        s = x + residual
        return _plain_rms(s, weight, eps=eps), s

    return Case(AddRMSNormRequest(dtype, D), inputs, plain, {"eps": 1e-5}, bytes=8 * T * D * dtype.itemsize)


def _plain_rms(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def layer_norm(shapes: Shapes, dtype: torch.dtype) -> Case:
    T, D = shapes.tokens, shapes.hidden
    inputs = [_leaf(T, D, dtype=dtype), _leaf(D, dtype=dtype), _leaf(D, dtype=dtype)]

    def plain(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
        return F.layer_norm(x, (D,), weight, bias, eps)

    return Case(LayerNormRequest(dtype, D), inputs, plain, {"eps": 1e-5}, bytes=5 * T * D * dtype.itemsize)


def rotary(shapes: Shapes, dtype: torch.dtype, interleaved: bool = False) -> Case:
    T, N, H = shapes.tokens, shapes.heads, shapes.head_dim
    angles = torch.arange(T)[:, None] * 1e4 ** -torch.linspace(0, 1, H // 2)

    def half(x: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> Tensor:
        a, b = x.chunk(2, -1)
        cos, sin = (torch.cat((c, c), -1)[:, None].to(x.dtype) for c in (cos, sin))
        return x * cos + torch.cat((-b, a), -1) * sin

    def pairs(x: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> Tensor:
        turned = torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * torch.complex(cos, sin)[:, None]
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)

    return Case(
        RotaryRequest(dtype, H, H // 2, interleaved),
        [_leaf(T, N, H, dtype=dtype), angles.cos(), angles.sin()],
        pairs if interleaved else half,
        {"interleaved": interleaved},
        bytes=4 * T * N * H * dtype.itemsize,
    )


def swiglu(shapes: Shapes, dtype: torch.dtype) -> Case:
    return _glu(shapes, dtype, SwiGLURequest(dtype, shapes.ffn), F.silu, {})


def geglu(shapes: Shapes, dtype: torch.dtype, approximate: str) -> Case:
    request, options = GeGLURequest(dtype, shapes.ffn, approximate), {"approximate": approximate}
    return _glu(shapes, dtype, request, F.gelu, options)


def _glu(shapes: Shapes, dtype: torch.dtype, request: Request, act: Callable[..., Tensor], options: dict) -> Case:
    T, F_ = shapes.tokens, shapes.ffn
    inputs = [_leaf(T, F_, dtype=dtype), _leaf(T, F_, dtype=dtype)]
    return Case(request, inputs, lambda g, u, **kw: act(g, **kw) * u, options, bytes=8 * T * F_ * dtype.itemsize)


def cross_entropy(shapes: Shapes, dtype: torch.dtype) -> Case:
    T, V = shapes.tokens, shapes.vocab
    inputs = [_leaf(T, V, dtype=dtype), torch.randint(V, (T,))]
    plain = lambda x, labels: F.cross_entropy(x.float(), labels, reduction="sum")  # noqa: E731
    return Case(CrossEntropyRequest(dtype, V), inputs, plain, bytes=2 * T * V * dtype.itemsize)


def linear_cross_entropy(shapes: Shapes, dtype: torch.dtype) -> Case:
    T, D, V = shapes.tokens, shapes.hidden, shapes.vocab
    inputs = [_leaf(T, D, dtype=dtype), _leaf(V, D, dtype=dtype), torch.randint(V, (T,))]
    plain = lambda x, w, labels: F.cross_entropy(F.linear(x, w).float(), labels, reduction="sum")  # noqa: E731
    return Case(LinearCrossEntropyRequest(dtype, D, V), inputs, plain, flops=6 * T * D * V)


def adamw(shapes: Shapes, dtype: torch.dtype) -> Case:
    dtype = torch.promote_types(dtype, torch.float32)
    sizes = [(shapes.hidden, shapes.ffn)] * 3 + [(shapes.vocab, shapes.hidden)] + [(shapes.hidden,)] * 2
    lists = [[torch.rand(size, dtype=dtype) for size in sizes] for _ in range(4)]
    plain = torch.optim.AdamW([torch.nn.Parameter(p) for p in lists[0]])
    for group in plain.param_groups:
        for p in group["params"]:
            p.grad = torch.rand_like(p)
    numbers = {"step": 3, "lr": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    moved = 7 * sum(p.nbytes for p in lists[0])
    case = Case(AdamWRequest(dtype), [], plain.step, bytes=moved, plain_steps_itself=True)
    case.step = lambda function: lambda: function(*lists, **numbers)  # type: ignore[method-assign]
    return case


CASES: dict[str, Callable[[Shapes, torch.dtype], Case]] = {
    "attention": attention,
    "attention window": lambda shapes, dtype: attention(shapes, dtype, shapes.window),
    "attention softcap": lambda shapes, dtype: attention(shapes, dtype, softcap=30.0),
    "rms_norm": rms_norm,
    "add_rms_norm": add_rms_norm,
    "layer_norm": layer_norm,
    "rotary": rotary,
    "rotary interleaved": lambda shapes, dtype: rotary(shapes, dtype, interleaved=True),
    "swiglu": swiglu,
    "geglu": lambda shapes, dtype: geglu(shapes, dtype, "tanh"),
    "geglu erf": lambda shapes, dtype: geglu(shapes, dtype, "none"),
    "cross_entropy": cross_entropy,
    "linear_cross_entropy": linear_cross_entropy,
    "adamw": adamw,
}
