"""What evocore asks this package. Importing it is cheap: what is offered is imported when it is asked for."""

from evocore import hookimpl

EVOCORE_API = 1  # the version of the hooks that this is written for


@hookimpl
def evocore_backends():
    from evocore_toydevice.device import ToyDevice

    return [ToyDevice]


@hookimpl
def evocore_kernels():
    import torch

    from evocore.kernels.references import reference_kernels
    from evocore.ops.kernel import Kernel

    devices, dtypes = frozenset({"toydevice"}), frozenset({torch.float32})
    swiglu = Kernel("swiglu", "toydevice", devices, "evocore_toydevice.swiglu:swiglu", dtypes)
    return [swiglu, *reference_kernels("toydevice", dtypes)]
