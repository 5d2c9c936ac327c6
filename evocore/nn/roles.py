"""What a weight is for. Parallel strategies, weight decay and weight maps go by roles, never by module names."""

from __future__ import annotations

from enum import Enum


class Role(Enum):
    """The part that a layer plays in a transformer.

    ``REPLICATED`` is a projection that every rank of a tensor group has whole, and computes of its own tokens.
    """

    QKV = "qkv"
    OUT = "out"
    GATE = "gate"
    UP = "up"
    GATE_UP = "gate_up"
    DOWN = "down"
    EMBEDDING = "embedding"
    HEAD = "head"
    NORM = "norm"
    HEAD_NORM = "head_norm"
    REPLICATED = "replicated"
    ROUTER = "router"
    EXPERT = "expert"
