"""Lowers recorded launches of our Triton kernels for the Ascend 910B, as far as a machine without CANN can.

That is: Triton's frontend to TTIR, and TTIR to the Linalg form that CANN's compiler would take (stage "ttadapter" of
triton-ascend). It shows that the vendor's compiler accepts the language of a kernel; whether its tiles fit on the
chip, only CANN can tell.

The environment of triton-ascend has no PyTorch, and a kernel's file imports it, and evocore's rooms, for what
surrounds the kernels. Those imports get a placeholder here: the files are the real ones, and only ``@triton.jit``
functions are used of them.

    python lower_triton.py LAUNCHES KERNELS OP...

LAUNCHES is what ``record_launches.py`` wrote, KERNELS the folder of evocore's kernels. The exit code is 1 if a launch
of one of the ops that are named does not lower; of other ops it is told.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

TARGET = "Ascend910B1"
LIMIT = 60
"""Seconds for one kernel."""


class Placeholder:
    """Whatever a kernel's file asks of PyTorch when it is imported: attributes, annotations, decorators, bases."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder()

    def __call__(self, *values: Any, **named: Any) -> Any:
        return values[0] if len(values) == 1 and callable(values[0]) else Placeholder()

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return ()

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __getitem__ = __or__


class PlaceholderModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder()


class PlaceholderFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of PyTorch and of evocore's rooms above the kernels."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] != "torch" and (not name.startswith("evocore.") or name.startswith("evocore.kernels")):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return PlaceholderModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        return None


def make_importable(kernels: Path) -> None:
    """``evocore.kernels`` is the folder; all else of evocore and PyTorch are placeholders."""
    sys.meta_path.insert(0, PlaceholderFinder())
    for name, path in (("evocore", []), ("evocore.kernels", [str(kernels)])):
        package = ModuleType(name)
        package.__path__ = path
        sys.modules[name] = package


def constant(value: Any) -> Any:
    """A constant as it was before ``record_launches.py`` wrote it."""
    kind, _, name = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind == "dtype":
        import triton.language as tl

        return tl.dtype(name)
    if kind == "kernel":
        module, _, function = name.partition(":")
        return getattr(import_module(module), function)
    return value


def lower(launch: dict[str, Any]) -> None:
    """Raises whatever the compiler says."""
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import ASTSource, make_backend

    kernel = getattr(import_module(launch["module"]), launch["kernel"])
    constants = {name: constant(value) for name, value in launch["constants"].items()}
    signature = {name: launch["signature"].get(name, "constexpr") for name in kernel.arg_names}
    backend = make_backend(GPUTarget("npu", TARGET, 0))
    options = backend.parse_options({"num_warps": 1, "num_stages": 1})
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    source = ASTSource(kernel, {n: t for n, t in signature.items() if t != "constexpr"}, constants)
    module = source.make_ir(options, backend.get_codegen_implementation(), backend.get_module_map(), context)
    metadata = dict(options.__dict__)
    assert "linalg" in stages["ttadapter"](stages["ttir"](module, metadata), metadata)


def reason(error: BaseException) -> str:
    """The line that tells most: compilers print long traces."""
    text = (
        error.stderr.decode()
        if isinstance(error, subprocess.CalledProcessError)
        else f"{type(error).__name__}: {error}"
    )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[-1] if lines else type(error).__name__)[:200]


def lower_apart(launch: dict[str, Any]) -> str:
    """Lower in a forked process, since a compiler that aborts takes its process along; "" or why it did not."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        import signal

        signal.alarm(LIMIT)
        try:
            lower(launch)
            told = ""
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the answer
            told = reason(error)
        os.write(writing, json.dumps(told).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(answer) if answer else f"the compiler ended with signal {os.WTERMSIG(status)}"


def main(launches: Path, kernels: Path, needed: list[str]) -> int:
    make_importable(kernels)
    import triton

    start = time.perf_counter()
    answers: dict[str, str] = {}
    lowered: defaultdict[str, int] = defaultdict(int)
    failed: defaultdict[tuple[str, str, str], int] = defaultdict(int)
    for line in launches.read_text(encoding="utf-8").splitlines():
        launch = json.loads(line)
        op = launch.pop("op")
        key = json.dumps(launch, sort_keys=True)
        if key not in answers:
            answers[key] = lower_apart(launch)
        if answers[key]:
            failed[op, f"{launch['module'].removeprefix('evocore.kernels.')}:{launch['kernel']}", answers[key]] += 1
        else:
            lowered[op] += 1
    seconds = time.perf_counter() - start
    print(f"triton-ascend (Triton {triton.__version__}), {TARGET}: {len(answers)} launches in {seconds:.0f} s")
    missing = [op for op in needed if not lowered[op]]
    for op in sorted({*lowered, *(op for op, _, _ in failed)}):
        count = sum(number for (of, _, _), number in failed.items() if of == op)
        print(f"  {op}: {lowered[op]} lowered" + (f", {count} not" if count else ""))
    for (op, kernel, why), number in sorted(failed.items()):
        print(f"  {op}, {kernel}, {number} launches: {why}")
    broken = sorted({op for op, _, _ in failed if op in needed} | set(missing))
    if broken:
        print(f"these must lower and do not: {', '.join(broken)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
