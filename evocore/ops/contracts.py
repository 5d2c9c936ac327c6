"""Every contract by name, so that a kernel for one that does not exist is found out rather than never chosen."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from evocore.errors import UserError
from evocore.ops.adamw import AdamWRequest
from evocore.ops.attention import AttentionBlockRequest, AttentionRequest
from evocore.ops.cross_entropy import CrossEntropyRequest, CrossEntropyShardRequest, LinearCrossEntropyRequest
from evocore.ops.glu import GeGLURequest, SwiGLURequest
from evocore.ops.grouped_linear import GroupedLinearRequest
from evocore.ops.kernel import Kernel, Request
from evocore.ops.layer_norm import LayerNormRequest
from evocore.ops.moe import MoEPermuteRequest, MoEUnpermuteRequest
from evocore.ops.rms_norm import AddRMSNormRequest, RMSNormRequest
from evocore.ops.rotary import RotaryRequest

CONTRACTS: dict[str, type[Request]] = {
    "adamw": AdamWRequest,
    "add_rms_norm": AddRMSNormRequest,
    "attention": AttentionRequest,
    "attention_block": AttentionBlockRequest,
    "cross_entropy": CrossEntropyRequest,
    "cross_entropy_shard": CrossEntropyShardRequest,
    "geglu": GeGLURequest,
    "grouped_linear": GroupedLinearRequest,
    "layer_norm": LayerNormRequest,
    "linear_cross_entropy": LinearCrossEntropyRequest,
    "moe_permute": MoEPermuteRequest,
    "moe_unpermute": MoEUnpermuteRequest,
    "rms_norm": RMSNormRequest,
    "rotary": RotaryRequest,
    "swiglu": SwiGLURequest,
}
"""Name of each op -> what a layer asks for when it needs it."""


def check_contracts(kernels: Iterable[Kernel]) -> None:
    """Refuse kernels for ops that do not exist.

    Raises:
        UserError: naming each such kernel, the contracts and the likely spelling.
    """
    strays = [kernel for kernel in kernels if kernel.op not in CONTRACTS]
    if strays:
        told = "\n    ".join(f"op {stray.op!r} of provider {stray.provider!r} ({stray.target})" for stray in strays)
        likely = sorted({name for kernel in strays for name in get_close_matches(kernel.op, CONTRACTS, 1)})
        raise UserError(
            f"a plug-in offers kernels for contracts that do not exist: {told}",
            f"ops among {', '.join(CONTRACTS)}",
            (f"did it mean {', '.join(likely)}? " if likely else "")
            + "correct the plug-in, or block it with EVOCORE_PLUGINS=no:NAME (`evocore doctor` lists plug-ins)",
        )
