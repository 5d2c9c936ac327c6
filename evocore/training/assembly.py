"""From a config to the parts of a run: backend, family, numerics, kernels, model.

Everything here happens before the first step and before any large memory is touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evocore.backend import Backend, choose_backend
from evocore.errors import UserError
from evocore.nn.binding import bind_kernels, model_requests
from evocore.nn.family import ModelFamily, Numerics
from evocore.nn.initialise import initialise
from evocore.nn.tying import tie, tied_parameters
from evocore.ops.adamw import AdamWRequest
from evocore.ops.kernel import Request
from evocore.ops.resolution import ENVIRONMENT, Resolution, forced_providers, resolve
from evocore.parallel.groups import Groups
from evocore.parallel.layout import Layout
from evocore.parallel.runtime import Runtime, Wrap
from evocore.parallel.sharding import Sharing
from evocore.parallel.topology import Sizes, Topology
from evocore.parallel.zero import ZeroOptions
from evocore.plugins.manager import PluginRegistry
from evocore.training.flops import FlopsCounter

if TYPE_CHECKING:
    from evocore.config import Config

WHOLE = Layout(Topology(Sizes(world=1)))
OPTIMIZER_REQUEST = AdamWRequest(torch.float32)


@dataclass(frozen=True)
class Plan:
    """What will run on one rank, decided and explained, with its part of the model still on the meta device.

    Attributes:
        resolution: of the whole model, so that it is the same on all ranks.
        parameters: of the whole model.
        flops: of the layers of this rank's pipeline stage.
        sharings: of the parameters, by name.
    """

    backend: Backend
    backend_chosen_by: str
    family: ModelFamily
    numerics: Numerics
    resolution: Resolution
    model: nn.Module
    parameters: int
    flops: FlopsCounter
    layout: Layout
    sharings: Mapping[str, Sharing]

    def adamw(self) -> Callable[..., Any]:
        return self.resolution.function(OPTIMIZER_REQUEST)

    def connect(self) -> Runtime:
        """Make the process groups and give the model its collectives; every rank does so at the same time."""
        collectives = self.backend.collectives()
        groups = Groups(self.layout.topology, self.layout.rank, self.backend, collectives)
        return Runtime(self.layout, groups, collectives, self.sharings)

    def materialise(
        self, device: torch.device, seed: int | None, runtime: Runtime | None = None, wrap: Wrap | None = None
    ) -> nn.Module:
        """Give the model memory on ``device``, its kernels, and initial weights unless ``seed`` is None.

        Args:
            runtime: that has connected the model; None for a whole one.
            wrap: as in ``bind_kernels``.
        """

        def wrap_both(function: Callable[..., Any], request: Request, layer: str) -> Callable[..., Any]:
            watched = function if wrap is None else wrap(function, request, layer)
            return watched if runtime is None else runtime.wrap(watched, request, layer)

        tied = tied_parameters(self.model)
        self.model.to_empty(device=device)
        tie(self.model, tied)
        bind_kernels(self.model, self.resolution, wrap_both)
        if seed is not None:
            cuts = {name: sharing.placement for name, sharing in self.sharings.items()}
            if runtime is None:
                initialise(self.model, seed, cuts)
            else:
                initialise(self.model, seed, cuts, runtime.held)
        return self.model


def make_plan(
    config: Config, registry: PluginRegistry, *, layout: Layout = WHOLE, backend: str | None = None
) -> Plan:
    """Decide everything that the config, the environment and the installed plug-ins determine.

    Args:
        layout: which part of the model this process holds; the whole if left out.
        backend: the name given on the command line, if any.

    Raises:
        UserError: if the backend, the family or a kernel is not to be had, or the device lacks the dtype.
    """
    chosen, source = choose_backend(registry.backends(), flag=backend, config=config.backend)
    family = find_family(config.model_type, registry)
    numerics = numerics_of(config, chosen)
    model = family.build(config.family_settings(), numerics)
    parameters = sum(p.numel() for p in model.parameters())
    flops = FlopsCounter(layout.cut(model), keeps_attention=config.selective_checkpoint)  # type: ignore[arg-type]
    sharings = layout.shard(model)
    forced = forced_providers(config.kernels, os.environ.get(ENVIRONMENT, ""))
    requests = [*model_requests(model), OPTIMIZER_REQUEST]
    resolution = resolve(
        requests, registry.kernels(), chosen.device_type, forced, deterministic=config.cudnn_deterministic
    )
    model = layout.cut(model)
    mine = {name: sharings[name] for name, _ in model.named_parameters()}
    return Plan(chosen, source, family, numerics, resolution, model, parameters, flops, layout, mine)


def find_family(model_type: str, registry: PluginRegistry) -> ModelFamily:
    """The family that ``model_type`` names.

    Raises:
        UserError: if no plug-in brings it.
    """
    families = registry.models()
    for family in families:
        if model_type == family.name or model_type in family.aliases:
            return family
    raise UserError(
        f"model_type = {model_type!r}: this model family is not supported yet",
        f"one of {', '.join(sorted(family.name for family in families))}",
        "choose one of these, or install a plug-in that brings the family (`evocore models` lists them)",
    )


def numerics_of(config: Config, backend: Backend) -> Numerics:
    """The dtypes of a model on a backend.

    Raises:
        UserError: if the backend cannot train in the config's dtype.
    """
    name = str(config.model.dtype).removeprefix("torch.")
    dtype = backend.preferred_dtype() if name == "auto" else dtype_named(name)
    if dtype not in backend.dtypes():
        able = ", ".join(sorted(str(known).removeprefix("torch.") for known in backend.dtypes()))
        raise UserError(
            f"model.dtype = {name!r}: backend {backend.name} cannot train in it",
            f"one of {able}, or auto",
            'set model.dtype, e.g. --set model.dtype="torch.float32"',
        )
    return Numerics(
        dtype=dtype,
        norm_dtype=torch.float32 if config.use_fp32_norm else dtype,
        residual_dtype=torch.float32 if config.model.residual_in_fp32 else dtype,
    )


def zero_options(config: Config) -> ZeroOptions:
    """How a config lets gradients and parameters travel."""
    settings, travel = config.hybrid_zero_optimizer, config.reduce_comm_dtype
    return ZeroOptions(
        bucket_elements=settings.reduce_bucket_size,
        overlap_gradients=settings.overlap_sync_grad,
        overlap_parameters=settings.overlap_sync_param,
        communicate=None if travel is None else dtype_named(travel),
    )


def require_reductions(backend: Backend, *dtypes: torch.dtype) -> None:
    """Refuse a backend that cannot add up what ranks exchange.

    Raises:
        UserError: naming the dtypes that its collectives lack.
    """
    able = backend.collectives().dtypes()
    if missing := [str(dtype).removeprefix("torch.") for dtype in dtypes if dtype not in able]:
        raise UserError(
            f"the collectives of backend {backend.name} cannot reduce {', '.join(missing)}",
            "collectives that reduce gradients, losses and norms in the dtype in which they are summed",
            "train in one process, choose another backend, or have its plug-in's collectives convert such tensors",
        )


def dtype_named(name: str) -> torch.dtype:
    """The dtype that a config spells in one of InternEvo's ways."""
    name = name.removeprefix("torch.")
    dtype: torch.dtype = getattr(torch, _SPELLINGS.get(name, name))
    return dtype


_SPELLINGS = {"half": "float16", "tf32": "float32", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
