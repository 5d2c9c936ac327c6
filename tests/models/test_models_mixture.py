"""Mixtures of experts against loops over experts written out, and against Hugging Face's Mixtral and DeepSeek-V3."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from evocore.config.schema_model import MoELayerKwargs
from evocore.nn.binding import bind_kernels, model_requests
from evocore.nn.family import Numerics
from evocore.nn.initialise import initialise
from evocore.nn.router import LossWeights, Router
from evocore.nn.routing import loads
from evocore.ops.attention import CuSeqlens
from evocore.ops.resolution import resolve
from evocore.plugins.manager import load_plugins
from evocore.training.flops import FlopsCounter

FP32 = Numerics(torch.float32, torch.float32, torch.float32)
SMALL = dict(
    vocab_size=64, hidden_size=16, num_layers=2, num_attention_heads=4, num_kv_attention_heads=2, mlp_ratio=1.5,
    multiple_of=8, num_experts=4, top_k=2, num_shared_experts=0, moe_type="Dropless",
)  # fmt: skip


def build(model_type="LLAMA2", *, forced=None, options=(), std=0.3, **settings):
    registry = load_plugins()
    family = next(family for family in registry.models() if family.name == model_type)
    stds = dict.fromkeys(
        [f"{of}_init_std" for of in ("embedding", "attn_wqkv", "attn_other", "ffn_uplayer", "ffn_other", "out_head")],
        std,
    )
    kwargs = MoELayerKwargs(**dict(options)).model_dump()
    model = family.build(SMALL | stds | dict(moe_layer_kwargs=kwargs) | settings, FP32)
    bind_kernels(model.to_empty(device="cpu"), resolve(model_requests(model), registry.kernels(), "cpu", forced))
    initialise(model, 1)
    return model


def tokens_of(count, seed=0):
    return torch.randint(64, (count,), generator=torch.Generator().manual_seed(seed))


def hidden(model, tokens):
    return model(tokens, torch.arange(len(tokens)), CuSeqlens.of([0, len(tokens)]))


def close(actual, expected, tolerance=1e-5):
    assert (actual - expected).norm() <= tolerance * expected.norm() + 1e-9


def mixtures(model):
    return [block.feed_forward for block in model.layers.children() if hasattr(block.feed_forward, "experts")]


def written_out(mixture, x_TD, capacity=None):
    """One token and one expert at a time; choices beyond the capacity are dropped, the last tokens' first."""
    probabilities_TE = (x_TD @ mixture.gate.weight.T).softmax(1)
    best_TK = probabilities_TE.argsort(descending=True)[:, :2].tolist()
    results, room, dropped = [], [0] * 4, 0
    for x_D, row_E, chosen in zip(x_TD, probabilities_TE, best_TK, strict=True):
        total = sum(row_E[expert] for expert in chosen)
        result = 0 * x_D
        for expert in chosen:
            if capacity is not None and room[expert] == capacity:
                dropped += 1
                continue
            room[expert] += 1
            gate_FD, up_FD = mixture.experts.w13.weight[expert]
            down_DF = mixture.experts.w2.weight[expert]
            result = result + row_E[expert] / total * (down_DF @ (F.silu(gate_FD @ x_D) * (up_FD @ x_D)))
        if mixture.shared is not None:
            shared = mixture.shared.w2.weight @ (
                F.silu(mixture.shared.w1.weight @ x_D) * (mixture.shared.w3.weight @ x_D)
            )
            scale = 1 if mixture.shared_gate is None else (mixture.shared_gate.weight @ x_D).sigmoid()
            result = result + scale * shared
        results.append(result)
    return torch.stack(results), dropped


@pytest.mark.parametrize("provider", ["native", "reference"])
@pytest.mark.parametrize(
    ("capacity", "shared", "gate"), [(None, 0, False), (5, 0, False), (None, 1, False), (5, 2, True)]
)
def test_a_layer_equals_a_loop_over_its_tokens_and_experts(provider, capacity, shared, gate):
    options = dict(shared_expert_gate=gate, min_capacity=1, drop_policy="position")
    if capacity is not None:
        options["capacity_factor"] = capacity * 4 / (12 * 2)
    forced = dict.fromkeys(["moe_permute", "moe_unpermute", "grouped_linear"], provider)
    (layer, *_) = mixtures(build(forced=forced, options=options, num_shared_experts=shared))
    x_TD = torch.randn(12, 16, generator=torch.Generator().manual_seed(2), requires_grad=True)
    into_TD = torch.randn(12, 16, generator=torch.Generator().manual_seed(3))

    (layer(x_TD) * into_TD).sum().backward()
    found = {name: parameter.grad for name, parameter in layer.named_parameters()} | {"x": x_TD.grad}
    record = layer.gate.record.take()
    layer.zero_grad()
    x_TD.grad = None
    expected_TD, dropped = written_out(layer, x_TD, capacity)
    (expected_TD * into_TD).sum().backward()

    close(layer(x_TD).detach(), expected_TD.detach())
    for name, parameter in [*layer.named_parameters(), ("x", x_TD)]:
        close(found[name], parameter.grad)
    assert int(record[:4].sum() - record[4:8].sum()) == dropped and (dropped > 0) == (capacity is not None)


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


NAMES = {
    "tok_embeddings": "model.embed_tokens", "layers": "model.layers", "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attention": "self_attn", "feed_forward": "mlp", "wq": "q_proj",
    "wk": "k_proj", "wv": "v_proj", "wo": "o_proj", "norm": "model.norm", "output": "lm_head",
    "w13.weight": "gate_up_proj", "w2.weight": "down_proj",
}  # fmt: skip


def in_mixtral(name):
    path = name.replace("w13.weight", "gate_up_proj").replace("w2.weight", "down_proj")
    return ".".join(NAMES.get(word, word) for word in path.split("."))


@pytest.mark.parametrize("layers", [1, 2])
def test_it_equals_mixtral_of_transformers_in_logits_gradients_and_balance(transformers, layers):
    ours = build(num_layers=layers)
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.05,
        rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 1e4}, attn_implementation="eager",
        sliding_window=None, tie_word_embeddings=False, output_router_logits=layers == 1,
    )  # fmt: skip
    theirs = transformers.MixtralForCausalLM(config)
    state = theirs.state_dict()
    for name, parameter in ours.named_parameters():
        state[in_mixtral(name)].copy_(parameter.detach().reshape(state[in_mixtral(name)].shape))
    tokens = tokens_of(24)
    if layers == 1:  # where theirs, over all layers at once and all choices, is K times ours
        mixtures(ours)[0].gate.loss_weights = LossWeights(balance=0.05 * 2)

    output = theirs(tokens[None], labels=tokens[None])
    output.loss.backward()
    hidden_TD = hidden(ours, tokens)
    close(ours.logits(hidden_TD).detach(), output.logits[0].detach())
    loss = ours.loss(hidden_TD[:-1], tokens[1:], torch.full((23,), 1 / 23)).total
    loss.backward()

    if layers == 1:
        balance = mixtures(ours)[0].gate.record.take()[-2]
        close(2 * balance, output.aux_loss.detach())
        close(loss.detach() + 0.05 * 2 * balance, output.loss.detach())
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        close(parameter.grad.flatten(), gradients[in_mixtral(name)].flatten())


def test_its_routing_equals_deepseek_v3_of_transformers(transformers):
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    config = transformers.DeepseekV3Config(
        hidden_size=16, moe_intermediate_size=8, n_routed_experts=16, num_experts_per_tok=4, n_group=4, topk_group=2,
        n_shared_experts=1, routed_scaling_factor=2.5, norm_topk_prob=True,
    )  # fmt: skip
    theirs = DeepseekV3MoE(config)
    options = dict(
        scoring_func="sigmoid", routed_scaling_factor=2.5, num_expert_groups=4, top_k_groups=2, bias_update_rate=1.0
    )
    ours = mixtures(
        build(options=options, num_experts=16, top_k=4, num_shared_experts=1, mlp_ratio=0.5, multiple_of=8)
    )[0]
    with torch.no_grad():
        ours.gate.bias.normal_(std=0.3, generator=torch.Generator().manual_seed(4))
        theirs.gate.weight.copy_(ours.gate.weight)
        theirs.gate.e_score_correction_bias.copy_(ours.gate.bias)
        theirs.experts.gate_up_proj.copy_(ours.experts.w13.weight.flatten(1, 2))
        theirs.experts.down_proj.copy_(ours.experts.w2.weight)
        for mine, its in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
            getattr(theirs.shared_experts, its).weight.copy_(getattr(ours.shared, mine).weight)
        x_TD = torch.randn(20, 16, generator=torch.Generator().manual_seed(5))

        close(ours(x_TD), theirs(x_TD[None])[0])


@pytest.mark.parametrize("shared", [dict(), dict(num_shared_experts=1)])
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("recompute", [0.0, 1.0])
def test_operations_are_those_of_the_experts_that_a_token_visits(recompute, shared, gate):
    model = build(
        options=dict(shared_expert_gate=gate),
        forced={"linear_cross_entropy": "reference", "attention": "reference"},
        checkpoint=recompute,
        **shared,
    )
    tokens = tokens_of(24)
    with FlopCounterMode(display=False) as counted:
        model.loss(hidden(model, tokens), tokens, None).total.backward()

    ours = FlopsCounter(model).training([24])

    masked = 2 * 4 * 4 * 4 * (24 * 24 - 24 * 25 // 2)  # the reference attention computes what the mask hides
    repeats = 4 if recompute else 3
    assert ours.hardware + masked * repeats == sum(counted.get_flop_counts()["Global"].values())


def test_recomputation_changes_neither_gradients_nor_records():
    def train(recompute):
        model = build(checkpoint=recompute, options=dict(capacity_factor=0.75, min_capacity=1))
        for module in model.modules():
            if isinstance(module, Router):
                module.loss_weights = LossWeights(balance=0.1, z=0.01)
        tokens = tokens_of(24)
        model.loss(hidden(model, tokens), tokens, None).total.backward()
        return (
            [parameter.grad for parameter in model.parameters()],
            [layer.gate.record.take() for layer in mixtures(model)],
        )

    torch.testing.assert_close(train(1.0), train(0.0))


def test_the_first_layers_can_stay_dense():
    model = build(num_layers=3, first_k_dense_replace=2)

    assert [hasattr(block.feed_forward, "experts") for block in model.layers.children()] == [False, False, True]
    assert mixtures(model)[0].gate.layer == 2


@pytest.mark.parametrize(
    ("kind", "options", "limit"),
    [
        ("GShard", {}, 12),  # an even share
        ("GShard", dict(capacity_factor=0.5, min_capacity=8), 8),
        ("GShard", dict(drop_tokens=False), None),
        ("MegaBlock", dict(capacity_factor=0.5), 6),
        ("MegaBlock-Dropless", dict(capacity_factor=0.5), None),
        ("Dropless", {}, None),
        ("Dropless", dict(capacity_factor=0.5), 6),
    ],
)
def test_each_type_of_internevo_limits_its_experts(kind, options, limit):
    layer = mixtures(build(moe_type=kind, options=options))[0]
    x_TD = torch.randn(24, 16, generator=torch.Generator().manual_seed(2)) + 1

    kept = loads(layer.gate(x_TD).experts_TK, 4).tolist()

    assert sum(kept) == 48 if limit is None else max(kept) == limit


def test_internlm_moe_has_biases_in_attention_unless_told_otherwise():
    with_biases = {name for name, _ in build("INTERNLM_MoE").named_parameters() if name.endswith("bias")}
    without = {name for name, _ in build("INTERNLM_MoE", no_bias=True).named_parameters() if name.endswith("bias")}

    assert with_biases == {f"layers.{n}.attention.w{of}.bias" for n in (0, 1) for of in "qkvo"} and not without
