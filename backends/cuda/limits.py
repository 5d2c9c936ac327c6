"""What the kernels of an NVIDIA GPU cannot do, asked when a kernel is chosen and not before.

Records are built where there is no GPU, and nothing here starts the driver unless PyTorch can use it. Which GPU it
is matters only then.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch

from evocore.ops.attention import AttentionRequest
from evocore.ops.kernel import Request

LARGEST_HEAD, HEAD_MULTIPLE = 256, 8
"""Of FlashAttention 2 and 3, and of PyTorch's packed attention, which is the former."""


def no_softcap(request: AttentionRequest) -> str | None:
    return None if request.softcap is None else "has no softcap"


def flash_attention(generations: frozenset[int], *, softcap: bool) -> Callable[[AttentionRequest], str | None]:
    """What a member of the FlashAttention family refuses.

    Args:
        generations: major numbers of the compute capabilities that it has kernels for.
        softcap: whether it has a softcap.
    """

    def why_not(request: AttentionRequest) -> str | None:
        if request.head_dim > LARGEST_HEAD or request.head_dim % HEAD_MULTIPLE:
            return f"heads of at most {LARGEST_HEAD}, in multiples of {HEAD_MULTIPLE}"
        return wrong_generation(generations) or (None if softcap else no_softcap(request))

    return why_not


def flash_attn_4(request: AttentionRequest) -> str | None:
    """Its backward of packed documents knows three head sizes and no change of the scores; on Hopper it came late."""
    if request.head_dim not in (64, 96, 128):
        return "heads of 64, 96 or 128"
    return wrong_generation(frozenset({10, 11})) or no_softcap(request)


def wrong_generation(generations: frozenset[int]) -> str | None:
    """The reason if the current GPU is of none of these generations; None where there is no GPU to ask."""
    capability = current_capability()
    if capability is None or capability[0] in generations:
        return None
    wanted = ", ".join(f"{major}.x" for major in sorted(generations))
    return f"for compute capability {wanted}; this GPU has {capability[0]}.{capability[1]}"


def current_capability() -> tuple[int, int] | None:
    """Compute capability of the current GPU, None if PyTorch can use none."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def built_by_apex(extension: str) -> Callable[[Request], str | None]:
    """Refuse if apex was installed without its CUDA extensions, or if the package of that name is another one."""

    def why_not(request: Request) -> str | None:
        if find_spec(extension) is not None:
            return None
        return f"needs NVIDIA's apex built with its CUDA extensions (no module {extension})"

    return why_not
