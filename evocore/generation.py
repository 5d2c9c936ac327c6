"""Text from a trained model: prompts in, continuations out, each token computed once thanks to a key-value cache.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evocore.checkpoint.checkpointer import Checkpointer
from evocore.checkpoint.contents import read_contents
from evocore.checkpoint.hugging_face.folder import HuggingFaceFolder
from evocore.checkpoint.hugging_face.json_file import read_object
from evocore.checkpoint.hugging_face.load import load_hugging_face
from evocore.checkpoint.hugging_face.tokenizer_files import require_vocabulary
from evocore.config import Config
from evocore.config.resolved import config_from_values
from evocore.conversion.hugging_face import GENERATION, family_of
from evocore.conversion.model import config_of
from evocore.data.tokenizer import Tokenizer
from evocore.errors import UserError
from evocore.ops.attention import CuSeqlens
from evocore.plugins.manager import PluginRegistry
from evocore.training.assembly import make_plan


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        max_new_tokens: at most so many per prompt.
        temperature: divides the logits; 0 takes the most likely token (greedy).
        top_k: only among the k most likely; 0 for all.
        top_p: only among the most likely whose probabilities reach p together (Holtzman et al., 2020); 1 for all.
        seed: of the draws.

    Raises:
        UserError: if a number is out of its range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 for greedy, or a positive number"),
            ("top_k", self.top_k >= 0, "0 for no limit, or a positive number"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not good:
                value = getattr(self, name)
                raise UserError(f"{name} = {value}", expected, f"pass another --{name.replace('_', '-')}")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to generate, with its tokenizer and what it was trained with.

    Attributes:
        step: of training; 0 of a model from elsewhere.
        stop_ids: tokens that end a text.
    """

    model: nn.Module
    tokenizer: Tokenizer
    config: Config
    device: torch.device
    step: int
    stop_ids: frozenset[int]


def load_model(checkpoint: str | Path, registry: PluginRegistry, *, backend: str | None = None) -> LoadedModel:
    """Read a model from a checkpoint, a folder of checkpoints (the newest good one), a run's folder, or a folder of
    Hugging Face.

    Raises:
        UserError: if there is no usable checkpoint, or its tokenizer is gone.
    """
    if _is_hugging_face(Path(checkpoint)):
        return _load_hugging_face(Path(checkpoint), registry, backend)
    path = _find(Path(checkpoint))
    reader = Checkpointer(path.parent)
    values: Any = read_contents(path).config
    if not isinstance(values, dict):
        raise UserError(
            f"checkpoint {path} holds no config", "the config that it was trained with", "load one that `train` saved"
        )
    config = config_from_values(values, f"config.json in {path}")
    if config.data.tokenizer_path is None:
        raise UserError(
            f"checkpoint {path} was trained without data.tokenizer_path",
            "a tokenizer that turns text into the model's token ids",
            "set data.tokenizer_path in the training config",
        )
    tokenizer = Tokenizer.load(config.data.tokenizer_path)
    plan = make_plan(config, registry, backend=backend)
    device = plan.backend.device(0)
    model = plan.materialise(device, seed=None)
    tensors = {f"master.{name}": torch.empty_like(p, dtype=torch.float32) for name, p in model.named_parameters()}
    tensors |= {f"buffer.{name}": buffer for name, buffer in model.named_buffers()}
    state: Any = reader.load(path, tensors=tensors, skip=("exp_avg*",))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"master.{name}"])
    steps = int(state["progress"]["steps"]) if "progress" in state else 0
    return LoadedModel(model.eval(), tokenizer, config, device, steps, _stop_ids(path, tokenizer))


def _is_hugging_face(path: Path) -> bool:
    """A run has a config.json as well, and so has a checkpoint of ours, beside its manifest."""
    config = path / "config.json"
    return config.is_file() and not (path / "manifest.json").is_file() and "model_type" in read_object(config)


def _load_hugging_face(path: Path, registry: PluginRegistry, backend: str | None) -> LoadedModel:
    folder = HuggingFaceFolder(path)
    family = family_of(folder, registry)
    tokenizer = Tokenizer.load(path)
    settings = dict(family.from_hugging_face(folder.config), dtype="auto")
    config = config_of(family, settings, str(tokenizer.files[0]), str(path))
    require_vocabulary(path, config.model.vocab_size)
    plan = make_plan(config, registry, backend=backend)
    device = plan.backend.device(0)
    model = plan.materialise(device, seed=None)
    load_hugging_face(path, family, model)
    return LoadedModel(model.eval(), tokenizer, config, device, 0, _stop_ids(path, tokenizer))


def _stop_ids(path: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokenizer's end of a document, and what ``generation_config.json`` names beside the weights."""
    file = path / GENERATION
    more = read_object(file).get("eos_token_id") if file.is_file() else None
    ids = [tokenizer.eos_id, *(more if isinstance(more, list) else [more])]
    return frozenset(number for number in ids if isinstance(number, int) and number >= 0)


def _find(path: Path) -> Path:
    if (path / "manifest.json").is_file():
        return path
    for folder in (path / "checkpoints", path):
        if folder.is_dir():
            newest, _ = Checkpointer(folder).latest()
            if newest is not None:
                return newest.path
    raise UserError(
        f"--checkpoint {path}: no complete checkpoint there",
        "the folder of a checkpoint (it holds manifest.json), of checkpoints, of a run, or of Hugging Face",
        "look with `evocore checkpoint ls FOLDER`; a run saves every ckpt.checkpoint_every steps and at its end",
    )


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    device: torch.device,
    *,
    stop_ids: Collection[int] = (),
) -> list[list[int]]:
    """Continue each prompt.

    Args:
        model: a ``LanguageModel`` in evaluation mode.
        prompts: token ids.
        stop_ids: each ends a continuation; it is not part of the result.

    Returns:
        The new tokens of each prompt. Greedy continuations do not depend on the other prompts of the batch.

    Raises:
        UserError: a prompt is empty.
    """
    if not prompts or not all(prompts):
        raise UserError(
            "a prompt has no token to begin with",
            "text, or a tokenizer that has a begin of document",
            "give a prompt",
        )
    capacity = max(map(len, prompts)) + sampling.max_new_tokens
    cache = model.make_cache(len(prompts), capacity, device)
    generator = torch.Generator().manual_seed(sampling.seed)
    new: list[list[int]] = [[] for _ in prompts]
    active = [True] * len(prompts)
    inputs = [list(prompt) for prompt in prompts]
    for _ in range(sampling.max_new_tokens):
        starts = list(cache.lengths)
        tokens = torch.tensor([token for row in inputs for token in row], device=device)
        positions = torch.tensor(
            [start + offset for start, row in zip(starts, inputs, strict=True) for offset in range(len(row))],
            device=device,
        )
        ends = [0]
        for row in inputs:
            ends.append(ends[-1] + len(row))
        hidden_TD = model(tokens, positions, CuSeqlens.of(ends, device), cache)
        last = torch.tensor(ends[1:], device=device) - 1
        chosen = choose(model.logits(hidden_TD[last]).float().cpu(), sampling, generator).tolist()
        for index, token in enumerate(chosen):
            active[index] = active[index] and token not in stop_ids
            if active[index]:
                new[index].append(token)
        if not any(active):
            break
        inputs = [[token] for token in chosen]
    return new


def choose(logits_BV: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """The next token of each row, int64 ``[B]``."""
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    scaled_BV = logits_BV / sampling.temperature
    if sampling.top_k:
        kth = scaled_BV.topk(min(sampling.top_k, scaled_BV.shape[-1])).values[:, -1:]
        scaled_BV = scaled_BV.masked_fill(scaled_BV < kth, float("-inf"))
    if sampling.top_p < 1:
        ordered, order = scaled_BV.softmax(-1).sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # a token is kept if those before it do not reach p yet
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        scaled_BV = scaled_BV.masked_fill(drop, float("-inf"))
    return torch.multinomial(scaled_BV.softmax(-1), 1, generator=generator).squeeze(-1)
