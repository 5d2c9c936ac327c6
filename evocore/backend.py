"""The device contract, and the choice of one device.

``Backend`` is concrete: its defaults go through ``torch.get_device_module`` so that a new device is a short class.
The runtime above asks a backend and never asks which chip it runs on.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from evocore.errors import UserError
from evocore.ops.collectives import Collectives


class Backend:
    """One kind of device, driven through PyTorch.

    Class attributes:
        name: how people choose it.
        device_type: PyTorch's name of the device.
        priority: among the available backends the highest is chosen.
        process_group_backend: the string for ``torch.distributed.init_process_group``.
        variables: environment variables that the device's libraries read and that change what a run does, for the
            doctor; a name that ends in ``_`` stands for all that start so.
    """

    name: ClassVar[str]
    device_type: ClassVar[str]
    priority: ClassVar[int] = 0
    process_group_backend: ClassVar[str] = "gloo"
    variables: ClassVar[tuple[str, ...]] = ()

    # --- availability -----------------------------------------------------------------------------------------------

    def why_unavailable(self) -> str | None:
        """None if this process can use the device, otherwise the reason in a few words. Touches no driver state."""
        try:
            module = torch.get_device_module(self.device_type)
        except (RuntimeError, AttributeError):
            return f"PyTorch {torch.__version__} has no device {self.device_type!r}"
        available = getattr(module, "is_available", None)
        if available is not None and not available():
            return f"no {self.device_type} device is present"
        return None

    def versions(self) -> dict[str, str]:
        """Packages and drivers that matter for this device, by name, for the doctor and the run's record.

        Asked even where the device is not available.
        """
        return {}

    def package_problems(self) -> list[str]:
        """Which installed packages do not fit one another, one line with its cure each.

        Asked even where the device is not available, as they may be why: compare versions, import nothing.
        """
        return []

    def health_problems(self) -> list[str]:
        """What is wrong with this device's set-up although it is available, one line with its cure each."""
        return []

    # --- device and streams -----------------------------------------------------------------------------------------

    @property
    def module(self) -> ModuleType:
        """PyTorch's module of this device, e.g. ``torch.cpu``."""
        module: ModuleType = torch.get_device_module(self.device_type)
        return module

    def device_count(self) -> int:
        """How many devices this process sees."""
        return int(self.module.device_count())

    def device(self, local_rank: int = 0) -> torch.device:
        """The device of the process with this rank on its machine."""
        return torch.device(self.device_type, local_rank)

    def set_device(self, device: torch.device) -> None:
        """Make ``device`` the current one of this process."""
        self.module.set_device(device)

    def device_name(self, device: torch.device) -> str:
        """What the vendor calls it, e.g. for the run's record."""
        ask = getattr(self.module, "get_device_name", None)
        return str(ask(device)) if ask else self.name

    def synchronize(self, device: torch.device) -> None:
        """Wait until everything queued on the device is done."""
        self.module.synchronize(device)

    def stream(self, device: torch.device) -> Any:
        """A new stream beside the current one, for communication or copies."""
        return self.module.Stream(device=device)

    def current_stream(self, device: torch.device) -> Any:
        return self.module.current_stream(device)

    def on_stream(self, stream: Any) -> AbstractContextManager[Any]:
        """Queue what follows on ``stream``."""
        context: AbstractContextManager[Any] = self.module.stream(stream)
        return context

    def event(self) -> Any:
        """An event that can be recorded on one stream and waited for on another."""
        return self.module.Event()

    # --- random numbers ---------------------------------------------------------------------------------------------

    def manual_seed(self, seed: int) -> None:
        """Seed the generators of the host and of the device."""
        torch.manual_seed(seed)

    def rng_state(self, device: torch.device) -> dict[str, torch.Tensor]:
        """States of every generator that training draws from, uint8 on the host, by name."""
        states = {"host": torch.get_rng_state()}
        if hasattr(self.module, "get_rng_state"):
            states["device"] = self.module.get_rng_state(device).cpu()
        return states

    def set_rng_state(self, state: dict[str, torch.Tensor], device: torch.device) -> None:
        """Put the generators back to a state that ``rng_state`` returned."""
        torch.set_rng_state(state["host"])
        if "device" in state:
            self.module.set_rng_state(state["device"], device)

    # --- memory -----------------------------------------------------------------------------------------------------

    def memory(self, device: torch.device) -> dict[str, int]:
        """Bytes: ``allocated`` and ``peak`` of this process, ``total`` of the device; 0 where PyTorch cannot tell."""
        module = self.module
        return {
            "allocated": int(module.memory_allocated(device)) if hasattr(module, "memory_allocated") else 0,
            "peak": int(module.max_memory_allocated(device)) if hasattr(module, "max_memory_allocated") else 0,
            "total": int(module.mem_get_info(device)[1]) if hasattr(module, "mem_get_info") else 0,
        }

    def reset_peak_memory(self, device: torch.device) -> None:
        """Let ``peak`` start again from what is allocated now."""
        if hasattr(self.module, "reset_peak_memory_stats"):
            self.module.reset_peak_memory_stats(device)

    def empty_cache(self) -> None:
        """Give cached blocks back to the device."""
        if hasattr(self.module, "empty_cache"):
            self.module.empty_cache()

    # --- arithmetic -------------------------------------------------------------------------------------------------

    def dtypes(self) -> frozenset[torch.dtype]:
        """Dtypes in which a model can be trained on this device."""
        return frozenset({torch.float32, torch.bfloat16, torch.float16})

    def preferred_dtype(self) -> torch.dtype:
        """What ``dtype="auto"`` in a config means: bfloat16 where its matrix products are fast."""
        return torch.bfloat16

    def peak_flops(self, dtype: torch.dtype, device: torch.device) -> float | None:
        """Floating-point operations per second of dense matrix products, None if unknown: never a guess."""
        return None

    def peak_flops_source(self) -> str:
        """Where the figure of ``peak_flops`` comes from, for the launch report."""
        return "unknown"

    def use_deterministic(self, on: bool) -> None:
        """Ask for bit-equal results from equal inputs."""
        torch.use_deterministic_algorithms(on)

    def autocast(self, dtype: torch.dtype) -> AbstractContextManager[Any]:
        """Mixed precision for foreign modules; evocore's own models hold their weights in the compute dtype."""
        return torch.autocast(self.device_type, dtype) if dtype != torch.float32 else nullcontext()

    # --- communication, memory pools, profiling ---------------------------------------------------------------------

    def collectives(self) -> Collectives:
        """The collectives of this device."""
        return Collectives()

    def new_group(self, ranks: list[int]) -> dist.ProcessGroup:
        """A process group of these global ranks; every process calls it, in the same order."""
        group: dist.ProcessGroup = dist.new_group(ranks)
        return group

    def pins_host_memory(self) -> bool:
        """Whether copies from pinned host memory run beside compute."""
        return True

    def reuses_gather_buffers(self) -> bool:
        """Whether gathered weights go into buffers that are kept, rather than back to the allocator."""
        return False

    def profiler_activities(self) -> list[torch.profiler.ProfilerActivity]:
        """What ``torch.profiler`` should record."""
        return [torch.profiler.ProfilerActivity.CPU]


def installed_versions(*packages: str) -> dict[str, str]:
    """Versions of those of the distributions that are installed, for ``Backend.versions``; imports nothing."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Probe:
    """What a backend answered when it was asked whether it can be used here.

    ``problem`` is None if it is available. If it raised, ``backend`` is None and ``detail`` holds the traceback.
    """

    name: str
    backend: Backend | None
    problem: str | None
    detail: str = ""


def probe(offer: type[Backend]) -> Probe:
    """Ask one backend; a stranger's that raises is a finding, so that the others stay usable."""
    name = getattr(offer, "name", offer.__name__)
    try:
        backend = offer()
        return Probe(name, backend, backend.why_unavailable())
    except Exception as error:  # noqa: BLE001 - a stranger's code can raise anything; the traceback is kept
        return Probe(name, None, f"raised {type(error).__name__}: {error}", traceback.format_exc())


def choose_backend(
    offers: Iterable[type[Backend]], *, flag: str | None = None, config: str | None = None
) -> tuple[Backend, str]:
    """Choose one backend: ``flag`` over ``EVOCORE_BACKEND`` over ``config`` over the best one that is available.

    Returns:
        The backend and who chose it, for the launch report.

    Raises:
        UserError: if the wanted name is unknown or not available, or nothing is; it lists what is and why not.
            Also if two backends have the same name.
    """
    backends: dict[str, Backend] = {}
    reasons: dict[str, str | None] = {}
    for offer in _without_namesakes(offers):
        status = probe(offer)
        reasons[status.name] = status.problem
        if status.backend is not None:
            backends[status.name] = status.backend
    wanted, source = flag, "--backend"
    if not wanted:
        wanted, source = os.environ.get("EVOCORE_BACKEND"), "EVOCORE_BACKEND"
    if not wanted:
        wanted, source = config, "backend in the config"
    usable = [name for name, reason in reasons.items() if reason is None]
    listing = (
        "; ".join(f"{name} ({reason or 'available'})" for name, reason in sorted(reasons.items())) or "none at all"
    )
    if wanted:
        if wanted not in reasons:
            raise UserError(
                f"{source}={wanted!r} names no backend",
                f"one of: {listing}",
                "name one that is available, or install the plug-in that brings it (`evocore doctor` lists plug-ins)",
            )
        if reasons[wanted] is not None:
            raise UserError(
                f"{source}={wanted!r} is not available here: {reasons[wanted]}",
                f"one of: {listing}",
                "name one that is available, or mend what makes this one unavailable (`evocore doctor` tells more)",
            )
        return backends[wanted], source
    if not usable:
        raise UserError(
            "no backend is available",
            f"at least one of: {listing}",
            "install a backend or unblock its plug-in (`evocore doctor` lists plug-ins)",
        )
    best = max(usable, key=lambda name: (backends[name].priority, name))
    return backends[best], "automatic"


def _without_namesakes(offers: Iterable[type[Backend]]) -> list[type[Backend]]:
    """The offers, refused if one name means two of them: which one a run got would be an accident."""
    named: dict[str, type[Backend]] = {}
    for offer in offers:
        name = getattr(offer, "name", offer.__name__)
        other = named.setdefault(name, offer)
        if other is not offer:
            classes = " and ".join(f"{one.__module__}.{one.__qualname__}" for one in (other, offer))
            raise UserError(
                f"two plug-ins bring a backend named {name!r}: {classes}",
                "one backend of each name",
                "block one of the plug-ins with EVOCORE_PLUGINS=no:NAME (`evocore doctor` lists them)",
            )
    return list(named.values())
