"""The block that compares kernels with their references while a run goes on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from evocore.config.schema_base import Block, Count, Strings


class KernelsCheck(Block):
    """References beside the chosen kernels on some steps."""

    every: Count = 100
    """Steps between checks; step 1 is always checked."""
    ops: Literal["all"] | Annotated[Strings, Field(min_length=1)] = "all"
    """Ops that are checked: "all", or a list of names."""
    fingerprints: bool = True
    """Record statistics of every call for `evocore diff`."""
