"""Writes ``docs/support.md``: which kernels each backend offers for which op and dtype, and which of them CI runs.

    python ci/docs/support.py [--check]

Everything is read from the kernel records, so no device is needed. ``--check`` writes nothing, and fails if the page
is not what would be written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from evocore.backends.cpu.kernels import KERNELS as CPU
from evocore.backends.cuda.kernels import KERNELS as CUDA
from evocore.backends.npu.kernels import KERNELS as NPU
from evocore.ops.contracts import CONTRACTS
from evocore.ops.kernel import Kernel

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "support.md"
COMMAND = "python ci/docs/support.py"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

HEAD = f"""# Which kernels serve which backend

Written by `{COMMAND}` from the kernel records; a test fails when it is out of date.

A row tells what a backend **offers** for an op in these dtypes, by the names of the providers, the preferred first.
The first whose packages are installed and that takes the request is chosen before the first step. What a kernel
refuses beyond dtypes and packages (sizes of heads, a softcap, a GPU of another generation) is not shown:
`evocore kernels --config CONFIG` tells it for a model, `evocore conform --backend NAME` for the kit's cases.

- **bold**: CI runs it against its contract, on the backend itself or on what the section says.
- plain: CI does not run it on this backend.
- \\*: equal inputs need not give bit-equal gradients. A provider with two kernels is listed twice.
- a number: it needs a package, listed below the table.
"""


@dataclass(frozen=True)
class Section:
    """One backend.

    Attributes:
        proof: what CI proves of it, and how.
        runs: whether CI runs a kernel against its contract.
    """

    backend: str
    kernels: Sequence[Kernel]
    proof: str
    runs: Callable[[Kernel], bool]


SECTIONS = (
    Section(
        "cpu",
        CPU,
        """\
Every `pytest` checks all of them, on the processor itself (`tests/kernels/`). Triton's are those of the other
backends, run by its interpreter (`TRITON_INTERPRET=1`): to be tested, never to be trained with.
""",
        lambda kernel: True,
    ),
    Section(
        "cuda",
        CUDA,
        """\
CI has no GPU. `ci/gpu/run.sh` checks all of them on a machine that has one; its reports go to `docs/measurements/`.
Without a GPU CI proves of this backend that its Triton kernels compile for it, that their source is right where the
interpreter runs it (see cpu), and that adapters refuse what their packages do not take.
""",
        lambda kernel: False,
    ),
    Section(
        "npu",
        NPU,
        """\
CI has no NPU. It runs the kernels on two emulations of the device, one without and one with the real torch_npu
(`tests/emulation/README.md` says what that proves, and what not). Triton's are lowered by the vendor's compiler, most
of them (`ci/npu_contract.sh`), and run by no one.
""",
        lambda kernel: kernel.provider != "triton",
    ),
)


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_section(section) for section in SECTIONS)])


def _section(section: Section) -> str:
    packages = list(dict.fromkeys(", ".join(kernel.requires) for kernel in section.kernels if kernel.requires))
    lines = [f"## {section.backend}\n", section.proof, "| op | dtypes | kernels |", "| --- | --- | --- |"]
    for op in sorted(CONTRACTS):
        of_op = sorted((kernel for kernel in section.kernels if kernel.op == op), key=lambda kernel: -kernel.priority)
        for dtypes, kernels in _by_dtypes(of_op):
            cells = ", ".join(_cell(kernel, section, packages) for kernel in kernels)
            lines.append(f"| `{op}` | {_names(dtypes)} | {cells} |")
    if packages:
        lines.append("")
    lines += [f"{number}. `{package}`" for number, package in enumerate(packages, 1)]
    return "\n".join(lines) + "\n"


def _by_dtypes(kernels: Sequence[Kernel]) -> list[tuple[list[torch.dtype], list[Kernel]]]:
    """Dtypes that are served by the same kernels in the same order, together."""
    rows: list[tuple[list[torch.dtype], list[Kernel]]] = []
    for dtype in DTYPES:
        serving = [kernel for kernel in kernels if dtype in kernel.dtypes]
        same = next((dtypes for dtypes, others in rows if others == serving), None)
        if same is not None:
            same.append(dtype)
        elif serving:
            rows.append(([dtype], serving))
    return rows


def _cell(kernel: Kernel, section: Section, packages: Sequence[str]) -> str:
    name = f"**{kernel.provider}**" if section.runs(kernel) else kernel.provider
    needs = f" ({packages.index(', '.join(kernel.requires)) + 1})" if kernel.requires else ""
    return name + ("" if kernel.deterministic else "\\*") + needs


def _names(dtypes: Iterable[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write docs/support.md from the kernel records.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    wanted = page()
    if not parser.parse_args(arguments).check:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{PAGE.name} is out of date: run {COMMAND}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
