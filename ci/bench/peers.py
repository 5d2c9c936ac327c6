"""What our kernels are compared with: PyTorch's compiler, its own fused functions, and Liger where it is installed.

A peer that cannot be had, or not for a case, is a row that says why.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch._functorch.config
import torch.nn.functional as F
from case import Case
from measuring import Candidate
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

PLAIN = "plain"
SDPA = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def plain(case: Case) -> Candidate:
    """The plain expression, one PyTorch kernel after the other; what the others are checked against."""
    return Candidate(PLAIN, case.plain)


def compiled(case: Case, backend: str = "inductor") -> Candidate:
    """The plain expression through PyTorch's compiler."""
    torch._functorch.config.donated_buffer = False  # backward is timed alone, so its buffers are used again
    torch.compiler.reset()
    return Candidate("torch.compile", torch.compile(case.plain, dynamic=False, backend=backend))


def fused_adamw(case: Case) -> Candidate:
    """``torch.optim.AdamW(fused=True)``."""
    parameters, gradients, *_ = case.inputs
    optimizer = torch.optim.AdamW([torch.nn.Parameter(p) for p in parameters], fused=True)
    for group in optimizer.param_groups:
        for parameter, gradient in zip(group["params"], gradients, strict=True):
            parameter.grad = gradient
    return Candidate("optim-fused", lambda *_, **__: optimizer.step())


def dense_product(case: Case) -> Candidate:
    """One matrix product of as many rows with the first expert's weight: the ceiling of a grouped one."""
    x, weight, _ = case.inputs
    one = weight[0].detach().clone().requires_grad_()
    return Candidate("dense", lambda x, w: F.linear(x, w), inputs=[x, one], compared=False)


def sdpa(case: Case) -> list[Candidate]:
    """Each backend of ``scaled_dot_product_attention``, on a dense batch if all documents are equally long."""
    documents = case.options["q_documents"]
    function = _dense_sdpa if len(set(documents.lengths)) == 1 else _nested_sdpa
    return [Candidate(name, partial(function, backend)) for name, backend in SDPA.items()]


def _dense_sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, *, q_documents: Any, **_: Any) -> Tensor:
    batch = len(q_documents.lengths)
    q, k, v = (x.unflatten(0, (batch, -1)).transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).flatten(0, 1)


def _nested_sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, *, q_documents: Any, **_: Any) -> Tensor:
    shortest, longest = min(q_documents.lengths), q_documents.longest

    def jagged(x: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(
            x, q_documents.device, min_seqlen=shortest, max_seqlen=longest
        ).transpose(1, 2)

    q, k, v = jagged(q), jagged(k), jagged(v)
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).values()


# --- Liger -----------------------------------------------------------------------------------------------------


def liger(case: Case) -> Candidate:
    """Liger's kernel of the same op as its users call it: several overwrite their inputs to save memory.

    Raises:
        LookupError: if Liger is not installed or has no such op.
    """
    try:
        version("liger-kernel")
    except PackageNotFoundError as error:
        raise LookupError("liger-kernel is not installed") from error
    make = _LIGER.get(case.request.op)
    if make is None or getattr(case.request, "interleaved", False):
        raise LookupError("Liger has no such kernel")
    return make(case)


def _liger_rms_norm(case: Case) -> Candidate:
    from liger_kernel.transformers.functional import liger_rms_norm

    return Candidate("liger", lambda x, w, *, eps: liger_rms_norm(x, w, eps), overwrites=True)


def _liger_add_rms_norm(case: Case) -> Candidate:
    from liger_kernel.transformers.functional import liger_fused_add_rms_norm

    return Candidate("liger", lambda x, r, w, *, eps: liger_fused_add_rms_norm(x, r, w, eps), overwrites=True)


def _liger_layer_norm(case: Case) -> Candidate:
    from liger_kernel.transformers.functional import liger_layer_norm

    return Candidate("liger", lambda x, w, b, *, eps: liger_layer_norm(x, w, b, eps), overwrites=True)


def _liger_rotary(case: Case) -> Candidate:
    """It rotates queries and keys in one call: half of the heads are the one, half the other."""
    from liger_kernel.transformers.functional import liger_rope

    x, cos, sin = case.inputs
    q, k = (part.detach().contiguous()[None].requires_grad_() for part in x.chunk(2, 1))  # [1, T, N / 2, H] each
    cos, sin = (torch.cat((c, c), -1).to(x.dtype)[None] for c in (cos, sin))
    rotate = lambda q, k, cos, sin: liger_rope(q.transpose(1, 2), k.transpose(1, 2), cos, sin)  # noqa: E731
    return Candidate("liger", rotate, inputs=[q, k, cos, sin], options={}, overwrites=True, compared=False)


def _liger_swiglu(case: Case) -> Candidate:
    from liger_kernel.transformers.functional import liger_swiglu

    return Candidate("liger", liger_swiglu, overwrites=True)


def _liger_geglu(case: Case) -> Candidate:
    from liger_kernel.transformers.functional import liger_geglu

    return Candidate("liger", lambda gate, up, approximate: liger_geglu(gate, up), overwrites=True)


def _liger_cross_entropy(case: Case) -> Candidate:
    from liger_kernel.transformers.functional import liger_cross_entropy

    return Candidate("liger", lambda x, labels: liger_cross_entropy(x, labels, reduction="sum"), overwrites=True)


def _liger_linear_cross_entropy(case: Case) -> Candidate:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return Candidate("liger", lambda x, w, labels: liger_fused_linear_cross_entropy(x, w, labels, reduction="sum"))


_LIGER: dict[str, Callable[[Case], Candidate]] = {
    "rms_norm": _liger_rms_norm,
    "add_rms_norm": _liger_add_rms_norm,
    "layer_norm": _liger_layer_norm,
    "rotary": _liger_rotary,
    "swiglu": _liger_swiglu,
    "geglu": _liger_geglu,
    "cross_entropy": _liger_cross_entropy,
    "linear_cross_entropy": _liger_linear_cross_entropy,
}
