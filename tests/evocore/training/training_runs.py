"""Small runs for the tests of the trainer: a learnable corpus, a config, and what a run leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from evocore.config import load_values
from evocore.parallel.launch import LaunchEnvironment
from evocore.plugins.manager import load_plugins
from evocore.training.observer import Observer
from evocore.training.run import train

VOCAB = 64


def write_corpus(folder: Path, documents: int = 120, seed: int = 0) -> None:
    """Documents that count upwards by a step of their own, modulo the vocabulary."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    offset, meta = 0, []
    with (folder / "part.bin").open("wb") as file:
        for _ in range(documents):
            length, start, step = int(draw.integers(5, 60)), int(draw.integers(VOCAB)), int(draw.integers(1, 4))
            line = (
                json.dumps({"tokens": [(start + step * i) % (VOCAB - 1) + 1 for i in range(length)]}).encode() + b"\n"
            )
            meta.append((offset, length))
            offset += len(line)
            file.write(line)
    with (folder / "part.bin.meta").open("wb") as file:
        np.save(file, np.array(meta, dtype=np.int64))


def values(tmp: Path, **blocks: dict[str, Any]) -> dict[str, Any]:
    """A config of two tiny layers on the corpus below ``tmp``; ``blocks`` override key by key."""
    config: dict[str, Any] = dict(
        JOB_NAME="test",
        model_type="INTERNLM2",
        run_folder=str(tmp / "runs"),
        enable_tb=False,
        data=dict(seq_len=32, micro_bsz=2, micro_num=2, total_steps=8, train_folder=str(tmp / "train")),
        model=dict(
            vocab_size=VOCAB, hidden_size=32, num_layers=2, num_attention_heads=4, num_kv_attention_heads=2,
            mlp_ratio=2, multiple_of=16, dtype="torch.float32",
        ),
        parallel=dict(zero1=dict(size=1)),
        adam=dict(lr=3e-3),
        lr_scheduler=dict(eta_min=1e-4, warmup_ratio=0.1),
        hybrid_zero_optimizer=dict(clip_grad_norm=1.0),
        ckpt=dict(checkpoint_every=3),
    )  # fmt: skip
    for name, block in blocks.items():
        config[name] = {**config.get(name, {}), **block} if isinstance(block, dict) else block
    return config


class Recorder(Observer):
    """Keeps everything that a run tells."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.validations: list[tuple[int, dict[str, float]]] = []
        self.messages: list[str] = []
        self.report: list[str] = []

    def on_start(self, start):
        self.report = start.report

    def on_step(self, metrics):
        self.steps.append(dict(metrics))

    def on_validation(self, step, losses):
        self.validations.append((step, dict(losses)))

    def on_message(self, text):
        self.messages.append(text)


def run(config: dict[str, Any], launch: LaunchEnvironment | None = None, **options: Any):
    """Train and return ``(ending, folder, recorder)``."""
    recorder = Recorder()
    ending, folder = train(
        load_values(config), load_plugins(), launch or LaunchEnvironment(), observers=[recorder], **options
    )
    return ending, folder, recorder


def figures(recorder: Recorder, *names: str) -> list[tuple[Any, ...]]:
    """The named figures of each step, exactly."""
    return [tuple(step[name] for name in names) for step in recorder.steps]


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """The same config as a file, for runs that are processes of their own."""
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in config.items()))
    return path


def logged(folder: Path) -> list[dict[str, Any]]:
    """The steps in a run's ``metrics.jsonl``."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if "loss" in record]
