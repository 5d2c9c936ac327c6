"""Puts a run together: config, plug-ins, plan, processes, data, model, optimizer, checkpoint - then trains.

The order matters: whatever can be wrong with the input is found before a process group exists or memory is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evocore.backend import choose_backend
from evocore.checkpoint.checkpointer import Checkpointer
from evocore.config import Config, LoadedConfig, require_runnable, save_resolved
from evocore.config.schema_run import FOREIGN
from evocore.data.build import build_train_loader, build_valid_sets
from evocore.data.raw import prepare_raw
from evocore.nn.router import LossWeights
from evocore.parallel.activations import ActivationMemory, ActivationOptions
from evocore.parallel.failure import process_group
from evocore.parallel.launch import LaunchEnvironment, agree_on
from evocore.parallel.layout import Layout
from evocore.parallel.runtime import Runtime
from evocore.plugins.manager import PluginRegistry
from evocore.training.assembly import OPTIMIZER_REQUEST, Plan, make_plan, require_reductions, zero_options
from evocore.training.control import StopFile, StopFlag, stop_on_signal
from evocore.training.folder import RunFolder, environment, new_folder, unfinished
from evocore.training.foreign import load_foreign
from evocore.training.further import Further
from evocore.training.observer import Observer, RunStart
from evocore.training.optimizer import Optimizer
from evocore.training.routers import Routers
from evocore.training.schedules import Beta2Schedule, CosineWithWarmup, LossScale
from evocore.training.shadow import Shadow
from evocore.training.state import Progress, restore, tensors_for
from evocore.training.step import TrainStep
from evocore.training.trainer import Cadence, Ending, Trainer


def train(
    loaded: LoadedConfig,
    registry: PluginRegistry,
    launch: LaunchEnvironment,
    *,
    backend: str | None = None,
    observers: Sequence[Observer] = (),
) -> tuple[Ending, Path]:
    """Train as a config says.

    Args:
        loaded: the config with its sources.
        registry: the plug-ins.
        launch: this process among the others.
        backend: the name given on the command line, if any.
        observers: told what happens, on rank 0 only.

    Returns:
        How the run ended and its folder.

    Raises:
        UserError: for everything that the user can mend.
    """
    config = loaded.config
    choose_backend(registry.backends(), flag=backend, config=config.backend)  # told before what else may be wrong
    families = {name for family in registry.models() for name in (family.name, *family.aliases)}
    require_runnable(config, world_size=launch.world_size, families=families)
    layout = Layout.of(config, launch.world_size, launch.rank)
    plan = make_plan(config, registry, layout=layout, backend=backend)
    shadow = None if config.kernels_check is None else Shadow(config.kernels_check, plan.resolution)
    if launch.world_size > 1:
        require_reductions(plan.backend, torch.float32)
    device = plan.backend.device(launch.local_rank)
    plan.backend.set_device(device)
    if config.cudnn_deterministic:
        plan.backend.use_deterministic(True)
    with stop_on_signal() as stop_flag, process_group(launch, plan.backend):
        if launch.rank != 0:  # which watches nothing and tells nobody
            observers, shadow = [], None
        return _train(loaded, plan, launch, device, list(observers), shadow, stop_flag)


def _train(
    loaded: LoadedConfig,
    plan: Plan,
    launch: LaunchEnvironment,
    device: torch.device,
    observers: list[Observer],
    shadow: Shadow | None,
    stop_flag: StopFlag,
) -> tuple[Ending, Path]:
    config = loaded.config
    if launch.world_size > 1:
        collectives = plan.backend.collectives()
        agree_on("kernel table", "\n".join(plan.resolution.lines()), collectives)
        agree_on("config", config.model_dump_json(indent=1), collectives)
    runtime = plan.connect()
    report = [*loaded.notes, *_rank0_first(runtime, lambda: prepare_raw(config))]
    folder = _agree_on_folder(config, runtime)

    options = zero_options(config)
    runtime.connect(
        plan.model,
        config.parallel.weight,
        device,
        expert_weight=config.parallel.expert_weight,
        communicate=options.communicate,
        keeps_buffers=plan.backend.reuses_gather_buffers(),
        activations=ActivationMemory(plan.backend, device, ActivationOptions.of(config, plan.layout.chunks)),
    )
    model = plan.materialise(device, config.seed, runtime, None if shadow is None else shadow.wrap)
    adamw = plan.adamw()
    optimizer = Optimizer(
        model,
        adamw if shadow is None else shadow.wrap(adamw, OPTIMIZER_REQUEST, "optimizer"),
        weight_decay=config.adam.weight_decay,
        no_decay=config.adam.no_decay,
        eps=config.adam.adam_eps,
        beta1=config.adam.adam_beta1,
        runtime=runtime,
        options=options,
    )
    scale, progress = LossScale.of(config, plan.numerics.dtype), Progress()
    checkpointer = _checkpointer(config, folder, launch)
    data_state, resumed = _resume(config, plan, runtime, checkpointer, optimizer, scale, progress)
    loader = build_train_loader(config, data_rank=runtime.data_rank, data_size=runtime.data_size, state=data_state)
    valid_sets = build_valid_sets(
        config, data_rank=runtime.data_rank, data_size=runtime.data_size, max_packs=config.data.valid_max_packs
    )
    if launch.rank == 0:
        save_resolved(loaded, folder.config)
        folder.write(
            "environment.json", environment(launch.world_size, plan.backend.device_name(device), plan.backend.name)
        )
        folder.write("kernels.json", {"digest": plan.resolution.digest(), "choices": plan.resolution.table()})
        folder.set_status("running", progress.steps)
    if shadow is not None:
        report += shadow.attach(model, folder.path, device, progress.steps + 1)
    start = RunStart(
        folder.path,
        progress.steps + 1,
        config.data.total_steps,
        [*report, *resumed, *_launch_report(plan, launch, device)],
        _tensorboard_folder(config, folder),
    )
    for observer in observers:
        observer.on_start(start)
    trainer = Trainer(
        step=TrainStep(
            model,
            optimizer,
            runtime,
            device,
            flops=plan.flops,
            loss_options={"label_smoothing": config.loss.label_smoothing, "z_loss": config.loss.z_loss},
            clip=config.hybrid_zero_optimizer.clip_grad_norm,
            routers=_routers(config, model, runtime),
            further=_further(config),
        ),
        optimizer=optimizer,
        loader=loader,
        valid_sets=valid_sets,
        backend=plan.backend,
        device=device,
        dtype=plan.numerics.dtype,
        runtime=runtime,
        lr=CosineWithWarmup(
            config.adam.lr,
            config.lr_scheduler.total_steps,
            config.lr_scheduler.init_steps,
            config.lr_scheduler.warmup_ratio,
            config.lr_scheduler.eta_min,
        ),
        beta2=Beta2Schedule(config.beta2_scheduler.init_beta2, config.beta2_scheduler.c),
        scale=scale,
        progress=progress,
        cadence=Cadence(config.data.total_steps, config.ckpt.checkpoint_every or 0, config.data.valid_every),
        checkpointer=checkpointer,
        stop_flag=stop_flag,
        stop_file=StopFile(config.ckpt.stop_file_path),
        observers=observers,
        shadow=shadow,
        seed=config.seed,
        config=config.model_dump(mode="json"),
    )
    with loader:
        ending = trainer.run()
    if launch.rank == 0:
        folder.set_status(ending.value, progress.steps)
    return ending, folder.path


def _routers(config: Config, model: nn.Module, runtime: Runtime) -> Routers | None:
    if config.model.num_experts == 1:
        return None
    return Routers(
        model,
        runtime,
        layers=config.model.num_layers + config.model.extra_pred_tokens,
        experts=config.model.num_experts,
        coefficients=LossWeights(config.loss.moe_loss_coeff, config.loss.moe_z_loss_coeff),
    )


def _further(config: Config) -> Further | None:
    count = config.model.extra_pred_tokens
    return Further(count, config.loss.mtp_loss_coeff) if count else None


def _rank0_first(runtime: Runtime, work: Callable[[], list[str]]) -> list[str]:
    """Let rank 0 do work that leaves files behind, while the others wait; its failure ends all."""
    notes = work() if runtime.rank == 0 else []
    runtime.collect("")  # the others wait here
    return notes


def _agree_on_folder(config: Config, runtime: Runtime) -> RunFolder:
    """The run's folder, the same on all ranks: an unfinished run is continued if ``auto_resume`` allows it."""
    root, path = Path(config.run_folder), ""
    if runtime.rank == 0:
        continued = None
        if config.ckpt.auto_resume and config.ckpt.enable_save_ckpt and config.ckpt.save_ckpt_folder is None:
            continued = unfinished(root, config.JOB_NAME)
        path = str((continued or new_folder(root, config.JOB_NAME)).path)
    return RunFolder(Path(runtime.collect(path)[0]))


def _checkpointer(config: Config, folder: RunFolder, launch: LaunchEnvironment) -> Checkpointer | None:
    if not config.ckpt.enable_save_ckpt:
        return None
    return Checkpointer(config.ckpt.save_ckpt_folder or folder.checkpoints, keep_last=config.ckpt.keep_last)


def _resume(
    config: Config,
    plan: Plan,
    runtime: Runtime,
    checkpointer: Checkpointer | None,
    optimizer: Optimizer,
    scale: LossScale,
    progress: Progress,
) -> tuple[dict[str, int] | None, list[str]]:
    """Load what ``auto_resume`` finds, else what ``load_ckpt_info`` names; return the data's state and notes."""
    notes: list[str] = []
    content, source = {"all"}, ""
    state: dict[str, Any] = {}
    if checkpointer is not None and config.ckpt.auto_resume:
        resumed = checkpointer.load_latest(tensors=optimizer.tensors())
        notes = [f"checkpoint {info.path} passed over: {info.problem}" for info in resumed.passed_over]
        if resumed.info is not None:
            state, source = resumed.state, str(resumed.info.path)
    if not source and config.ckpt.load_ckpt_info is not None and config.ckpt.load_ckpt_info.ckpt_type in FOREIGN:
        note = load_foreign(config, plan, optimizer, runtime.collect)
        optimizer.publish()
        return None, [*notes, note]
    if not source and config.ckpt.load_ckpt_info is not None:
        content, source = set(config.ckpt.load_ckpt_info.content), config.ckpt.load_ckpt_info.path
        reader = checkpointer or Checkpointer(Path(source).parent)
        state = reader.load(source, tensors=tensors_for(content, optimizer), skip=("exp_avg*",))
    if not source:
        return None, notes
    optimizer.publish()
    restore(state, content, progress, optimizer, scale)
    notes.append(f"resumed from {source} ({', '.join(sorted(content))}) after step {progress.steps}")
    wants_data = "all" in content or "sampler" in content
    return (dict(state["data"]) if wants_data else None), notes


def _tensorboard_folder(config: Config, folder: RunFolder) -> Path | None:
    if not config.enable_tb:
        return None
    return Path(config.tensorboard_folder) if config.tensorboard_folder else folder.path / "tensorboard"


def _launch_report(plan: Plan, launch: LaunchEnvironment, device: torch.device) -> list[str]:
    dtype = plan.numerics.dtype
    peak = plan.backend.peak_flops(dtype, device)
    rate = "unknown" if peak is None else f"{peak / 1e12:.3g} TFLOP/s ({plan.backend.peak_flops_source()})"
    kernels = sorted({f"{choice.request.op}={choice.kernel.provider}" for choice in plan.resolution.choices})
    return [
        f"backend {plan.backend.name} (chosen by: {plan.backend_chosen_by}), {plan.backend.device_name(device)}, "
        f"{launch.world_size} process(es), {torch.get_num_threads()} thread(s)",
        f"model {plan.family.name}: {plan.parameters:,} parameters, {str(dtype).removeprefix('torch.')}",
        f"peak of one device in {str(dtype).removeprefix('torch.')}: {rate}",
        *plan.layout.pipeline_report(),
        f"kernels {' '.join(kernels)} (digest {plan.resolution.digest()})",
    ]
