"""NVIDIA GPUs as a plug-in: nothing here is known to the runtime by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from evocore import hookimpl

if TYPE_CHECKING:
    from evocore.backend import Backend
    from evocore.ops.kernel import Kernel


@hookimpl
def evocore_backends() -> Iterable[type[Backend]]:
    from evocore.backends.cuda.device import CUDABackend

    return [CUDABackend]


@hookimpl
def evocore_kernels() -> Iterable[Kernel]:
    from evocore.backends.cuda.kernels import KERNELS

    return KERNELS
