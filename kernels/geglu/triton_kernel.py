"""``geglu`` in Triton: ``kernels/swiglu`` with either form of GELU (Hendrycks and Gimpel, 2016, section 2)."""

import math

import triton
import triton.language as tl
from torch import Tensor

from evocore.kernels.launch import Launch
from evocore.kernels.swiglu.triton_kernel import gated
from evocore.ops.glu import GeGLU

_LINEAR = tl.constexpr(2 * math.sqrt(2 / math.pi))
_CUBIC = tl.constexpr(2 * math.sqrt(2 / math.pi) * 0.044715)
_HALF_ROOT = tl.constexpr(math.sqrt(1 / 2))
_DENSITY_AT_0 = tl.constexpr(1 / math.sqrt(2 * math.pi))


def geglu(launch: Launch) -> GeGLU:
    forms = {"tanh": gelu_tanh, "none": gelu}

    def call(gate_TF: Tensor, up_TF: Tensor, *, approximate: str = "tanh") -> Tensor:
        return gated(gate_TF, up_TF, forms[approximate], launch)

    return call


@triton.jit
def gelu_tanh(gate: tl.tensor) -> tl.tensor:
    """``0.5 * (1 + tanh(z)) = sigmoid(2 z)``, which also keeps its small values exact where ``1 + tanh`` cancels."""
    square = gate * gate
    cdf = tl.sigmoid(gate * (_LINEAR + _CUBIC * square))
    value = gate * cdf
    return value, cdf + value * (1 - cdf) * (_LINEAR + 3 * _CUBIC * square)


@triton.jit
def gelu(gate: tl.tensor) -> tl.tensor:
    cdf = 0.5 * (1 + tl.erf(gate * _HALF_ROOT))
    return gate * cdf, cdf + gate * tl.exp(-0.5 * gate * gate) * _DENSITY_AT_0
