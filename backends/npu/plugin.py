"""The Ascend NPU as a plug-in: nothing here is known to the runtime by name, and nothing imports torch_npu."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from evocore import hookimpl

if TYPE_CHECKING:
    from evocore.backend import Backend
    from evocore.ops.kernel import Kernel


@hookimpl
def evocore_backends() -> Iterable[type[Backend]]:
    from evocore.backends.npu.device import NPUBackend

    return [NPUBackend]


@hookimpl
def evocore_kernels() -> Iterable[Kernel]:
    from evocore.backends.npu.kernels import KERNELS

    return KERNELS
