"""Ascend NPUs through torch_npu: what differs from the defaults of ``Backend``.

torch_npu extends PyTorch by a device named npu. It imports only where CANN's libraries are found, and each release
works with one release of PyTorch; both are checked here by words that say what to do, before anything is started.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist

from evocore.backend import Backend, installed_versions
from evocore.backends.npu.collectives import NPUCollectives
from evocore.ops.collectives import Collectives

SMALL_GROUP = 8
"""Ranks up to which a group's communicator gets a small buffer."""
SMALL_BUFFER, LARGE_BUFFER = 64, 200
"""Megabytes of a communicator's buffer: HCCL takes that much device memory for every group, twice."""


class NPUBackend(Backend):
    """Ascend 910B and its like."""

    name = "npu"
    device_type = "npu"
    priority = 50
    process_group_backend = "cpu:gloo,npu:hccl"
    variables = ("ASCEND_", "CPU_AFFINITY_CONF", "HCCL_", "TASK_QUEUE_ENABLE")

    def why_unavailable(self) -> str | None:
        if find_spec("torch_npu") is None:
            return "the package torch_npu is not installed"
        if problem := _version_problem():
            return problem
        try:
            import torch_npu  # noqa: F401 - registers the device
        except (ImportError, OSError, RuntimeError) as error:
            return f"torch_npu does not import ({error}): source CANN's set_env.sh first"
        if not self.module.is_available() or not self.module.device_count():
            return "torch_npu finds no NPU: check the driver (npu-smi info) and ASCEND_RT_VISIBLE_DEVICES"
        return None

    def versions(self) -> dict[str, str]:
        found = installed_versions("torch-npu", "triton-ascend")
        if home := os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME"):
            found["CANN"] = home
        return found

    def package_problems(self) -> list[str]:
        problems = [problem] if (problem := _version_problem()) else []
        both = installed_versions("triton", "triton-ascend")
        if len(both) == 2:
            problems.append(
                f"triton {both['triton']} and triton-ascend {both['triton-ascend']} share a folder, so that one has "
                "overwritten the other: uninstall both, then install the one that this device needs"
            )
        return problems

    def health_problems(self) -> list[str]:
        problems = []
        if os.environ.get("PYTORCH_NPU_ALLOC_CONF") and os.environ.get("PYTORCH_ALLOC_CONF"):
            problems.append(
                "PYTORCH_NPU_ALLOC_CONF and PYTORCH_ALLOC_CONF are both set, which makes torch_npu abort: unset one"
            )
        if os.environ.get("TORCH_NPU_FALLBACK_CPU_DISABLE") != "1":
            problems.append(
                "operators that the NPU lacks run on the host, slowly and with a mere warning: "
                "set TORCH_NPU_FALLBACK_CPU_DISABLE=1 to be told"
            )
        return problems

    def set_device(self, device: torch.device) -> None:
        """Make the device current, compile nothing at run time and keep tensors in their plain layout.

        Both are the 910B's defaults; on other chips of the family they are not.
        """
        super().set_device(device)
        self.module.set_compile_mode(jit_compile=False)
        self.module.config.allow_internal_format = False

    def dtypes(self) -> frozenset[torch.dtype]:
        """No float64: most of the NPU's operators refuse it."""
        return frozenset({torch.float32, torch.bfloat16, torch.float16})

    def use_deterministic(self, on: bool) -> None:
        """Operators through PyTorch's switch; collectives through a variable that HCCL reads when it starts."""
        torch.use_deterministic_algorithms(on)
        if on:
            os.environ["HCCL_DETERMINISTIC"] = "true"

    def collectives(self) -> Collectives:
        return NPUCollectives()

    def group_options(self, ranks: int) -> Any:
        """A communicator's buffer by the size of its group: there are many small groups and few large ones."""
        if "HCCL_BUFFSIZE" in os.environ:
            return None  # the user has decided
        import torch_npu

        options = torch_npu._C._distributed_c10d.ProcessGroupHCCL.Options()
        options.hccl_config = {"hccl_buffer_size": SMALL_BUFFER if ranks <= SMALL_GROUP else LARGE_BUFFER}
        return options

    def new_group(self, ranks: list[int]) -> dist.ProcessGroup:
        """A group whose communicator holds no more memory than its size deserves."""
        group: dist.ProcessGroup = dist.new_group(ranks, pg_options=self.group_options(len(ranks)))
        return group

    def profiler_activities(self) -> list[Any]:
        """Those of PyTorch's profiler, and the NPU's own, which torch_npu adds to it as PrivateUse1."""
        return [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.PrivateUse1]


def _version_problem() -> str | None:
    """Compare releases before the import: a mismatch ends in an unresolved symbol that tells nobody anything."""
    found = installed_versions("torch-npu").get("torch-npu")
    if found is None:
        return None  # not installed as a distribution: only the import can tell
    wanted = ".".join(found.split(".")[:2])
    here = ".".join(torch.__version__.split("+")[0].split(".")[:2])
    if wanted != here:
        return (
            f"torch_npu {found} is built for PyTorch {wanted}, found {torch.__version__}: install torch_npu {here}.*"
        )
    return None
