"""InternLM 1, 2 and 3 and Baichuan2 against implementations written out, by way of their Hugging Face names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models_parity import model_block
from models_plain import BAICHUAN2, INTERNLM2, LLAMA_LIKE, Plain, dynamic_frequencies, frequencies

from evocore.checkpoint.hugging_face.load import model_shapes
from evocore.generation import Sampling, generate
from evocore.nn.binding import bind_kernels, model_requests
from evocore.nn.family import Numerics
from evocore.nn.initialise import initialise
from evocore.nn.weight_map import to_ours, to_theirs
from evocore.ops.attention import CuSeqlens
from evocore.ops.resolution import resolve
from evocore.plugins.manager import load_plugins

VOCAB, LAYERS, HEADS, LENGTHS = 96, 2, 4, [5, 19, 1, 12]
STD = {f"{kind}_init_std": 0.15 for kind in ("embedding", "attn_wqkv", "attn_other", "ffn_uplayer", "ffn_other")}
SMALL: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=64, num_layers=LAYERS, num_attention_heads=HEADS, mlp_ratio=1.75, multiple_of=16,
    layer_norm_epsilon=1e-6, rope_base=1000.0, **STD, out_head_init_std=0.15,
)  # fmt: skip
STRETCHED = dict(rope_type="dynamic", rope_scaling_factor=2.0, max_position_embeddings=8)


@dataclass(frozen=True)
class Case:
    """``biases`` are projections that must have one in the Hugging Face file; ``dynamic``: the rotary scaling is."""

    name: str
    family: str
    plain: Plain
    settings: dict[str, Any]
    kv_heads: int = HEADS
    head_dim: int = 16
    biases: tuple[str, ...] = ()
    dynamic: bool = False


QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
GROUPED = dict(num_kv_attention_heads=2)
SEPARATE = GROUPED | dict(enable_qkv_fusion=False)
SECOND = GROUPED | dict(qk_interleaved=False)
THIRD = GROUPED | STRETCHED | dict(head_dim=32, qkv_bias=True)
REST = dict(o_bias=True, mlp_bias=True)

CASES = [
    Case("internlm", "INTERNLM", LLAMA_LIKE, {}, biases=QKVO),
    Case("internlm-no-bias-dynamic", "INTERNLM", LLAMA_LIKE, STRETCHED | dict(no_bias=True), dynamic=True),
    Case("internlm2", "INTERNLM2", INTERNLM2, SECOND, kv_heads=2),
    Case("internlm2-separate", "INTERNLM2", INTERNLM2, SEPARATE, kv_heads=2),
    Case("internlm3", "INTERNLM3", LLAMA_LIKE, THIRD, kv_heads=2, head_dim=32, biases=QKVO[:3], dynamic=True),
    Case("internlm3-biased", "INTERNLM3", LLAMA_LIKE, REST, biases=("o_proj", "gate_proj", "up_proj", "down_proj")),
    Case("baichuan2", "BAICHUAN2", BAICHUAN2, dict(qk_interleaved=False)),
    Case("baichuan2-fused", "BAICHUAN2", BAICHUAN2, dict(mlp_layer_fusion=True)),
]


def build(case):
    """Our model with random weights, norms and biases too, its family, its ``model`` block and its map."""
    registry = load_plugins()
    family = next(family for family in registry.models() if family.name == case.family)
    config = model_block(case.family, SMALL | case.settings)
    model = family.build(config, Numerics(torch.float32, torch.float32, torch.float32))
    bind_kernels(model.to_empty(device="cpu"), resolve(model_requests(model), registry.kernels(), "cpu"))
    initialise(model, 7)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval(), family, config, family.weights(model).match(model_shapes(model))


def close(actual, expected, name=""):
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max(), name


def expected_logits(case, weights, tokens, lengths):
    size, base = case.head_dim, SMALL["rope_base"]
    plain = frequencies(size, base)
    if case.dynamic and max(lengths) > 8:
        plain = dynamic_frequencies(size, base, 2.0, 8, max(lengths))
    return case.plain.logits(
        weights, tokens, lengths, layers=LAYERS, heads=HEADS, kv_heads=case.kv_heads, head_dim=size, eps=1e-6,
        frequencies_P=plain,
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_family_equals_its_implementation_written_out(case):
    model, family, config, match = build(case)
    theirs = to_theirs(match, {name: p.detach() for name, p in model.named_parameters()})
    tokens = torch.randint(VOCAB, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    documents = CuSeqlens.of([sum(LENGTHS[:row]) for row in range(len(LENGTHS) + 1)])
    labels = tokens.roll(-1)

    biases = {name.split(".")[-2] for name in theirs if name.endswith(".bias")}
    assert biases == set(case.biases)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in theirs.items()}
    logits = expected_logits(case, leaves, tokens, LENGTHS)
    expected = F.cross_entropy(logits, labels)
    expected.backward()
    hidden = model(tokens, positions, documents)
    loss = model.loss(hidden, labels, torch.full(tokens.shape, 1 / len(tokens))).total
    loss.backward()

    close(model.logits(hidden).detach(), logits.detach())
    close(loss.detach(), expected.detach())
    gradients = to_theirs(match, {name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients.items():
        close(gradient, leaves[name].grad, name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_names_and_config_go_to_hugging_face_and_back(case):
    model, family, config, match = build(case)
    ours = {name: p.detach() for name, p in model.named_parameters()}

    back = to_ours(match, to_theirs(match, ours))
    again = family.build(family.from_hugging_face(family.to_hugging_face(config)) | STD, model.spec.numerics)

    assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())
    theirs = family.weights(again).match(model_shapes(again)).theirs
    assert theirs == match.theirs
    for key in ("rope", "rope_base", "norm_eps", "feed_forward", "qkv_bias", "out_bias", "mlp_bias", "norm_head"):
        assert getattr(again.spec, key) == getattr(model.spec, key), key


@pytest.mark.parametrize("case", [case for case in CASES if not case.dynamic], ids=lambda case: case.name)
def test_greedy_generation_with_the_cache_is_that_of_whole_passes(case):
    model, _, _, match = build(case)
    theirs = to_theirs(match, {name: p.detach() for name, p in model.named_parameters()})
    prompts = [[3, 14, 15, 92], [6, 5]]
    expected = []
    for prompt in prompts:
        row = list(prompt)
        for _ in range(8):
            row.append(int(expected_logits(case, theirs, torch.tensor(row), [len(row)])[-1].argmax()))
        expected.append(row[len(prompt) :])

    assert generate(model, prompts, Sampling(max_new_tokens=8), torch.device("cpu")) == expected
