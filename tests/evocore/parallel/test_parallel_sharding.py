"""What each rank holds of a model: together the parts are the whole, once, and layers fit what they hold."""

import pytest
import torch

from evocore.nn.binding import model_requests
from evocore.nn.family import Numerics
from evocore.nn.head import Head
from evocore.parallel.sharding import Part, shard_model
from evocore.plugins.manager import load_plugins

FP32 = Numerics(torch.float32, torch.float32, torch.float32)
SMALL = dict(
    vocab_size=24, hidden_size=16, num_layers=2, num_attention_heads=8, num_kv_attention_heads=2, head_dim=4,
    mlp_ratio=2, multiple_of=8,
)  # fmt: skip
CASES = [
    ("INTERNLM2", {}, 2),
    ("INTERNLM2", {}, 4),
    ("INTERNLM2", dict(num_kv_attention_heads=1), 4),
    ("LLAMA2", dict(mlp_layer_fusion=True, no_bias=False, mlp_bias=True), 2),
    ("LLAMA2", dict(num_kv_attention_heads=4), 4),
]


def build(model_type, **settings):
    family = next(family for family in load_plugins().models() if family.name == model_type)
    return family.build(SMALL | settings, FP32)


def held(placement):
    """How often each element of the whole is held."""
    counts = torch.zeros(placement.shape, dtype=torch.int64)
    for box in placement.boxes:
        box.of(counts).add_(1)
    return counts


@pytest.mark.parametrize(("model_type", "settings", "parts"), CASES)
@pytest.mark.parametrize("mode", ["mtp", "msp", "isp"])
def test_the_parts_of_all_ranks_are_the_whole(mode, model_type, settings, parts):
    whole = {name: tuple(p.shape) for name, p in build(model_type, **settings).named_parameters()}
    counts = {name: torch.zeros(shape, dtype=torch.int64) for name, shape in whole.items()}
    for index in range(parts):
        model = build(model_type, **settings)
        sharings = shard_model(model, mode, Part(index, parts), Part(index, parts))
        assert {name: sharing.placement.shape for name, sharing in sharings.items()} == whole
        for name, parameter in model.named_parameters():
            assert parameter.shape == sharings[name].placement.local_shape and parameter.is_meta
            counts[name] += held(sharings[name].placement)

    for name, count in counts.items():
        split = sharings[name].placement.numel < count.numel()
        assert torch.equal(count, torch.full_like(count, 1 if split else parts)), name
    assert sharings["norm.weight"].reduce == ("data" if mode == "mtp" else "stage")
    assert sharings["norm.weight"].duplicates == (parts if mode == "mtp" else 1)
    assert sharings["output.weight"].placement.numel == 24 * 16 // parts
    assert sharings["output.weight"].reduce == ("weight_data" if mode == "isp" else "data")


def test_a_rank_holds_whole_query_heads_and_its_part_of_the_head_that_it_shares():
    model = build("INTERNLM2", num_kv_attention_heads=1)

    sharings = shard_model(model, "msp", Part(1, 4), Part(0, 1))

    attention = model.layers[0].attention
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (2, 1, 4)
    assert attention.wqkv.segments == (("q", 8), ("k", 1), ("v", 1))
    rows = [(box.offsets[0], box.sizes[0]) for box in sharings["layers.0.attention.wqkv.weight"].placement.boxes]
    assert rows == [(8, 8), (33, 1), (37, 1)]  # 8 heads of 4 rows, then 4 rows of the key, 4 of the value
    assert [(box.offsets, box.sizes) for box in sharings["layers.0.attention.wo.weight"].placement.boxes] == [
        ((0, 8), (16, 8))
    ]


def test_layers_ask_for_kernels_of_their_own_sizes():
    model = build("LLAMA2")
    shard_model(model, "mtp", Part(0, 2), Part(0, 1))
    texts = [str(request) for request in model_requests(model)]
    assert any("heads=4" in text and "kv_heads=1" in text for text in texts), texts
    assert {request.op for request in model_requests(model)} == {
        "attention", "rotary", "swiglu", "rms_norm", "add_rms_norm", "cross_entropy_shard"
    }  # fmt: skip

    model = build("LLAMA2")
    shard_model(model, "isp", Part(0, 4), Part(0, 2))
    attention = next(request for request in model_requests(model) if request.op == "attention")
    assert (attention.heads, attention.kv_heads) == (2, 1)
    assert isinstance(model.output, Head) and model.output.weight.shape == (24 * 16 // 2,)


def test_one_rank_holds_everything_as_it_was():
    plain, model = build("INTERNLM2"), build("INTERNLM2")

    sharings = shard_model(model, "mtp", Part(0, 1), Part(0, 1))

    assert [(n, p.shape) for n, p in model.named_parameters()] == [(n, p.shape) for n, p in plain.named_parameters()]
    assert {(sharing.reduce, sharing.duplicates) for sharing in sharings.values()} == {("data", 1)}
    assert model_requests(model) == model_requests(plain)
