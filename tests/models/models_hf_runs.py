"""Small runs of classes of ``transformers``: what is trained, and what a run tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

from evocore.config import load_values
from evocore.parallel.launch import LaunchEnvironment
from evocore.plugins.manager import PluginRegistry, load_plugins
from evocore.training.observer import Observer
from evocore.training.run import train

VOCAB, STEPS = 64, 4
SMALL: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, head_dim=8, initializer_range=0.1,
    pad_token_id=None, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
)  # fmt: skip
CLASSES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "gemma2": SMALL | dict(sliding_window=6, tie_word_embeddings=True),
    "gpt2": dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.1,
                 embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, bos_token_id=None, eos_token_id=None),
}  # fmt: skip


def write_model(folder: Path, model_type: str) -> Any:
    """A random model in a folder."""
    import torch

    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **CLASSES[model_type]))
    model.save_pretrained(folder)
    return model.eval()


def write_corpus(folder: Path) -> None:
    """Documents of many lengths that count upwards."""
    draw, rows, offset = np.random.default_rng(0), [], 0
    folder.mkdir(parents=True)
    with (folder / "part.bin").open("wb") as file:
        for _ in range(120):
            length, start = int(draw.integers(3, 25)), int(draw.integers(VOCAB))
            document = [(start + place) % (VOCAB - 1) + 1 for place in range(length)]
            rows.append((offset, length))
            offset += file.write(json.dumps({"tokens": document}).encode() + b"\n")
    with (folder / "part.bin.meta").open("wb") as file:
        np.save(file, np.array(rows))


def values(root: Path, ranks: int = 1, **blocks: Any) -> dict[str, Any]:
    """A config on the corpus; ``ranks`` share its micro-batches."""
    found: dict[str, Any] = dict(
        JOB_NAME="class",
        run_folder=str(root / "runs"),
        enable_tb=False,
        data=dict(seq_len=32, micro_bsz=2, micro_num=4 // ranks, total_steps=STEPS, train_folder=str(root / "train")),
        model=dict(dtype="torch.float32"),
        hf=dict(path=str(root / "model")),
        adam=dict(lr=1e-2),
        parallel=dict(zero1=dict(size=1)),
        hybrid_zero_optimizer=dict(clip_grad_norm=1.0),
        ckpt=dict(enable_save_ckpt=False, load_ckpt_info=dict(path=str(root / "model"), ckpt_type="hf")),
    )
    for name, block in blocks.items():
        found[name] = {**(found.get(name) or {}), **block} if isinstance(block, dict) else block
    return found


class _Told(Observer):
    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def on_step(self, metrics: dict[str, Any]) -> None:
        self.steps.append((metrics["loss"], metrics["grad_norm"]))


def figures(config: dict[str, Any]) -> tuple[list[tuple[float, float]], str]:
    """Loss and gradient norm of each step, and the run's folder; called on every rank, or alone."""
    return told_by(config, load_plugins())


def told_by(config: dict[str, Any], registry: PluginRegistry) -> tuple[list[tuple[float, float]], str]:
    """The same with some plug-ins."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    launch = LaunchEnvironment(rank=rank, local_rank=rank, world_size=world, local_world_size=world)
    told = _Told()
    _, folder = train(load_values(config), registry, launch, observers=[told])
    return told.steps, str(folder)
