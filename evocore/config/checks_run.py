"""Launch constraints on model shapes, memory, data, checkpoints and schedules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from evocore.config.schema import Config
from evocore.errors import UserError

Problems = Iterator[UserError]
REMOTE = re.compile(r"(boto3|volc|oss2|s3)[:+]")


def _shapes(config: Config) -> Problems:
    model = config.model
    heads, kv_heads = model.num_attention_heads, model.num_kv_attention_heads
    if model.hidden_size % heads and model.head_dim == model.hidden_size // heads:
        yield UserError(
            f"model.hidden_size={model.hidden_size} is not divisible by model.num_attention_heads={heads}",
            "a multiple, or an explicit model.head_dim",
            "change one of the two or set model.head_dim",
        )
    if heads % kv_heads:
        yield UserError(
            f"model.num_attention_heads={heads} is not divisible by model.num_kv_attention_heads={kv_heads}",
            "as many query heads for each key-value head",
            f"set model.num_kv_attention_heads to a divisor of {heads}",
        )
    if model.head_dim % 2:
        yield UserError(
            f"model.head_dim={model.head_dim} is odd", "an even width, as rotary embedding turns pairs", "change it"
        )


def _memory(config: Config) -> Problems:
    if config.selective_checkpoint_offload and not config.selective_checkpoint:
        yield UserError(
            "selective_checkpoint_offload=True without selective_checkpoint",
            "selective_checkpoint=True",
            "set it, or turn the offload off",
        )
    layers, moves = config.cpu_offloading.num_layers, config.cpu_offloading.enable
    fewest, most = (1, config.model.num_layers) if moves else (0, 0)
    if not fewest <= layers <= most:
        yield UserError(
            f"cpu_offloading.num_layers={layers} with enable={moves} and model.num_layers={config.model.num_layers}",
            "0 if it is off, some or all layers if it is on",
            "change cpu_offloading.num_layers or cpu_offloading.enable",
        )
    if config.model.dtype == "torch.float32" and config.reduce_comm_dtype not in (None, "torch.float32"):
        yield UserError(
            f"reduce_comm_dtype={config.reduce_comm_dtype!r} with model.dtype='torch.float32'",
            "'torch.float32' or None",
            "remove reduce_comm_dtype",
        )


def _data(config: Config) -> Problems:
    data, raw = config.data, config.data.raw
    if raw is not None:
        for key in ("train_folder", "tokenizer_path"):
            if getattr(data, key) is None:
                yield UserError(f"data.raw is given and data.{key} is not", "a path to write to", f"set data.{key}")
        if data.valid_folder is None and raw.valid_fraction > 0:
            yield UserError(
                f"data.raw.valid_fraction={raw.valid_fraction} and data.valid_folder is None",
                "a folder for the validation data",
                "set data.valid_folder, or data.raw.valid_fraction=0",
            )
        if raw.vocab_size > config.model.vocab_size:
            yield UserError(
                f"data.raw.vocab_size={raw.vocab_size} is more than model.vocab_size={config.model.vocab_size}",
                "token ids smaller than the vocabulary of the model",
                "raise model.vocab_size or lower data.raw.vocab_size",
            )
    yield from _ramp(config)
    yield from _skips(config)


def _ramp(config: Config) -> Problems:
    text, size = config.data.rampup_batch_size, config.data.batch_size
    if not text:
        return
    expected = (
        f'"start increment every_n_batches", three positive numbers, start at most {size} packs (data.micro_num)'
    )
    numbers = [int(word) for word in text.split() if word.isdigit()]
    fits = len(numbers) == len(text.split()) == 3 and min(numbers) > 0
    if not fits or numbers[0] > size:
        yield UserError(f"data.rampup_batch_size={text!r}", expected, "correct it, or remove it for a constant size")


def _skips(config: Config) -> Problems:
    text, last = config.data.skip_batches, -1
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        first, end = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not match or end < first or first <= last:
            yield UserError(
                f"data.skip_batches={text!r}: {part.strip()!r} does not fit",
                'ascending batches and inclusive ranges, e.g. "2-14,20"',
                "correct it",
            )
            return
        last = end


def _checkpoints(config: Config) -> Problems:
    ckpt = config.ckpt
    if ckpt.enable_save_ckpt and ckpt.checkpoint_every is None:
        yield UserError(
            "ckpt.checkpoint_every is missing while ckpt.enable_save_ckpt=True",
            "steps between checkpoints",
            "set ckpt.checkpoint_every, or ckpt.enable_save_ckpt=False",
        )
    places = {"ckpt.load_ckpt_info.path": ckpt.load_ckpt_info.path if ckpt.load_ckpt_info else None}
    if ckpt.enable_save_ckpt:
        places["ckpt.save_ckpt_folder"] = ckpt.save_ckpt_folder
    for key, place in places.items():
        if place is not None and REMOTE.match(place):
            yield UserError(
                f"{key}={place!r}: remote storage is not supported yet",
                "a path, plain or as 'local:...'",
                "change it",
            )
    info = ckpt.load_ckpt_info
    if info and info.content != ["model"] and info.ckpt_type != "evocore":
        yield UserError(
            f"ckpt.load_ckpt_info.content={info.content!r} from ckpt_type={info.ckpt_type!r}",
            "only ('model',): of other formats than evocore's, weights alone are read",
            "set ckpt.load_ckpt_info.content=('model',)",
        )


def _schedule(config: Config) -> Problems:
    schedule = config.lr_scheduler
    if schedule.init_steps >= schedule.total_steps:
        yield UserError(
            f"lr_scheduler.init_steps={schedule.init_steps} leaves nothing of "
            f"lr_scheduler.total_steps={schedule.total_steps}",
            "fewer steps without learning than steps",
            "lower lr_scheduler.init_steps",
        )


RUN_RULES: tuple[Callable[[Config], Problems], ...] = (_shapes, _memory, _data, _checkpoints, _schedule)
