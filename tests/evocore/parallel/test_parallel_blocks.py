"""Blocks as strategies see them, whatever family they are of."""

import pytest
from parallel_counted_cases import Case
from torch import nn

from evocore.nn.experts import ExpertLinear
from evocore.nn.layers import Linear, Norm
from evocore.nn.router import Scorer
from evocore.parallel.blocks import blocks_of, last_layer, part_of, units_by_part
from evocore.plugins.manager import load_plugins
from evocore.training.assembly import make_plan

EXPERTS = dict(num_experts=4, top_k=2)


def built(family, **model):
    config = Case(1, blocks=dict(model_type=family, model=model)).config().config
    return make_plan(config, load_plugins(), backend="cpu").model


def test_blocks_of_a_stage_are_those_that_it_has():
    model = built("LLAMA2", num_layers=5)
    part = model.stage([range(1, 2), range(3, 5)])

    assert blocks_of(model) == list(model.layers)
    assert blocks_of(part) == [model.layers[number] for number in (1, 3, 4)]


@pytest.mark.parametrize(
    ("family", "model", "kind"),
    [
        ("LLAMA2", {}, Linear),
        ("GEMMA2", {}, Norm),
        ("INTERNLM_MoE", dict(EXPERTS, num_shared_experts=1), Linear),
        ("INTERNLM_MoE", dict(EXPERTS, num_shared_experts=0), ExpertLinear),
        ("INTERNLM_MoE", dict(EXPERTS, num_shared_experts=1, moe_layer_kwargs=dict(shared_expert_gate=True)), Scorer),
    ],
)
def test_a_block_ends_with_what_its_forward_uses_last(family, model, kind):
    block = blocks_of(built(family, **model))[-1]
    assert type(last_layer(block)) is kind


def test_parts_begin_with_their_starts():
    assert [part_of(block, (0, 2, 3)) for block in range(5)] == [0, 0, 1, 2, 2]


def test_what_comes_behind_the_blocks_is_the_last_parts():
    model = nn.Module()
    model.embedding, model.layers = nn.Embedding(2, 2), nn.ModuleList(nn.Linear(2, 2) for _ in range(5))
    model.norm, model.further = nn.LayerNorm(2), nn.ModuleList([nn.Linear(2, 2)])

    first, second, last = units_by_part(model, (0, 2, 3))

    assert first == [model.embedding, model.layers[0], model.layers[1]]
    assert second == [model.layers[2]]
    assert last == [model.layers[3], model.layers[4], model.norm, model.further[0]]
