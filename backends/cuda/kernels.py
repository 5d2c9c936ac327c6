"""Which kernels serve on NVIDIA GPUs, and what each cannot do.

None has been measured by us on a GPU: an ``evidence`` that begins with "published" quotes others, and one that does
not says so. Rates of attention are TFLOP/s on an H100 with a causal mask, heads of 128 and 8192 tokens.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from evocore.backends.cuda.launch import CUDA_LAUNCH
from evocore.backends.cuda.limits import built_by_apex, flash_attention, flash_attn_4, no_softcap
from evocore.kernels.grouped_linear.limits import why_not as grouped_product
from evocore.kernels.references import FLOATS, reference_kernels
from evocore.kernels.triton_kernels import triton_kernels
from evocore.ops.glu import GeGLURequest
from evocore.ops.kernel import Kernel

_CUDA = frozenset({"cuda"})
_HALF = frozenset({torch.bfloat16, torch.float16})
_MASTERS = frozenset({torch.float64, torch.float32})
_FLOAT32 = frozenset({torch.float32})
_BFLOAT16 = frozenset({torch.bfloat16})
_AMPERE = frozenset({8, 9, 10, 11, 12})
_HOPPER = frozenset({9})

_RATES = (
    "published: forward with fp16 602 of FlashAttention 3, 529 of cuDNN, 333 of FlashAttention 2 (Shah et al., 2024, "
    "figure 5); backward 575, 470 and, in a fixed order, 166 (flash-attention's repository, 2025)"
)
_FIXED_ORDER = "backward in a fixed order; not measured"
_BY_BYTES = "published: a plain Triton RMSNorm moves 2.9 TB/s of rows of 4096, a compiled one 2.3 (QuACK, charts)"


def _kernel(
    op: str,
    provider: str,
    target: str,
    priority: int,
    evidence: str = "not measured",
    *,
    dtypes: frozenset[torch.dtype] = FLOATS,
    requires: tuple[str, ...] = (),
    supports: Callable[[Any], str | None] = lambda request: None,
    deterministic: bool = True,
    arguments: Mapping[str, Any] | None = None,
) -> Kernel:
    return Kernel(
        op,
        provider,
        _CUDA,
        f"evocore.kernels.{target}:{op}",
        dtypes,
        requires=requires,
        supports=supports,
        priority=priority,
        evidence=evidence,
        deterministic=deterministic,
        arguments=arguments,
    )


def _attention(
    op: str,
    provider: str,
    module: str,
    priority: int,
    evidence: str,
    supports: Callable[[Any], str | None],
    *,
    requires: tuple[str, ...] = (),
    deterministic: bool,
) -> Kernel:
    """From a maker that is told whether backward must add up in a fixed order; atomic additions are faster."""
    return _kernel(
        op,
        provider,
        f"attention.{module}",
        priority,
        evidence,
        dtypes=_HALF,
        requires=requires,
        supports=supports,
        deterministic=deterministic,
        arguments={"deterministic": deterministic},
    )


def _only_tanh(request: GeGLURequest) -> str | None:
    return None if request.approximate == "tanh" else "only the tanh form"


_PACKED = flash_attention(_AMPERE, softcap=False)
_FLASH_2 = flash_attention(_AMPERE, softcap=True)
_FLASH_3 = flash_attention(_HOPPER, softcap=True)

_ATTENTION = [
    _attention(
        "attention", "flash_attn_4", "flash_attn_4", 60, "made for Blackwell; not measured", flash_attn_4,
        requires=("flash-attn-4>=4.0.0b7",), deterministic=False,
    ),
    _attention(
        "attention", "flash_attn_4", "flash_attn_4", 58, _FIXED_ORDER, flash_attn_4,
        requires=("flash-attn-4>=4.0.0b7",), deterministic=True,
    ),
    _kernel(
        "attention", "flash_attn_3", "attention.flash_attn_3", 50, _RATES,
        dtypes=_HALF, requires=("flash-attn-3",), supports=_FLASH_3, deterministic=False, arguments={},
    ),
    _kernel(
        "attention", "native", "attention.torch_best", 40,
        f"{_RATES}; cuDNN's for documents of one length on Hopper and Blackwell, otherwise FlashAttention 2",
        dtypes=_HALF, supports=_PACKED, deterministic=False,
    ),
    _attention("attention", "native", "varlen", 38, _FIXED_ORDER, _PACKED, deterministic=True),
    _attention(
        "attention", "flash_attn_2", "flash_attn_2", 30,
        "the kernels that native has for documents of several lengths; not measured", _FLASH_2,
        requires=("flash-attn>=2.8",), deterministic=False,
    ),
    _attention(
        "attention", "flash_attn_2", "flash_attn_2", 28, _FIXED_ORDER, _FLASH_2,
        requires=("flash-attn>=2.8",), deterministic=True,
    ),
    _kernel(
        "attention", "sdpa", "attention.native", 20,
        "document by document, so for documents of one length or in float32; not measured",
        supports=no_softcap, deterministic=False,
    ),
    _kernel(
        "attention", "cudnn", "attention.sdpa", 15, "document by document; for comparisons; not measured",
        dtypes=_HALF, supports=no_softcap, deterministic=False,
        arguments={"backends": ("CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")},
    ),
    _attention("attention_block", "native", "varlen", 40, "not measured", _PACKED, deterministic=False),
    _attention("attention_block", "native", "varlen", 38, _FIXED_ORDER, _PACKED, deterministic=True),
    _attention(
        "attention_block", "flash_attn_2", "flash_attn_2", 30, "not measured", _FLASH_2,
        requires=("flash-attn>=2.8",), deterministic=False,
    ),
    _attention(
        "attention_block", "flash_attn_2", "flash_attn_2", 28, _FIXED_ORDER, _FLASH_2,
        requires=("flash-attn>=2.8",), deterministic=True,
    ),
]  # fmt: skip

_APEX_NORMS = built_by_apex("fused_layer_norm_cuda")

KERNELS: list[Kernel] = [
    *reference_kernels("cuda", FLOATS | {torch.float64}),
    *triton_kernels(
        "cuda",
        CUDA_LAUNCH,
        default_priority=30,
        priorities={
            "attention": (10, "published: 369 forward with fp16, of another Triton kernel (Shah et al., 2024)"),
            "attention_block": (10, "not measured"),
            "rms_norm": (30, _BY_BYTES),
            "add_rms_norm": (30, "published: 2.8 TB/s of rows of 8192 in float32 (Liger, benchmark data)"),
        },
    ),
    *_ATTENTION,
    _kernel("rms_norm", "native", "rms_norm.native", 20, "one operator of PyTorch's; not measured"),
    _kernel("add_rms_norm", "native", "rms_norm.native", 20, "two operators of PyTorch's; not measured"),
    _kernel("rms_norm", "apex", "rms_norm.apex", 15, requires=("apex",), supports=_APEX_NORMS),
    _kernel("add_rms_norm", "apex", "rms_norm.apex", 15, requires=("apex",), supports=_APEX_NORMS),
    _kernel("layer_norm", "native", "layer_norm.native", 20, "one operator of PyTorch's; not measured"),
    _kernel("layer_norm", "apex", "layer_norm.apex", 15, requires=("apex",), supports=_APEX_NORMS),
    _kernel("rotary", "analytic", "rotary.analytic", 10),
    _kernel("swiglu", "native", "swiglu.native", 20),
    _kernel("swiglu", "analytic", "swiglu.analytic", 10),
    _kernel("geglu", "analytic", "geglu.analytic", 20, supports=_only_tanh),
    _kernel("geglu", "native", "geglu.native", 10),
    _kernel("cross_entropy", "one_pass", "cross_entropy.one_pass", -10, "few rows at a time"),
    _kernel("cross_entropy_shard", "one_pass", "cross_entropy.one_pass", -10, "few rows at a time"),
    _kernel("linear_cross_entropy", "chunked", "linear_cross_entropy.chunked", 10),
    _kernel(
        "grouped_linear", "torch_grouped", "grouped_linear.torch_grouped", 40, "CUTLASS in PyTorch; not measured",
        dtypes=_BFLOAT16, supports=grouped_product,
    ),
    _kernel("grouped_linear", "native", "grouped_linear.native", 10, "waits if only the device knows the sizes"),
    _kernel("moe_permute", "native", "moe_permute.native", 10, "waits for the device"),
    _kernel("moe_unpermute", "native", "moe_permute.native", 10, "waits for the device"),
    _kernel("adamw", "native", "adamw.native", 20, "one operator of PyTorch's; not measured", dtypes=_MASTERS),
    _kernel("adamw", "apex", "adamw.apex", 15, dtypes=_FLOAT32, requires=("apex",), supports=built_by_apex("amp_C")),
]  # fmt: skip
