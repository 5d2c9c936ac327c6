"""Compile Triton kernels for a Hopper GPU (sm_90) on a machine without one: what the interpreter cannot know.

The interpreter checks what a kernel computes. Whether the compiler accepts its types, and whether its tiles fit in
registers and shared memory, shows only in a real compilation; ptxas comes with Triton. It happens in a process of its
own, since a process that imported Triton with ``TRITON_INTERPRET=1`` cannot compile, and in one process for many
kernels, since starting one costs more than compiling one. Triton keeps what it compiled in its cache on disk.

    rows, wide = compile_for_hopper(
        Compilation("evocore.kernels.x.triton_kernel:_forward", {"x_ptr": "*bf16:16", "stride": "i64:16", "D": "i32"},
                    {"BLOCK": 4096}, warps=8),
        Compilation(...),
    )
    assert rows.spills == 0 and rows.shared <= SHARED_LIMIT

``launches_of`` finds out what to compile: it runs what launches the kernels, on tensors of the meta device.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

SHARED_LIMIT = 227 * 1024
"""Bytes of shared memory that one program may have on an H100."""


_POINTERS = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.bool: "i1",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Compilation:
    """One kernel with everything that the compiler specialises it on.

    Attributes:
        kernel: ``"module:name"`` of a ``@triton.jit`` function.
        signature: each argument that is no constexpr -> its type, ``"*bf16"`` for a pointer, ``"i32"``, ``"i64"``,
            ``"fp32"`` for a number; with ``":16"`` behind it, an address or a number that 16 divides, which is what
            Triton finds out at a launch and needs for wide loads and stores.
        constexprs: all the others -> value: a number, a bool, None; ``"tl.bfloat16"`` for a name of
            ``triton.language`` and ``"module:name"`` for another ``@triton.jit`` function.
        warps, stages: ``num_warps`` and ``num_stages`` of the launch.
    """

    kernel: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Compiled:
    """What came of it.

    Attributes:
        shared: bytes of shared memory of a program.
        registers: of a thread.
        spills: bytes of a thread's stack, where registers are spilled; 0 for none.
        ptx: the program in NVIDIA's intermediate language, to look for instructions such as ``ld.global.v4``.
    """

    shared: int
    registers: int
    spills: int
    ptx: str


def compile_for_hopper(*compilations: Compilation, timeout: float = 120) -> list[Compiled]:
    """Compile all of them in one subprocess, in order.

    Raises:
        AssertionError: with what the compiler said about the first one that it refused.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    finished = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([asdict(each) for each in compilations]),
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-6000:]
    return [Compiled(**each) for each in json.loads(finished.stdout.splitlines()[-1])]


def launches_of(*kernels: str, by: Callable[[], object]) -> list[Compilation]:
    """What ``by()`` launches of the kernels, ``"module:name"`` each, with the types and constants that it gives them.

    Nothing runs, so its tensors may be of the meta device and as large as in earnest. Addresses count as aligned.
    """
    launched: list[Compilation] = []
    with ExitStack() as patches:
        for kernel in kernels:
            module, _, name = kernel.partition(":")
            patches.enter_context(patch(f"{module}.{name}", _Recorder(kernel, launched)))
        by()
    return launched


class _Recorder:
    """Stands in for a kernel: ``kernel[grid](*arguments, **options)``."""

    def __init__(self, kernel: str, launched: list[Compilation]) -> None:
        self.kernel, self.launched = kernel, launched
        self.signature = inspect.signature(_named(kernel).fn)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.record

    def record(self, *arguments: Any, num_warps: int = 4, num_stages: int = 3, **named: Any) -> None:
        bound = self.signature.bind(*arguments, **named)
        bound.apply_defaults()
        constexprs: dict[str, Any] = {}
        signature: dict[str, str] = {}
        for name, value in bound.arguments.items():
            declared = "constexpr" in str(self.signature.parameters[name].annotation)
            if declared or value is None or (type(value) is int and value == 1):  # as a launch specialises
                constexprs[name] = _written(value)
            else:
                signature[name] = _type(value)
        self.launched.append(Compilation(self.kernel, signature, constexprs, num_warps, num_stages))


def _type(value: Tensor | bool | int | float) -> str:
    if isinstance(value, Tensor):
        return f"*{_POINTERS[value.dtype]}:16"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, float):
        return "fp32"
    return ("i32" if -(2**31) <= value < 2**31 else "i64") + (":16" if value % 16 == 0 else "")


def _written(value: Any) -> Any:
    """A constant as ``Compilation`` wants it."""
    if hasattr(value, "fn"):  # another kernel
        return f"{value.fn.__module__}:{value.fn.__name__}"
    return repr(value).replace("triton.language.", "tl.") if type(value).__name__ == "dtype" else value


def _compile(kernel: str, signature: dict[str, str], constexprs: dict[str, Any], warps: int, stages: int) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = _named(kernel)
    unknown = {*signature, *constexprs} ^ set(function.arg_names)
    assert not unknown, f"{kernel}: the arguments {sorted(unknown)} are in only one of the kernel and the request"
    types = {name: signature.get(name, "constexpr").removesuffix(":16") for name in function.arg_names}
    wide = [index for index, name in enumerate(types) if signature.get(name, "").endswith(":16")]
    source = ASTSource(
        function,
        types,
        {name: _constant(value) for name, value in constexprs.items()},
        {(index,): [["tt.divisibility", 16]] for index in wide},
    )
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    registers, stack = _resources(compiled.asm["cubin"])
    return Compiled(compiled.metadata.shared, registers, stack, compiled.asm["ptx"])


def _constant(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("tl."):
        return _named(f"triton.language:{value.removeprefix('tl.')}")
    return _named(value) if isinstance(value, str) and ":" in value else value


def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack per thread, as the program's own header tells."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        told = subprocess.run(
            [tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True
        ).stdout
    return int(re.findall(r"REG:(\d+)", told)[0]), int(re.findall(r"STACK:(\d+)", told)[0])


if __name__ == "__main__":
    print(json.dumps([asdict(_compile(**each)) for each in json.load(sys.stdin)]))
