"""What a dialect refuses to read or to write, and what no comparison in float32 shows."""

from __future__ import annotations

import pytest
import torch
from models_parity import model_block

from evocore.errors import UserError
from evocore.nn.binding import bind_kernels, model_requests
from evocore.nn.family import Numerics
from evocore.nn.initialise import initialise
from evocore.nn.tying import tie, tied_parameters
from evocore.ops.attention import CuSeqlens
from evocore.ops.resolution import resolve
from evocore.plugins.manager import load_plugins

SMALL = dict(vocab_size=64, hidden_size=48, num_layers=2, num_attention_heads=4, mlp_ratio=2, multiple_of=16)
LLAMA = dict(
    vocab_size=64, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64, hidden_act="silu",
)  # fmt: skip
YARN = dict(rope_type="yarn", rope_scaling_factor=2.0)
WINDOW = dict(use_sliding_window=True, sliding_window=4)


def family(name):
    return next(family for family in load_plugins().models() if family.name == name)


@pytest.mark.parametrize(
    ("model_type", "settings", "wrong"),
    [
        ("LLAMA2", dict(attn_logit_softcapping=5.0), "model.attn_logit_softcapping = 5.0: LlamaForCausalLM"),
        ("LLAMA3", WINDOW, "model.use_sliding_window = True: LlamaForCausalLM"),
        ("QWEN2", dict(use_swiglu=False), "model.use_swiglu = False: Qwen2ForCausalLM"),
        ("QWEN2", dict(o_bias=True), "model.o_bias = True: Qwen2ForCausalLM"),
        ("QWEN3", dict(qkv_bias=True), "model.o_bias = False: Qwen3ForCausalLM"),
        ("GEMMA", dict(add_unit_offset=False), "model.add_unit_offset = False: GemmaForCausalLM"),
        ("GEMMA2", dict(mlp_bias=True), "model.mlp_bias = True: Gemma2ForCausalLM"),
        ("INTERNLM", YARN, "model.rope_type = 'yarn': InternLMForCausalLM"),
        ("INTERNLM", dict(num_kv_attention_heads=2), "model.num_kv_attention_heads = 2: InternLMForCausalLM"),
        ("INTERNLM3", dict(o_bias=True), "model.o_bias = True: InternLM3ForCausalLM"),
        ("BAICHUAN2", dict(norm_head=False), "model.norm_head = False: BaichuanForCausalLM"),
        ("BAICHUAN2", YARN, "model.rope_type = 'yarn': BaichuanForCausalLM"),
    ],
)
def test_what_a_class_of_transformers_lacks_is_not_written(model_type, settings, wrong):
    with pytest.raises(UserError) as caught:
        family(model_type).to_hugging_face(model_block(model_type, SMALL | settings))

    assert caught.value.wrong.startswith(wrong) and caught.value.expected and caught.value.fix


@pytest.mark.parametrize(
    ("model_type", "config", "wrong"),
    [
        ("LLAMA2", dict(rope_scaling=dict(type="longrope", factor=2.0)), "rope_parameters.rope_type = 'longrope'"),
        ("LLAMA2", dict(partial_rotary_factor=0.5), "partial_rotary_factor = 0.5"),
        ("QWEN2", dict(hidden_act="gelu"), "hidden_act = 'gelu'"),
        ("GEMMA", dict(hidden_act="silu"), "hidden_act = 'silu'"),
        ("GEMMA2", dict(hidden_activation="silu"), "hidden_activation = 'silu'"),
        ("BAICHUAN2", dict(max_position_embeddings=None, model_max_length=4096), "model_max_length = 4096"),
    ],
)
def test_what_the_decoder_lacks_is_not_read(model_type, config, wrong):
    told = {key: value for key, value in (LLAMA | config).items() if value is not None}
    with pytest.raises(UserError) as caught:
        family(model_type).from_hugging_face(told)

    assert caught.value.wrong.startswith(f"config.json has {wrong}")


@pytest.mark.parametrize(
    ("old", "kind", "factor"),
    [
        (dict(rope_scaling=dict(type="linear", factor=4.0), rope_theta=5e5), "linear", 4.0),
        (dict(rope_scaling=dict(rope_type="yarn", original_max_position_embeddings=16), rope_theta=5e5), "yarn", 4.0),
    ],
)
def test_rotary_scaling_as_older_files_have_it(old, kind, factor):
    settings = family("LLAMA2").from_hugging_face(LLAMA | old)

    assert (settings["rope_base"], settings["rope_type"], settings["rope_scaling_factor"]) == (5e5, kind, factor)


def test_a_width_that_no_ratio_gives_exactly_is_read_exactly():
    for hidden, width in ((48, 97), (63, 101), (896, 4864), (3584, 18944), (49, 48 * 7 + 1)):
        config = LLAMA | dict(hidden_size=hidden, intermediate_size=width, head_dim=16)
        model = family("LLAMA2").build(model_block("LLAMA2", family("LLAMA2").from_hugging_face(config)), BF16)
        assert model.spec.feed_forward == width


BF16 = Numerics(torch.bfloat16, torch.bfloat16, torch.bfloat16)


def test_the_scale_of_gemmas_embedding_is_rounded_to_the_dtype_of_activations():
    registry = load_plugins()
    model = family("GEMMA").build(model_block("GEMMA", SMALL), BF16)
    tied = tied_parameters(model)
    model.to_empty(device="cpu")
    tie(model, tied)
    bind_kernels(model, resolve(model_requests(model), registry.kernels(), "cpu"))
    initialise(model, 1)
    with torch.no_grad():  # a block that adds nothing
        model.layers[0].attention.wo.weight.zero_()
        model.layers[0].feed_forward.w2.weight.zero_()
    tokens = torch.arange(6)

    (carried,) = model(tokens, tokens, CuSeqlens.of([0, 6]), layers=range(1))

    assert tied == {"output.weight": "tok_embeddings.weight"}
    assert torch.equal(carried, model.tok_embeddings.weight[:6] * torch.tensor(6.9375, dtype=torch.bfloat16))
    assert not torch.equal(carried, (model.tok_embeddings.weight[:6].float() * 48**0.5).bfloat16())
