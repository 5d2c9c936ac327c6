"""``evocore train --shrink``: the run of a config, made so small that a CPU trains its few steps in seconds.

What is proven with it is that a config runs: its family, its options, its layout. Sizes go down, what they mean
stays: as many query heads for each key-value head, a width that the layout divides, both kinds of layers where there
are two, parallel sizes as long as there are processes for them and divisors of them otherwise. What ``--set`` says
stays as it says, and nothing of the real run is read or written: not its checkpoints, not its folder.
"""

from __future__ import annotations

from math import ceil, lcm
from pathlib import Path
from typing import Any

from evocore.config.loaded import LoadedConfig
from evocore.config.problems import shown
from evocore.config.resolved import config_from_values
from evocore.config.schema import Config
from evocore.config.schema_keys import leaves
from evocore.config.settings import Setting, flatten, nest, put
from evocore.config.shrink_model import model_sizes
from evocore.config.shrink_parallel import parallel_sizes
from evocore.errors import UserError

STEPS, SEQUENCE, MICRO_BATCHES, SAMPLES, VALID_PACKS = 3, 64, 2, 2, 4
_SOURCE = "--shrink"


def shrink(loaded: LoadedConfig, world_size: int) -> LoadedConfig:
    """The config of a run in miniature.

    Args:
        loaded: of the whole run.
        world_size: processes that there are for the small one.

    Raises:
        UserError: the model is not described by the config.
    """
    config = loaded.config
    if config.hf is not None:
        raise UserError(
            f"--shrink with model_type={config.model_type!r}: the model is a class of transformers",
            "a config that describes its model",
            "write a small config.json and name its folder in hf.path",
        )
    said = {key for key, source in loaded.sources.items() if source in ("--set", "command line")}
    sizes = {key: value for key, value in parallel_sizes(config, world_size).items() if key not in said}
    parallel = _changed(config, sizes)
    random = config.data.train_folder is None or not Path(config.data.train_folder).is_dir()
    wanted = sizes | _data(parallel, random) | _run(config)
    wanted |= model_sizes(parallel, world_size, sequence=wanted["data.seq_len"], vocabulary=random)
    changes = {key: value for key, value in wanted.items() if key not in said}
    changes |= _derived(_changed(config, changes))
    small, before = _changed(config, changes), dict(leaves(config))
    changed = {key: value for key, value in leaves(small) if key not in before or before[key] != value}
    lines = ", ".join(
        f"{key} {shown(before[key]) if key in before else '...'} -> {shown(value)}" for key, value in changed.items()
    )
    kept = {key: source for key, source in loaded.sources.items() if key in dict(leaves(small))}
    return LoadedConfig(
        small, kept | dict.fromkeys(changed, _SOURCE), [*loaded.notes, f"{_SOURCE}: {lines}"], loaded.name
    )


def _changed(config: Config, changes: dict[str, Any]) -> Config:
    settings = flatten(config.model_dump(), "config")
    for key, value in changes.items():
        put(settings, key, Setting(value, _SOURCE))
    return config_from_values(nest(settings), "the config as --shrink makes it")


def _data(config: Config, random: bool) -> dict[str, Any]:
    data, parallel, two = config.data, config.parallel, config.parallel.sequence_2D
    divided = parallel.tensor.mode != "mtp" or parallel.expert.no_tp
    multiple = lcm(parallel.tensor.size if divided else 1, 2 * two.context_size if two.enable else 1)
    found: dict[str, Any] = {
        "data.seq_len": min(data.seq_len, ceil(SEQUENCE / multiple) * multiple),
        "data.micro_bsz": min(data.micro_bsz, SAMPLES),
        "data.micro_num": max(min(data.micro_num, MICRO_BATCHES), parallel.pipeline.size),
        "data.total_steps": min(data.total_steps, STEPS),
        "data.valid_every": min(data.valid_every, STEPS),
        "data.valid_max_packs": min(data.valid_max_packs or VALID_PACKS, VALID_PACKS),
        "data.rampup_batch_size": "",
        "data.skip_batches": "",
    }
    if random:
        nothing = ("train_folder", "valid_folder", "tokenizer_path", "raw")
        found |= {"data.type": "random"} | {f"data.{name}": None for name in nothing}
    elif data.valid_folder is not None and not Path(data.valid_folder).is_dir():
        found["data.valid_folder"] = None
    return found


def _run(config: Config) -> dict[str, Any]:
    """A run by itself, in the dtype that the device computes fast."""
    return {
        "JOB_NAME": f"{config.JOB_NAME}-shrunk",
        "model.dtype": "auto",
        "reduce_comm_dtype": None,
        "tensorboard_folder": None,
        "ckpt.enable_save_ckpt": False,
        "ckpt.checkpoint_every": None,
        "ckpt.load_ckpt_info": None,
        "ckpt.auto_resume": False,
        "ckpt.stop_file_path": None,
    }


def _derived(config: Config) -> dict[str, Any]:
    """What follows from the new sizes."""
    data, schedule = config.data, config.lr_scheduler
    return {
        "data.packed_length": data.seq_len * data.micro_bsz,
        "data.batch_size": data.micro_num,
        "data.gradient_accumulation": data.micro_num,
        "data.valid_micro_num": data.micro_num,
        "lr_scheduler.total_steps": data.total_steps,
        "lr_scheduler.init_steps": min(schedule.init_steps, data.total_steps - 1),
    }
