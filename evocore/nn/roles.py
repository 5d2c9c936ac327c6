"""What a weight is for. Parallel strategies, weight decay and weight maps go by roles, never by module names."""

from __future__ import annotations

from enum import Enum


class Role(Enum):
    """The part that a layer plays in a transformer."""

    QKV = "qkv"
    OUT = "out"
    GATE = "gate"
    UP = "up"
    GATE_UP = "gate_up"
    DOWN = "down"
    EMBEDDING = "embedding"
    HEAD = "head"
    NORM = "norm"
    ROUTER = "router"
    EXPERT = "expert"
