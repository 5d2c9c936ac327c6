"""What evocore asks this package: a kernel for the CPU, whose backend is somebody else's."""

from evocore import hookimpl

EVOCORE_API = 1


def not_too_wide(request):
    """None if the kernel serves the request, otherwise the reason in a few words."""
    return None if request.width <= 65536 else "a block of tokens wider than 65536 leaves the cache"


@hookimpl
def evocore_kernels():
    import torch

    from evocore.ops.kernel import Kernel

    return [
        Kernel(
            op="swiglu",
            provider="blocks",
            devices=frozenset({"cpu"}),
            target="evocore_kernelpack.swiglu:swiglu",
            dtypes=frozenset({torch.float32}),
            supports=not_too_wide,
            priority=100,
        )
    ]
