"""InternLM 1, 2 and 3 and Baichuan2 written out, on tensors with the names and layouts of their Hugging Face files.

No kernels, no packing, no cache: dense masks and einsum, one function for what the four have in common.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Plain:
    """What a released implementation does.

    Attributes:
        norms: names of the norms before attention and MLP.
        mlp: names of gate, up and down projections.
        output: name of attention's output projection.
        ends: names of embedding, last norm and head.
        qkv: ``(weights of the layer, x, heads, kv_heads, head_dim) -> q [T, N, H], k [T, K, H], v [T, K, H]``.
        normalises_head: the head's rows have length one.
    """

    norms: tuple[str, str]
    mlp: tuple[str, str, str]
    output: str
    ends: tuple[str, str, str]
    qkv: Callable[[Weights, Tensor, int, int, int], tuple[Tensor, Tensor, Tensor]]
    normalises_head: bool = False

    def logits(
        self,
        weights: Weights,
        tokens_T: Tensor,
        lengths: list[int],
        *,
        layers: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        eps: float,
        frequencies_P: Tensor,
    ) -> Tensor:
        """``[T, V]`` of documents one behind another."""
        embedding, last_norm, head = self.ends
        angles_TP = torch.cat([torch.arange(length) for length in lengths])[:, None] * frequencies_P
        document_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        order_T = torch.arange(len(tokens_T))
        visible_TT = (document_T[:, None] == document_T[None]) & (order_T[:, None] >= order_T[None])
        x_TD = weights[f"{embedding}.weight"][tokens_T]
        for layer in range(layers):
            prefix = f"model.layers.{layer}."
            own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
            y_TD = normed(x_TD, own[f"{self.norms[0]}.weight"], eps)
            q_TNH, k_TKH, v_TKH = self.qkv(own, y_TD, heads, kv_heads, head_dim)
            q_TNH, k_TNH = turned(q_TNH, angles_TP), turned(k_TKH, angles_TP).repeat_interleave(heads // kv_heads, 1)
            scores_NTT = torch.einsum("tnh,snh->nts", q_TNH, k_TNH) / head_dim**0.5
            shares_NTT = scores_NTT.masked_fill(~visible_TT, float("-inf")).softmax(-1)
            mixed = torch.einsum("nts,snh->tnh", shares_NTT, v_TKH.repeat_interleave(heads // kv_heads, 1))
            x_TD = x_TD + linear(own, self.output, mixed.flatten(1))
            y_TD = normed(x_TD, own[f"{self.norms[1]}.weight"], eps)
            gate, up, down = self.mlp
            x_TD = x_TD + linear(own, down, F.silu(linear(own, gate, y_TD)) * linear(own, up, y_TD))
        head_VD = weights[f"{head}.weight"]
        if self.normalises_head:
            head_VD = head_VD / head_VD.norm(dim=1, keepdim=True)
        return normed(x_TD, weights[f"{last_norm}.weight"], eps) @ head_VD.T


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def turned(x_TNH: Tensor, angles_TP: Tensor) -> Tensor:
    """Pairs of features half a head apart as complex numbers."""
    turns = torch.polar(torch.ones_like(angles_TP), angles_TP)[:, None]
    pairs = torch.complex(*x_TNH.chunk(2, -1)) * turns
    return torch.cat([pairs.real, pairs.imag], -1)


def linear(own: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, own[f"{name}.weight"], own.get(f"{name}.bias"))


def _separate(own: Weights, y: Tensor, heads: int, kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (linear(own, f"self_attn.{name}_proj", y).unflatten(1, (-1, head_dim)) for name in "qkv")
    assert (q.shape[1], k.shape[1], v.shape[1]) == (heads, kv_heads, kv_heads)
    return q, k, v


def _packed(own: Weights, y: Tensor, heads: int, kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = linear(own, "self_attn.W_pack", y).unflatten(1, (3, heads, head_dim)).unbind(1)
    return q, k, v


def _grouped(own: Weights, y: Tensor, heads: int, kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    qkv = linear(own, "attention.wqkv", y).unflatten(1, (kv_heads, heads // kv_heads + 2, head_dim))
    return qkv[:, :, :-2].flatten(1, 2), qkv[:, :, -2], qkv[:, :, -1]


_NORMS = ("input_layernorm", "post_attention_layernorm")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_ENDS = ("model.embed_tokens", "model.norm", "lm_head")

LLAMA_LIKE = Plain(_NORMS, _MLP, "self_attn.o_proj", _ENDS, _separate)
BAICHUAN2 = Plain(_NORMS, _MLP, "self_attn.o_proj", _ENDS, _packed, normalises_head=True)
INTERNLM2 = Plain(
    ("attention_norm", "ffn_norm"),
    ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2"),
    "attention.wo",
    ("model.tok_embeddings", "model.norm", "output"),
    _grouped,
)


def frequencies(head_dim: int, base: float) -> Tensor:
    return base ** -(torch.arange(0, head_dim, 2) / head_dim)


def dynamic_frequencies(head_dim: int, base: float, factor: float, trained: int, longest: int) -> Tensor:
    """Those of a sequence of ``longest`` tokens, more than the model was trained on."""
    return frequencies(head_dim, base * (factor * longest / trained - (factor - 1)) ** (head_dim / (head_dim - 2)))
