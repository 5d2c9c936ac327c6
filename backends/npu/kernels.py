"""Which kernels serve on the NPU, and what each cannot do.

No NPU was at hand: priorities follow what the vendor fuses, and no ``evidence`` claims a speed.
"""

from collections.abc import Callable
from typing import Any

import torch

from evocore.backends.npu.launch import ASCEND
from evocore.kernels.references import FLOATS, reference_kernels
from evocore.kernels.triton_kernels import triton_kernels
from evocore.ops.attention import AttentionRequest
from evocore.ops.grouped_linear import GroupedLinearRequest
from evocore.ops.kernel import Kernel
from evocore.ops.rotary import RotaryRequest

_NPU = frozenset({"npu"})
_BF16 = frozenset({torch.bfloat16})
_MASTERS = frozenset({torch.float32})


def _attention(request: AttentionRequest) -> str | None:
    if request.softcap is not None:
        return "npu_fusion_attention has no softcap"
    if request.head_dim % 16 or request.head_dim > 512:
        return "heads of a multiple of 16, at most 512"
    if request.heads > 256:
        return "at most 256 heads"
    return None


def _no_softcap(request: AttentionRequest) -> str | None:
    return None if request.softcap is None else "scaled_dot_product_attention has no softcap"


def _rotary(request: RotaryRequest) -> str | None:
    return None if 2 * request.pairs < 896 else "fewer than 896 rotated features"


def _grouped_linear(request: GroupedLinearRequest) -> str | None:
    return None if max(request.inputs, request.outputs) < 65536 else "widths below 65536"


def _offer(
    op: str,
    folder: str,
    module: str,
    *,
    dtypes: frozenset[torch.dtype] = FLOATS,
    supports: Callable[[Any], str | None] = lambda request: None,
) -> Kernel:
    """The vendor's fused operators before PyTorch's own."""
    fused = module == "npu_kernel"
    return Kernel(
        op,
        "npu" if fused else module,
        _NPU,
        f"evocore.kernels.{folder}.{module}:{op}",
        dtypes,
        requires=("torch_npu>=2.9",) if fused else (),
        supports=supports,
        priority=30 if fused else 20,
        evidence="the vendor's fused operator; not measured" if fused else "PyTorch's operators; not measured",
    )


KERNELS: list[Kernel] = [
    *reference_kernels("npu"),
    *triton_kernels("npu", ASCEND, requires=("triton-ascend>=3.2",), default_priority=5),
    _offer("attention", "attention", "npu_kernel", supports=_attention),
    _offer("attention_block", "attention", "npu_kernel", supports=_attention),
    _offer("rms_norm", "rms_norm", "npu_kernel"),
    _offer("add_rms_norm", "rms_norm", "npu_kernel"),
    _offer("rotary", "rotary", "npu_kernel", supports=_rotary),
    _offer("swiglu", "swiglu", "npu_kernel"),
    _offer("geglu", "geglu", "npu_kernel"),
    _offer("grouped_linear", "grouped_linear", "npu_kernel", supports=_grouped_linear),
    _offer("moe_permute", "moe_permute", "npu_kernel", dtypes=_BF16),
    _offer("moe_unpermute", "moe_permute", "npu_kernel", dtypes=_BF16),
    _offer("attention", "attention", "native", supports=_no_softcap),
    _offer("layer_norm", "layer_norm", "native"),
    _offer("cross_entropy", "cross_entropy", "one_pass"),
    _offer("cross_entropy_shard", "cross_entropy", "one_pass"),
    _offer("linear_cross_entropy", "linear_cross_entropy", "chunked"),
    _offer("adamw", "adamw", "native", dtypes=_MASTERS),
]
