"""Tiny models in the formats of other houses, and what it takes to load them."""

import json
from collections.abc import Callable

import pytest
import torch

from evocore.checkpoint.hugging_face.load import model_shapes
from evocore.config import load_values
from evocore.errors import UserError
from evocore.nn.family import Numerics
from evocore.plugins.manager import load_plugins
from evocore.training.assembly import find_family

FP32 = Numerics(torch.float32, torch.float32, torch.float32)
LLAMA = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)
"""Of a ``config.json`` of Llama, divisible by four everywhere."""
MODEL = dict(
    vocab_size=64,
    hidden_size=32,
    num_layers=4,
    num_attention_heads=8,
    num_kv_attention_heads=4,
    mlp_ratio=3,
    multiple_of=32,
    qk_interleaved=False,
    dtype="torch.float32",
)
"""The same as a ``model`` block."""


def save_llama(folder, *, shard="5GB", dtype=torch.float32, **more):
    """Random weights as ``transformers`` writes them; returns its state dict."""
    from transformers import AutoModelForCausalLM, LlamaConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(**(LLAMA | more), attn_implementation="eager", pad_token_id=None)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    return model.state_dict()


def config_of(model_type="LLAMA2", path=None, ckpt_type="hf", content=("model",), **more):
    """A config that trains a step on random data, from the checkpoint at ``path``."""
    model = MODEL | more.pop("model", {})
    values = dict(
        model_type=model_type,
        model=model,
        data=dict(type="random", seq_len=16, micro_bsz=1, micro_num=2, total_steps=1),
        ckpt=dict(enable_save_ckpt=False),
        enable_tb=False,
    )
    if path is not None:
        values["ckpt"]["load_ckpt_info"] = dict(path=str(path), content=content, ckpt_type=ckpt_type)
    return load_values(values | more).config


def family_and_model(model_type="LLAMA2", **model):
    """The family, and the whole model on the meta device with its shapes."""
    family = find_family(model_type, load_plugins())
    config = config_of(model_type, model=model)
    whole = family.build(config.model.model_dump(), FP32)
    return family, whole, model_shapes(whole), config


def values_of(shapes, start=0):
    """A tensor for each parameter, no two elements alike, all small integers that float32 and bfloat16 can tell."""
    found = {}
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        found[name] = torch.arange(start, start + count, dtype=torch.float32).view(shape)
        start += count
    return found


class InMemory:
    """A ``Source`` of tensors in memory that counts what is read."""

    def __init__(self, tensors):
        from evocore.checkpoint.foreign.torch_file import facts_of

        self.name, self.values, self.bytes_read = "what is in memory", tensors, 0
        self.tensors = {name: facts_of(tensor) for name, tensor in tensors.items()}

    def read(self, name, rows, columns):
        from evocore.checkpoint.foreign.torch_file import rectangle

        found = rectangle(self.values[name], rows, columns)
        self.bytes_read += found.numel() * found.element_size()
        return found


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def refused(call: Callable[[], object], *told: str) -> UserError:
    """A call is refused, with an error in which all of this stands."""
    with pytest.raises(UserError) as caught:
        call()
    for text in told:
        assert text in str(caught.value), str(caught.value)
    return caught.value
