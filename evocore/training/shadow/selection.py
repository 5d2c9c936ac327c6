"""Which ops a config asks to check, and what they are checked with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from evocore.errors import UserError
from evocore.ops.contracts import CONTRACTS
from evocore.ops.resolution import Choice, Resolution
from evocore.training.shadow.calls import CHECKED

if TYPE_CHECKING:
    from evocore.config.schema_kernels import KernelsCheck

REFERENCE = "reference"


def checked_ops(settings: KernelsCheck, resolution: Resolution) -> list[str]:
    """The ops of the model that will be checked.

    Raises:
        UserError: if the config names an op that does not exist, that cannot be checked, or that the model does not
            use.
    """
    used = sorted({choice.request.op for choice in resolution.choices})
    able = [op for op in used if op in CHECKED]
    if settings.ops == "all":
        return able
    for op in settings.ops:
        if op in able:
            continue
        if op not in CONTRACTS:
            why = "there is no such op"
        elif op not in CHECKED:
            why = "it cannot be checked, because its calls are parts of a layer's own backward or of a routing"
        else:
            why = "the model does not use it"
        raise UserError(
            f"kernels_check.ops names {op!r}: {why}",
            f'"all", or some of {", ".join(able)}',
            "correct kernels_check.ops (`evocore kernels --config` lists what a model uses)",
        )
    return sorted(set(settings.ops))


def references(ops: list[str], resolution: Resolution) -> dict[str, Callable[..., Any]]:
    """The function of each op's reference on the device of the run.

    Raises:
        UserError: if no plug-in offers one.
    """
    found: dict[str, Callable[..., Any]] = {}
    for choice in resolution.choices:
        op = choice.request.op
        if op in ops and op not in found:
            found[op] = _reference(choice, resolution.device)
    return found


def _reference(choice: Choice, device: str) -> Callable[..., Any]:
    offers = [choice.kernel, *(kernel for kernel, _ in choice.rejected)]
    for kernel in offers:
        if kernel.provider == REFERENCE and device in kernel.devices:
            return kernel.load()
    raise UserError(
        f"kernels_check: no plug-in offers the reference of {choice.request.op} for device {device!r}",
        f"a kernel of provider {REFERENCE!r} for each op that is checked",
        "leave the op out of kernels_check.ops, or let the device's plug-in offer all references (the function "
        "reference_kernels in kernels/references.py makes their records)",
    )
