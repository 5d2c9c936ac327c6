"""Every door through which another package extends evocore.

A plug-in is a module whose functions carry ``@evocore.hookimpl`` and which is named under the entry-point group
``evocore``. All hooks collect: each plug-in returns what it offers and every offer is kept, so that a choice between
them can be explained. An implementation may take fewer arguments than its spec; specs therefore grow without breaking
anyone.

Importing a plug-in must be cheap and must not import a vendor's package: offers are descriptions, and what they
describe is imported when it is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from evocore.backend import Backend
    from evocore.nn.family import ModelFamily
    from evocore.ops.kernel import Kernel

PROJECT = "evocore"
API_VERSION = 1
"""Major version of this file. A plug-in may set ``EVOCORE_API = 1``; another major version is refused by name."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def evocore_backends() -> Iterable[type[Backend]]:  # type: ignore[empty-body]
    """Devices that this package drives.

    Asked once, when the registry is built. Whether a device is present is asked later, through
    ``Backend.why_unavailable``.
    """


@hookspec
def evocore_kernels() -> Iterable[Kernel]:  # type: ignore[empty-body]
    """Kernels that this package provides, for its own device or for somebody else's.

    Asked once, when the registry is built. A kernel wins a request by what it declares, never by registration order.
    """


@hookspec
def evocore_models() -> Iterable[ModelFamily]:  # type: ignore[empty-body]
    """Model families that this package adds: what ``model_type`` in a config can name.

    Asked once, when the registry is built; a record is a description, the modules are imported when one is built.
    """
