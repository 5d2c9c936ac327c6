"""Intern sequence parallelism gives the loss and the gradients of one process, whatever is overlapped with what."""

from functools import cache
from itertools import product

import pytest
import torch
from parallel_isp_model import LAYERS, Case, Rank, build_whole, expected_step, loss_and_gradients, step

PATTERNS = [
    dict(overlap=False),
    *(
        dict(overlap=True, forward_overlap_per="layer", launch_allgather_before=before, layer_fuse_isp_comm=fused)
        for before, fused in product(["wqkv", "attn", "wo", "w1"], [False, True])
    ),
    dict(overlap=True, forward_overlap_per="module"),
    dict(overlap=True, forward_overlap_per="module", layer_fuse_isp_comm=True),
]
RECOMPUTE = [0, 1 / LAYERS + 0.01, 1.0]


def run_cases(cases, micro_batches):
    """Loss and gradients of this rank for each case."""
    results = []
    for case in cases:
        rank = Rank(case)
        results.append((step(rank, micro_batches), rank.gradients(), rank.delivered, rank.weight.rank))
    return results


@cache
def expected(family, model, data_size, micro_batches):
    return expected_step(Case(family=family, model=dict(model)), data_size, micro_batches)


def check(case, results, micro_batches=2):
    """Put the ranks' parts together and compare."""
    loss, gradients = expected(case.family, tuple(case.model.items()), len(results) // case.sequence, micro_batches)
    assert sum(result[0] for result in results) == pytest.approx(loss, rel=1e-5), case
    assert all(result[2] == results[0][2] for result in results), "one order on all ranks"
    for name, gradient in gradients.items():
        parts = [torch.zeros_like(results[0][1][name]) for _ in range(case.weight)]
        for _, shards, delivered, place in results:
            parts[place if name in delivered else 0] += shards[name]
        flat, size = torch.cat([part.flatten() for part in parts]), gradient.numel()
        difference = flat[:size].view(gradient.shape) - gradient
        assert difference.norm() <= 1e-5 * gradient.norm(), (str(case), name)
        assert name not in results[0][2] or not flat[size:].any(), "padding has no gradient"


def check_all(ranks, world, cases, micro_batches):
    results = ranks(world, run_cases, cases, micro_batches, timeout=120.0)
    for number, case in enumerate(cases):
        check(case, [result[number] for result in results], micro_batches)


def test_every_pattern_gives_the_gradients_of_one_process(ranks):
    cases = [
        Case(
            2,
            2,
            model=dict(checkpoint=RECOMPUTE[number % 3]),
            settings=pattern | dict(early_reduce_scatter_release=number % 2 == 0),
        )
        for number, pattern in enumerate(PATTERNS)
    ]

    check_all(ranks, 2, cases, micro_batches=1)


@pytest.mark.parametrize("share", RECOMPUTE)
def test_every_combination_of_settings_gives_the_same_gradients(share):
    """On one rank whose peer pretends to have the same shards, so that the whole is these twice."""
    model = build_whole(Case(model=dict(checkpoint=share)))
    shards = Rank.pretended(Case(1, 2)).model.state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if shards[name].shape != parameter.shape:
                parameter.copy_(shards[name].repeat(2)[: parameter.numel()].view(parameter.shape))
    loss = loss_and_gradients(model)
    for pattern, early in product(PATTERNS, [True, False]):
        settings = pattern | dict(early_reduce_scatter_release=early)
        rank = Rank.pretended(Case(1, 2, model=dict(checkpoint=share), settings=settings))
        assert step(rank) == pytest.approx(loss, rel=1e-6)
        for name, gradient in rank.gradients().items():
            whole = model.get_parameter(name).grad.flatten()[: gradient.numel()]
            assert (gradient.flatten() - whole).norm() <= 1e-5 * whole.norm(), (settings, name)


OVERLAP = dict(overlap=True, layer_fuse_isp_comm=True)
FOUR_RANKS = [
    Case(1, 4, family="LLAMA2", model=dict(qkv_bias=True, o_bias=True, mlp_bias=True), settings=OVERLAP),
    Case(4, 2, model=dict(norm_head=True, checkpoint=0.5), settings=OVERLAP),
    Case(2, 2, model=dict(mlp_layer_fusion=True), settings=dict(overlap=True, forward_overlap_per="module")),
    Case(2, 4, family="LLAMA2", model=dict(embed_grad_scale=0.1)),
    Case(4, 1, model=dict(num_kv_attention_heads=1), settings=OVERLAP),
    Case(4, 4, settings=dict(overlap=True), keeps_buffers=True),
]


def test_sequence_and_weight_sizes_are_independent(ranks):
    check_all(ranks, 4, FOUR_RANKS, micro_batches=1)


def evaluate_between(case):
    """A step with another forward, without gradients, before each of its own."""
    rank = Rank(case)
    total = 0.0
    for number in range(2):
        with torch.no_grad():
            evaluated = rank.loss(number).item()
        loss = rank.loss(number)
        assert loss.item() == evaluated
        loss.backward()
        rank.weights.finish()
        rank.weights.finish()
        total += loss.item()
    return [(total, rank.gradients(), rank.delivered, rank.weight.rank)]


def interrupt_between(case):
    """A forward pass fails half-way, then the weights change."""
    rank = Rank(case)
    with torch.no_grad():
        for parameter in rank.model.parameters():
            parameter.add_(1)
    block = rank.model.layers[1].feed_forward
    gated, block.gated = block.gated, None
    with pytest.raises(TypeError):
        rank.loss(0)
    block.gated = gated
    with torch.no_grad():
        for parameter in rank.model.parameters():
            parameter.sub_(1)
    return [(step(rank), rank.gradients(), rank.delivered, rank.weight.rank)]


@pytest.mark.parametrize("disturbed", [evaluate_between, interrupt_between])
@pytest.mark.parametrize("per", ["layer", "module"])
def test_other_forward_passes_leave_no_trace(ranks, disturbed, per):
    case = Case(
        1,
        2,
        model=dict(checkpoint=0.5),
        settings=dict(overlap=True, forward_overlap_per=per, launch_allgather_before="w1"),
    )
    check(case, [results[0] for results in ranks(2, disturbed, case)])
