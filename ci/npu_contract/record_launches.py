"""Writes down how our Triton kernels are launched with the NPU's launch parameters, one JSON line for each launch.

Triton's interpreter runs every op, forward and backward, at sizes of real models but for a few tokens; what a kernel
is compiled for (types of its arguments, values of its constants) is noted on the way, for ``lower_triton.py``.

    TRITON_INTERPRET=1 python record_launches.py FILE
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from evocore.backends.npu.launch import ASCEND
from evocore.ops.attention import CuSeqlens
from evocore.ops.grouped_linear import Groups

LAUNCH = replace(ASCEND, units=lambda device: 2)  # asks no device; how many programs start is not compiled in
TOKENS, WIDTH, HIDDEN, VOCAB, EXPERTS = 16, 1024, 2816, 2048, 4
HEADS, KEY_HEADS, HEAD = 4, 2, 128
TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.bool: "i1",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}


class Recorder:
    """Every launch of an interpreted kernel, once."""

    def __init__(self) -> None:
        self.lines: dict[str, None] = {}
        self.op = ""

    def run(self, kernel: InterpretedFunction, *values: Any, grid: Any, warmup: bool, **named: Any) -> Any:
        """Takes the place of ``InterpretedFunction.run``."""
        parameters = inspect.signature(kernel.fn).parameters
        bound = inspect.signature(kernel.fn).bind(*values, **{k: v for k, v in named.items() if k in parameters})
        bound.apply_defaults()
        signature: dict[str, str] = {}
        constants: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            constant = "constexpr" in str(parameters[name].annotation)
            if constant or value is None or (type(value) is int and value == 1):  # as a launch specialises
                constants[name] = written(value)
            else:
                signature[name] = type_of(value)
        entry = {
            "op": self.op,
            "module": kernel.fn.__module__,
            "kernel": kernel.fn.__name__,
            "signature": signature,
            "constants": constants,
        }
        self.lines[json.dumps(entry, sort_keys=True)] = None
        return run_interpreted(kernel, *values, grid=grid, warmup=warmup, **named)


run_interpreted = InterpretedFunction.run


def type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, bool):
        return "i1"
    return "fp32" if isinstance(value, float) else "i32" if -(2**31) <= value < 2**31 else "i64"


def written(value: Any) -> Any:
    """A constant as JSON: other kernels and Triton's dtypes by their names."""
    if isinstance(value, InterpretedFunction):
        return f"kernel:{value.fn.__module__}:{value.fn.__name__}"
    if type(value).__module__.startswith("triton"):
        return f"dtype:{str(value).removeprefix('tl.')}"
    assert value is None or isinstance(value, bool | int | float | str), value
    return value


# --- what is run ----------------------------------------------------------------------------------------------------


def randn(*sizes: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(sizes).to(dtype).requires_grad_()


def backward(*outputs: Tensor) -> None:
    torch.autograd.backward(
        [y for y in outputs if y.requires_grad], [torch.ones_like(y) for y in outputs if y.requires_grad]
    )


def norms(make: Callable[[str], Any], dtype: torch.dtype) -> None:
    for offset in (False, True):
        x, residual, weight = (randn(*sizes, dtype=dtype) for sizes in ((TOKENS, WIDTH), (TOKENS, WIDTH), (WIDTH,)))
        backward(make("rms_norm")(x, weight, eps=1e-5, unit_offset=offset))
        backward(*make("add_rms_norm")(x, residual, weight, eps=1e-5, unit_offset=offset))


def rotary(make: Callable[[str], Any], dtype: torch.dtype) -> None:
    angles = torch.randn(TOKENS, HEAD // 2)
    for interleaved in (False, True):
        x = randn(TOKENS, HEADS, HEAD, dtype=dtype)
        backward(make("rotary")(x, angles.cos(), angles.sin(), interleaved=interleaved))


def activations(make: Callable[[str], Any], dtype: torch.dtype) -> None:
    gate, up = randn(TOKENS, HIDDEN, dtype=dtype), randn(TOKENS, HIDDEN, dtype=dtype)
    backward(make("swiglu")(gate, up))
    for approximate in ("tanh", "none"):
        backward(make("geglu")(gate, up, approximate=approximate))


def losses(make: Callable[[str], Any], dtype: torch.dtype) -> None:
    labels = torch.arange(TOKENS)
    extras: tuple[dict[str, float], ...] = ({}, {"label_smoothing": 0.1, "z_loss": 1e-4})
    for extra in extras:
        logits = randn(TOKENS, VOCAB, dtype=dtype)
        backward(make("cross_entropy")(logits, labels, **extra)[0])
        shard = make("cross_entropy_shard")
        lse = shard.forward(logits.detach(), labels)[0]
        shard.backward(logits.detach(), labels, lse, torch.ones(TOKENS), vocab=2 * VOCAB, **extra)


def linear_loss(make: Callable[[str], Any], dtype: torch.dtype) -> None:
    hidden, weight = randn(TOKENS, 128, dtype=dtype), randn(256, 128, dtype=dtype)
    backward(make("linear_cross_entropy")(hidden, weight, torch.arange(TOKENS))[0])


def attention(make: Callable[[str], Any], dtype: torch.dtype) -> None:
    documents = CuSeqlens.of((0, 5, TOKENS))
    variants: tuple[dict[str, Any], ...] = ({}, {"window": 4}, {"softcap": 30.0}, {"causal": False})
    for options in variants:
        q, k, v = (randn(TOKENS, heads, HEAD, dtype=dtype) for heads in (HEADS, KEY_HEADS, KEY_HEADS))
        options = {"q_documents": documents, "k_documents": documents, **options}
        backward(make("attention")(q, k, v, **options))
        block = make("attention_block")
        with torch.no_grad():
            out, lse = block.forward(q, k, v, **options)
            block.backward(torch.ones_like(out), q, k, v, out, lse, **options)


def experts(make: Callable[[str], Any], dtype: torch.dtype) -> None:
    x, weight = randn(TOKENS, 128, dtype=dtype), randn(EXPERTS, 256, 128, dtype=dtype)
    backward(make("grouped_linear")(x, weight, Groups.of((3, 5, 0, 8))))
    chosen = torch.arange(2 * TOKENS).view(TOKENS, 2) % EXPERTS
    rows, permutation = make("moe_permute")(x, chosen, experts=EXPERTS)
    backward(make("moe_unpermute")(rows, permutation, torch.rand(TOKENS, 2).requires_grad_()))


WORK = {
    "rms_norm": norms,
    "rotary": rotary,
    "swiglu, geglu": activations,
    "cross_entropy": losses,
    "linear_cross_entropy": linear_loss,
    "attention": attention,
    "experts": experts,
}
FOLDERS = {
    "add_rms_norm": "rms_norm",
    "cross_entropy_shard": "cross_entropy",
    "attention_block": "attention",
    "moe_unpermute": "moe_permute",
}


def maker(recorder: Recorder, op: str) -> Any:
    """The kernel of an op with the NPU's launch parameters; what follows is told as that op's."""
    recorder.op = op
    module = import_module(f"evocore.kernels.{FOLDERS.get(op, op)}.triton_kernel")
    return getattr(module, op)(launch=LAUNCH)


def recorded() -> Iterator[str]:
    recorder = Recorder()
    InterpretedFunction.run = lambda kernel, *values, **named: recorder.run(kernel, *values, **named)
    for work in WORK.values():
        for dtype in (torch.bfloat16, torch.float32):
            work(partial(maker, recorder), dtype)
    yield from recorder.lines


if __name__ == "__main__":
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        for line in recorded():
            print(line, file=file)
