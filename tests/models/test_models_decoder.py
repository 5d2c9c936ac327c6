"""The decoder against independent implementations: Hugging Face's Llama, and InternLM2 written out by its layout."""

import pytest
import torch
import torch.nn.functional as F

from evocore.nn.binding import bind_kernels, model_requests
from evocore.nn.family import Numerics
from evocore.nn.initialise import initialise
from evocore.ops.attention import CuSeqlens
from evocore.ops.resolution import resolve
from evocore.plugins.manager import load_plugins

FP32 = Numerics(torch.float32, torch.float32, torch.float32)
SMALL = dict(
    vocab_size=97, hidden_size=48, num_layers=3, num_attention_heads=6, num_kv_attention_heads=2, mlp_ratio=8 / 3,
    multiple_of=32,
)  # fmt: skip


def build(model_type, *, numerics=FP32, seed=1, forced=None, **settings):
    registry = load_plugins()
    family = next(family for family in registry.models() if family.name == model_type)
    model = family.build(SMALL | settings, numerics)
    assert all(parameter.is_meta for parameter in model.parameters())
    bind_kernels(model.to_empty(device="cpu"), resolve(model_requests(model), registry.kernels(), "cpu", forced))
    initialise(model, seed)
    return model


def packed(lengths, vocab=97, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    tokens = torch.randint(vocab, (ends[-1],), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return tokens, positions, CuSeqlens.of(ends)


def loss_and_gradients(model, tokens, positions, documents):
    model.zero_grad()
    labels = tokens.roll(-1)
    weights = torch.full(tokens.shape, 1 / len(tokens))
    total = model.loss(model(tokens, positions, documents), labels, weights).total
    total.backward()
    return total.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_close(actual, expected, tolerance=1e-5):
    assert (actual - expected).norm() <= tolerance * expected.norm() + 1e-9


def test_llama_equals_transformers_in_logits_and_gradients():
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = build("LLAMA2", rope_base=5000)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        attn_implementation="eager",
        tie_word_embeddings=False,
    )
    theirs = LlamaForCausalLM(config)
    names = {
        "tok_embeddings": "model.embed_tokens", "layers": "model.layers", "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm", "attention": "self_attn", "feed_forward": "mlp", "wq": "q_proj",
        "wk": "k_proj", "wv": "v_proj", "wo": "o_proj", "w1": "gate_proj", "w3": "up_proj", "w2": "down_proj",
        "norm": "model.norm", "output": "lm_head",
    }  # fmt: skip
    mapped = {
        name: ".".join(names.get(word, word) for word in name.split(".")) for name, _ in ours.named_parameters()
    }
    theirs.load_state_dict({mapped[name]: p.detach() for name, p in ours.named_parameters()}, strict=True)
    tokens, positions, documents = packed([17, 17, 17])

    logits = ours.logits(ours(tokens, positions, documents))
    expected = theirs(tokens.view(3, 17)).logits.flatten(0, 1)
    assert_close(logits, expected)

    loss, gradients = loss_and_gradients(ours, tokens, positions, documents)
    their_loss = F.cross_entropy(expected, tokens.roll(-1))
    their_loss.backward()
    assert_close(loss, their_loss.detach())
    their_gradients = dict(theirs.named_parameters())
    for name, gradient in gradients.items():
        assert_close(gradient, their_gradients[mapped[name]].grad)


def plain_internlm2(
    weights, tokens, positions, lengths, *, heads=6, kv_heads=2, layers=3, norm_head=False, interleaved=False
):
    """InternLM2 written out: wqkv rows are (kv_heads, heads / kv_heads + 2, head_dim); dense masks; no kernels."""
    head_dim = 48 // heads

    def norm(x, w):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * w

    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    turn = torch.polar(torch.ones(len(tokens), head_dim // 2), positions[:, None].float() * frequencies)

    def rotate(x):
        if interleaved:
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
            return torch.view_as_real(pairs * turn[:, None]).flatten(-2)
        pairs = torch.complex(*x.chunk(2, -1)) * turn[:, None]
        return torch.cat([pairs.real, pairs.imag], -1)

    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    order = torch.arange(len(tokens))
    visible = (document[:, None] == document[None]) & (order[:, None] >= order[None])
    x = weights["tok_embeddings.weight"][tokens]
    for layer in range(layers):
        w = {name.split(".", 2)[2]: value for name, value in weights.items() if name.startswith(f"layers.{layer}.")}
        y = norm(x, w["attention_norm.weight"])
        rows = w["attention.wqkv.weight"].view(kv_heads, heads // kv_heads + 2, head_dim, 48)
        q = rotate(torch.einsum("td,kghd->tkgh", y, rows[:, :-2]).flatten(1, 2))
        k = rotate(torch.einsum("td,khd->tkh", y, rows[:, -2])).repeat_interleave(heads // kv_heads, 1)
        v = torch.einsum("td,khd->tkh", y, rows[:, -1]).repeat_interleave(heads // kv_heads, 1)
        scores = torch.einsum("tnh,snh->nts", q, k) / head_dim**0.5
        mixed = torch.einsum("nts,snh->tnh", scores.masked_fill(~visible, float("-inf")).softmax(-1), v)
        x = x + mixed.flatten(1) @ w["attention.wo.weight"].T
        y = norm(x, w["ffn_norm.weight"])
        gate, up = y @ w["feed_forward.w1.weight"].T, y @ w["feed_forward.w3.weight"].T
        x = x + (F.silu(gate) * up) @ w["feed_forward.w2.weight"].T
    head = weights["output.weight"]
    if norm_head:
        head = head / head.norm(dim=1, keepdim=True)
    return norm(x, weights["norm.weight"]) @ head.T


@pytest.mark.parametrize("options", [{}, {"norm_head": True}, {"qk_interleaved": True}], ids=str)
def test_internlm2_equals_its_layout_written_out(options):
    model = build("INTERNLM2", **options)
    lengths = [5, 23, 1, 12]
    tokens, positions, documents = packed(lengths)

    loss, gradients = loss_and_gradients(model, tokens, positions, documents)

    weights = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    logits = plain_internlm2(
        weights,
        tokens,
        positions,
        lengths,
        norm_head=options.get("norm_head", False),
        interleaved=options.get("qk_interleaved", False),
    )
    expected = F.cross_entropy(logits, tokens.roll(-1))
    expected.backward()
    assert_close(loss, expected.detach())
    assert_close(model.logits(model(tokens, positions, documents)), logits)
    for name, gradient in gradients.items():
        assert_close(gradient, weights[name].grad)


def test_fused_projections_are_the_separate_ones_stacked():
    fused, separate = build("INTERNLM2", mlp_layer_fusion=True), build("INTERNLM2", enable_qkv_fusion=False)
    weights = {}
    for name, value in fused.state_dict().items():
        if name.endswith("wqkv.weight"):
            rows = value.view(2, 5, 8, 48)
            weights[name.replace("wqkv", "wq")] = rows[:, :3].flatten(0, 2)
            weights[name.replace("wqkv", "wk")] = rows[:, 3].flatten(0, 1)
            weights[name.replace("wqkv", "wv")] = rows[:, 4].flatten(0, 1)
        elif name.endswith("w13.weight"):
            weights[name.replace("w13", "w1")], weights[name.replace("w13", "w3")] = value.chunk(2)
        else:
            weights[name] = value
    separate.load_state_dict(weights)
    batch = packed([9, 14])

    assert_close(fused(*batch), separate(*batch))


def test_recomputation_changes_nothing():
    plain, recomputed = build("INTERNLM2"), build("INTERNLM2", checkpoint=0.67)
    assert recomputed.spec.recompute_layers == 2
    batch = packed([11, 20])

    (loss, gradients), (loss_again, gradients_again) = (
        loss_and_gradients(model, *batch) for model in (plain, recomputed)
    )

    assert loss == loss_again
    for name, gradient in gradients.items():
        assert torch.equal(gradient, gradients_again[name]), name


def test_every_parameter_has_a_gradient_with_the_reference_kernels():
    ops = ("attention", "rms_norm", "add_rms_norm", "rotary", "swiglu", "linear_cross_entropy")
    reference = build("LLAMA2", forced={op: "reference" for op in ops})
    fast = build("LLAMA2")
    batch = packed([3, 30, 8])

    loss, gradients = loss_and_gradients(reference, *batch)
    loss_fast, gradients_fast = loss_and_gradients(fast, *batch)

    assert_close(loss_fast, loss)
    for name, gradient in gradients.items():
        assert gradient.abs().sum() > 0, name
        assert_close(gradients_fast[name], gradient)


def test_bfloat16_keeps_residual_and_norms_in_float32_if_asked():
    numerics = Numerics(torch.bfloat16, torch.float32, torch.float32)
    model = build("LLAMA2", numerics=numerics)
    exact = build("LLAMA2")
    batch = packed([6, 10])

    hidden = model(*batch)

    assert hidden.dtype == torch.bfloat16 and model.norm.weight.dtype == torch.float32
    assert model.layers[0].attention.wq.weight.dtype == torch.bfloat16
    assert_close(hidden.float(), exact(*batch), tolerance=0.03)


def test_embedding_gradient_is_scaled():
    plain, scaled = build("LLAMA2"), build("LLAMA2", embed_grad_scale=0.25)
    batch = packed([16])

    (loss, gradients), (loss_scaled, gradients_scaled) = (
        loss_and_gradients(model, *batch) for model in (plain, scaled)
    )

    assert_close(loss_scaled, loss)
    assert_close(gradients_scaled["tok_embeddings.weight"], 0.25 * gradients["tok_embeddings.weight"])
    assert_close(gradients_scaled["output.weight"], gradients["output.weight"])


def test_cache_gives_the_hidden_states_of_the_whole_pass():
    model = build("INTERNLM2")
    lengths = [7, 12]
    tokens, positions, documents = packed(lengths)
    whole = model(tokens, positions, documents)
    cache = model.make_cache(2, 12, torch.device("cpu"))

    first = [0, 1, 2, 7, 8, 9, 10]  # three tokens of the first sequence, four of the second, then the rest
    rest = [3, 4, 5, 6, 11, 12, 13, 14, 15, 16, 17, 18]
    with torch.no_grad():
        a = model(tokens[first], positions[first], CuSeqlens.of([0, 3, 7]), cache)
        b = model(tokens[rest], positions[rest], CuSeqlens.of([0, 4, 12]), cache)

    assert_close(a, whole[first].detach())
    assert_close(b, whole[rest].detach())
    with pytest.raises(ValueError, match="do not fit a cache of 12"):
        model(tokens[:2], positions[:2], CuSeqlens.of([0, 1, 2]), cache)


def test_initial_weights_depend_on_name_and_seed_only():
    model, again, other = build("INTERNLM2"), build("INTERNLM2"), build("INTERNLM2", seed=2)
    deeper = build("INTERNLM2", num_layers=5)
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    for name, parameter in deeper.named_parameters():
        if name in ours:
            assert torch.equal(parameter, ours[name]), name
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(ours["output.weight"], theirs["output.weight"])


def test_initial_weights_have_the_documented_spread():
    model = build("INTERNLM2", hidden_size=384, num_attention_heads=6, vocab_size=2000, attn_wqkv_init_std=0.006)
    weights = dict(model.named_parameters())
    for name, std in {
        "tok_embeddings.weight": 0.02,
        "layers.1.attention.wqkv.weight": 0.006,
        "layers.0.attention.wo.weight": 0.02 / 2**0.5,
        "layers.2.feed_forward.w2.weight": 0.02 / 6**0.5,
        "layers.2.feed_forward.w1.weight": 0.02,
        "output.weight": 0.02,
    }.items():
        assert weights[name].std().item() == pytest.approx(std, rel=0.02), name
    assert torch.equal(weights["norm.weight"], torch.ones(384))
