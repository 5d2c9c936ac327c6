"""Stand-ins for what runs on an NVIDIA GPU only: same names, same arguments, same demands, plain arithmetic.

They refuse what the libraries refuse or would read wrongly: unknown keywords, rows that a vector load cannot reach, a
longest document that is longer than was said. ``calls`` remembers what each was told.
"""

from __future__ import annotations

import math
import sys
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

calls: list[Call] = []


class Call(NamedTuple):
    """One call of a library's function: its name and its arguments but for the first three or six tensors."""

    name: str
    told: dict


class Options(NamedTuple):
    """``left`` and ``right``: keys that a query sees beside its own, -1 for all; ``softcap`` 0 for none."""

    left: int
    right: int
    softcap: float
    scale: float


def install(monkeypatch, *modules: ModuleType) -> None:
    """Make modules importable for one test, and forget what was called before."""
    calls.clear()
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)


# --- the arithmetic -----------------------------------------------------------------------------------------------


def _documents(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor):
    starts = zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), strict=True)
    ends = list(starts)
    for (q_start, k_start), (q_end, k_end) in zip(ends, ends[1:], strict=False):
        yield slice(q_start, q_end), slice(k_start, k_end)


def _scores(q_NmH: Tensor, k_NnH: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Scores with the mask, and the slope of the softcap."""
    scores, slope = q_NmH @ k_NnH.mT * options.scale, torch.ones(())
    if options.softcap > 0:
        capped = (scores / options.softcap).tanh()
        scores, slope = options.softcap * capped, 1 - capped.square()
    m, n = scores.shape[-2:]
    distance = torch.arange(n) - torch.arange(n - m, n)[:, None]
    seen = torch.ones(m, n, dtype=torch.bool)
    if options.left >= 0:
        seen &= distance >= -options.left
    if options.right >= 0:
        seen &= distance <= options.right
    return scores.masked_fill(~seen, -math.inf), slope


def _forward(q, k, v, cu_seqlens_q, cu_seqlens_k, options: Options) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp ``[N, T]``, +inf for a query that sees nothing, as FlashAttention 2 has it."""
    group = q.shape[1] // k.shape[1]
    out, lse = torch.zeros(q.shape, dtype=q.dtype), q.new_full((q.shape[1], q.shape[0]), math.inf)
    for tokens, keys in _documents(cu_seqlens_q, cu_seqlens_k):
        if tokens.start == tokens.stop or keys.start == keys.stop:
            continue
        k_NnH, v_NnH = (x[keys].repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
        scores, _ = _scores(q[tokens].transpose(0, 1), k_NnH, options)
        out[tokens] = (scores.softmax(-1).nan_to_num() @ v_NnH).transpose(0, 1)
        found = scores.logsumexp(-1)
        lse[:, tokens] = found.masked_fill(found == -math.inf, math.inf)
    return out, lse


def _backward(dout, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, options: Options):
    """Gradients by the log-sum-exp and the output that are given: those of the whole row, not of this block."""
    group = q.shape[1] // k.shape[1]
    dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype) for x in (q, k, v))
    for tokens, keys in _documents(cu_seqlens_q, cu_seqlens_k):
        if tokens.start == tokens.stop or keys.start == keys.stop:
            continue
        q_NmH, dout_NmH, out_NmH = (x[tokens].transpose(0, 1) for x in (q, dout, out))
        k_NnH, v_NnH = (x[keys].repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
        scores, slope = _scores(q_NmH, k_NnH, options)
        probs = (scores - lse[:, tokens, None]).exp()
        assert not probs.isnan().any()
        delta = (dout_NmH * out_NmH).sum(-1, keepdim=True)
        dscores = probs * (dout_NmH @ v_NnH.mT - delta) * slope * options.scale
        dq[tokens] = (dscores @ k_NnH).transpose(0, 1)
        for grad, per_head in ((dk, dscores.mT @ q_NmH), (dv, probs.mT @ dout_NmH)):
            grad[keys] = per_head.unflatten(0, (-1, group)).sum(1).transpose(0, 1)
    return dq, dk, dv


def _demand(tensors, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, window) -> None:
    for x in tensors:
        assert x.stride(-1) == 1, "the last dimension must be contiguous"
        assert all(stride * x.element_size() % 16 == 0 for stride in x.stride()[:-1]), (
            "rows begin where none can read"
        )
        assert x.data_ptr() % 16 == 0, "rows begin where none can read"
        assert x.shape[0] > 0 and x.shape[-1] % 8 == 0 and x.shape[-1] <= 256
    for cu_seqlens, longest in ((cu_seqlens_q, max_seqlen_q), (cu_seqlens_k, max_seqlen_k)):
        assert cu_seqlens.dtype == torch.int32 and cu_seqlens.is_contiguous()
        assert type(longest) is int and int(cu_seqlens.diff().max()) <= longest
    if max_seqlen_q == 1 and not causal and window[0] < 0 and tensors[0].shape[1] != tensors[1].shape[1]:
        assert len(tensors[0]) == len(cu_seqlens_q) - 1, "the way for generation wants a query in every document"


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, cu_seqlens_q, cu_seqlens_k, options):
        out, lse = _forward(q, k, v, cu_seqlens_q, cu_seqlens_k, options)
        ctx.save_for_backward(q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k)
        ctx.options = options
        return out, lse

    @staticmethod
    def backward(ctx, dout, dlse):
        q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k = ctx.saved_tensors
        return *_backward(dout, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, ctx.options), None, None, None


def _varlen(name, q, k, v, told, window):
    causal, scale = told["causal"], told["softmax_scale"]
    places = [told[key] for key in ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")]
    _demand((q, k, v), *places, causal, window)
    calls.append(Call(name, told))
    left, right = window
    options = Options(left, 0 if causal else right, told["softcap"], q.shape[-1] ** -0.5 if scale is None else scale)
    return _Differentiable.apply(q, k, v, *places[:2], options)


# --- flash-attn 2, 3 and 4 ----------------------------------------------------------------------------------------


def flash_attn_2() -> list[ModuleType]:
    """The package flash-attn 2.8: its varlen function and the operators below it."""
    package, interface = ModuleType("flash_attn"), ModuleType("flash_attn.flash_attn_interface")

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
        return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        told = dict(locals())
        return _varlen("flash_attn_varlen_func", *(told.pop(name) for name in "qkv"), told, window_size)[0]

    def _flash_attn_varlen_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False,
        block_table=None, leftpad_k=None, seqused_k=None, zero_tensors=False,
    ):  # fmt: skip
        told = dict(locals())
        assert type(softmax_scale) is float, "an operator with a schema: None is no number"
        q, k, v = (told.pop(name).detach() for name in "qkv")
        out, lse = _varlen("_flash_attn_varlen_forward", q, k, v, told, (window_size_left, window_size_right))
        return out, lse, q.new_empty(0), torch.empty(2, dtype=torch.int64)

    def _flash_attn_varlen_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes, deterministic,
        rng_state=None, zero_tensors=False,
    ):  # fmt: skip
        window = (window_size_left, window_size_right)
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        _demand((q, k, v, dout, out, dq, dk, dv), *lengths, causal, window)
        assert softmax_lse.is_contiguous() and softmax_lse.shape == (q.shape[1], q.shape[0])
        calls.append(Call("_flash_attn_varlen_backward", {"deterministic": deterministic}))
        options = Options(window_size_left, 0 if causal else window_size_right, softcap, softmax_scale)
        grads = _backward(dout, q, k, v, out, softmax_lse, cu_seqlens_q, cu_seqlens_k, options)
        for target, grad in zip((dq, dk, dv), grads, strict=True):
            target.copy_(grad)
        return softmax_lse

    package.flash_attn_varlen_func = flash_attn_varlen_func
    interface._flash_attn_varlen_forward = _flash_attn_varlen_forward
    interface._flash_attn_varlen_backward = _flash_attn_varlen_backward
    return [package, interface]


def flash_attn_3(returns_lse: bool = False) -> list[ModuleType]:
    """``flash_attn_interface`` of FlashAttention 3; early ones returned the log-sum-exp as well."""
    module = ModuleType("flash_attn_interface")

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
        softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False,
    ):  # fmt: skip
        told = dict(locals())
        out, lse = _varlen("flash_attn_3", *(told.pop(name) for name in "qkv"), told, window_size)
        return (out, lse) if returns_lse else out

    module.flash_attn_varlen_func = flash_attn_varlen_func
    return [module]


def flash_attn_4() -> list[ModuleType]:
    """``flash_attn.cute`` of FlashAttention 4, whose word for a side without a limit is None."""
    package, cute = ModuleType("flash_attn"), ModuleType("flash_attn.cute")
    interface = ModuleType("flash_attn.cute.interface")

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, seqused_q=None,
        seqused_k=None, page_table=None, softmax_scale=None, causal=False, window_size=(None, None),
        learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, score_mod=None,
        mask_mod=None, block_sparse_tensors=None, cu_total_m_blocks=None, cu_total_n_blocks=None, aux_tensors=None,
        return_lse=False,
    ):  # fmt: skip
        told = dict(locals())
        assert -1 not in window_size, "-1 would be a window that ends before the query"
        window = tuple(-1 if side is None else side for side in window_size)
        return _varlen("flash_attn_4", *(told.pop(name) for name in "qkv"), told, window)

    interface.flash_attn_varlen_func = flash_attn_varlen_func
    return [package, cute, interface]


# --- PyTorch's own operators --------------------------------------------------------------------------------------


@contextmanager
def aten_flash_attention():
    """PyTorch's packed attention on the CPU: through its dispatcher, which checks the arguments by their schema."""
    calls.clear()

    def forward(
        query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *, scale=None,
        window_size_left=None, window_size_right=None, **others,
    ):  # fmt: skip
        told = {
            "cu_seqlens_q": cum_seq_q, "cu_seqlens_k": cum_seq_k, "max_seqlen_q": max_q, "max_seqlen_k": max_k,
            "causal": is_causal, "softmax_scale": scale, "softcap": 0.0,
        }  # fmt: skip
        assert dropout_p == 0 and not return_debug_mask and not any(others.values())
        out, lse = _varlen("forward", query, key, value, told, (window_size_left, window_size_right))
        state = torch.empty(2, dtype=torch.uint64)
        return out.detach(), lse.detach(), state, query.new_empty(0), query.new_empty(0)

    def backward(
        grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal,
        rng_state, unused, *, scale=None, window_size_left=None, window_size_right=None,
    ):  # fmt: skip
        window = (window_size_left, window_size_right)
        _demand((query, key, value, grad_out, out), cum_seq_q, cum_seq_k, max_q, max_k, is_causal, window)
        assert logsumexp.is_contiguous() and dropout_p == 0
        calls.append(Call("backward", {"deterministic": torch.are_deterministic_algorithms_enabled()}))
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        options = Options(window_size_left, 0 if is_causal else window_size_right, 0.0, scale)
        return _backward(grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, options)

    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    try:
        yield
    finally:
        library._destroy()


# --- apex ---------------------------------------------------------------------------------------------------------


def apex() -> list[ModuleType]:
    """Apex's fused norms for mixed types, which return the type of the weight, and its multi-tensor Adam."""
    package, normalization = ModuleType("apex"), ModuleType("apex.normalization")
    norms, adam = ModuleType("apex.normalization.fused_layer_norm"), ModuleType("amp_C")

    def mixed_dtype_fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False):
        assert len(input) and tuple(normalized_shape) == weight.shape == input.shape[-1:]
        calls.append(Call("rms_norm", {"input": input.dtype, "weight": weight.dtype}))
        x = input.float()
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight

    def mixed_dtype_fused_layer_norm_affine(input, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False):
        assert len(input) and tuple(normalized_shape) == weight.shape == bias.shape == input.shape[-1:]
        calls.append(Call("layer_norm", {"input": input.dtype, "weight": weight.dtype}))
        return torch.nn.functional.layer_norm(input.float(), normalized_shape, weight, bias, eps)

    def multi_tensor_adam(
        chunk_size, noop_flag, tensor_lists, lr, beta1, beta2, epsilon, step, mode, bias_correction, weight_decay, /
    ):
        assert noop_flag.dtype == torch.int32 and not noop_flag.any() and mode == 1 and bias_correction == 1
        assert all(tensor.numel() and tensor.is_contiguous() for tensors in tensor_lists for tensor in tensors)
        calls.append(Call("adam", {"tensors": len(tensor_lists[0])}))
        for g, p, m, v in zip(*tensor_lists, strict=True):
            m.lerp_(g, 1 - beta1)
            v.mul_(beta2).add_((1 - beta2) * g * g)
            update = m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + epsilon)
            p.sub_(lr * (update + weight_decay * p))

    norms.mixed_dtype_fused_rms_norm_affine = mixed_dtype_fused_rms_norm_affine
    norms.mixed_dtype_fused_layer_norm_affine = mixed_dtype_fused_layer_norm_affine
    adam.multi_tensor_adam = multi_tensor_adam
    return [package, normalization, norms, adam]
