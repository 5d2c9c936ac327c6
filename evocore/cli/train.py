"""``evocore train``: one rank of a run, or all ranks of a run on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from evocore.config import LoadedConfig
    from evocore.parallel.launch import LaunchEnvironment


def train(
    config: Annotated[Path, typer.Option(help="The config: a Python file in InternEvo's form.")],
    sets: Annotated[list[str], typer.Option("--set", help="KEY=VALUE over the config; may be repeated.")] = [],  # noqa: B006
    model: Annotated[
        str | None, typer.Option(help="Train this released model, e.g. llama2-7b, in the place of the config's.")
    ] = None,
    shrink: Annotated[
        bool,
        typer.Option(
            "--shrink", help="Try a config: a few steps of a tiny model of its kind in its layout, for any CPU."
        ),
    ] = False,
    backend: Annotated[str | None, typer.Option(help="The device to train on (`evocore backends`).")] = None,
    nproc: Annotated[int | None, typer.Option(min=1, help="Start this many processes on this machine.")] = None,
    launcher: Annotated[str, typer.Option(help="Who started this process: auto, torch, slurm or none.")] = "auto",
    host: Annotated[str | None, typer.Option(help="Address of rank 0, over what the launcher says.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of rank 0, over what the launcher says.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and data order, over the config.")] = None,
) -> int:
    """Train the model of a config; prints the run's folder."""
    from evocore.parallel.launch import detect_launch

    # In the parent of --nproc as well, so that a mistake is told once.
    loaded = load(config, sets, model=model, seed=seed)
    if nproc is not None:
        if shrink:
            shrunk(loaded, nproc)
        command = ["train", "--config", str(config), "--launcher", "torch"]
        command += [word for text in sets for word in ("--set", text)]
        for name, value in (("--model", model), ("--backend", backend), ("--seed", seed)):
            command += [] if value is None else [name, str(value)]
        return start_ranks([*command, "--shrink"] if shrink else command, nproc)
    launch = detect_launch(launcher, host=host, port=port)
    if shrink:
        loaded = shrunk(loaded, launch.world_size)
    code, folder = train_here(loaded, launch, backend)
    if launch.rank == 0:
        print(folder)
    return code


def load(config: Path, sets: list[str], *, model: str | None, seed: int | None) -> LoadedConfig:
    """The config with what the command line says over it."""
    from evocore.config import load_config

    if model is None:
        return load_config(config, sets, {"seed": seed})
    from evocore.plugins.manager import load_plugins
    from evocore.released import Catalogue

    return load_config(config, sets, {"seed": seed}, Catalogue.of(load_plugins()).find(model).model)


def shrunk(loaded: LoadedConfig, world_size: int) -> LoadedConfig:
    """The same run in miniature, for so many processes."""
    from evocore.config.shrink import shrink as miniature

    return miniature(loaded, world_size)


def train_here(loaded: LoadedConfig, launch: LaunchEnvironment, backend: str | None) -> tuple[int, Path]:
    """Train as this one rank, watched as people expect; the exit code and the run's folder."""
    from evocore.observe.default import default_observers
    from evocore.parallel.processes import STOPPED
    from evocore.plugins.manager import load_plugins
    from evocore.training.run import train as run_training
    from evocore.training.trainer import Ending

    observers = default_observers() if launch.rank == 0 else []
    ending, folder = run_training(loaded, load_plugins(), launch, backend=backend, observers=observers)
    return STOPPED if ending is Ending.STOPPED else 0, folder


def start_ranks(command: list[str], nproc: int) -> int:
    """Run ``evocore`` with these arguments as ``nproc`` ranks on this machine; the exit code of the whole."""
    from evocore.errors import UserError
    from evocore.parallel.processes import run_processes

    if "RANK" in os.environ:
        raise UserError(
            f"--nproc {nproc}, but RANK={os.environ['RANK']} says that a launcher started this process",
            "one launcher: --nproc, or torchrun or srun",
            "leave out --nproc, or unset RANK",
        )
    return run_processes([sys.executable, "-m", "evocore", *command], nproc)
