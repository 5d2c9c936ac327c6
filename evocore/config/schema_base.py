"""What every block of the schema shares: strict types, no unknown keys, nothing changes after loading."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Block(BaseModel):
    """A group of keys. The docstring under a key is its description in ``evocore config show --describe``."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,  # "8" is not 8 and True is not 1: a config is written by people who can mend it
        frozen=True,
        allow_inf_nan=False,  # JSON, in which a run keeps its config, knows neither
        use_attribute_docstrings=True,
        protected_namespaces=(),  # model_type is InternEvo's name
    )


def _never(value: Any) -> Any:
    """InternEvo writes "never" as an infinite interval."""
    return None if isinstance(value, float) and math.isinf(value) else value


def _ratio(value: Any) -> Any:
    return float(value) if isinstance(value, bool) else value


def _text(value: Any) -> Any:
    return "" if value is None else value


def as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _dtype_name(value: Any) -> Any:
    """A config file may import torch and give the dtype itself; this module must not import torch to see that."""
    return str(value) if type(value).__module__ == "torch" and type(value).__name__ == "dtype" else value


Count = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Interval = Annotated[Annotated[int, Field(gt=0)] | None, BeforeValidator(_never)]
Ratio = Annotated[Annotated[float, Field(ge=0, le=1)], BeforeValidator(_ratio)]
Text = Annotated[str, BeforeValidator(_text)]
Strings = Annotated[list[str], BeforeValidator(as_list)]
Ints = Annotated[list[int], BeforeValidator(as_list)]
PipelineMode = Annotated[Literal["1F1B", "ZBH1", "ZBV"], BeforeValidator(_upper)]
DType = Annotated[
    Literal["auto", "torch.float16", "torch.bfloat16", "torch.float32", "torch.tf32"], BeforeValidator(_dtype_name)
]
CommDType = Annotated[Literal["torch.float16", "torch.bfloat16", "torch.float32"], BeforeValidator(_dtype_name)]
LoadContent = Annotated[list[Literal["model", "sampler", "optimizer", "scheduler", "all"]], BeforeValidator(as_list)]
