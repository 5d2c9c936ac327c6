"""What PyTorch's grouped product cannot do, as a kernel record asks before anything of it is imported."""

from evocore.ops.grouped_linear import GroupedLinearRequest

ALIGNMENT = 16
"""Bytes that divide the addresses and the row strides of its operands."""


def why_not(request: GroupedLinearRequest) -> str | None:
    """The reason why ``torch_grouped`` cannot serve a request, or None."""
    elements = ALIGNMENT // request.dtype.itemsize
    if request.inputs % elements or request.outputs % elements:
        return f"grouped_mm takes inputs and outputs that are multiples of {elements}"
    return None
