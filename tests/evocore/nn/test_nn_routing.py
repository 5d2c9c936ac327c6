"""Routing against loops over tokens and experts that do what the papers say, one choice at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evocore.nn import routing
from evocore.nn.router import LossWeights, Router
from evocore.nn.routing import DROPPED, RoutingRule

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(1, 3)).filter(lambda s: s[2] <= s[1])
WIDTH = 8


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def router(rule, seed=0, **options):
    made = Router(WIDTH, rule, layer=0, init_std=1.0, **options)
    with torch.no_grad():
        made.weight.copy_(random(rule.experts, WIDTH, seed=seed))
    return made


def kept_in_turn(experts_TK, turns, capacity):
    """Which choices ``(t, k)`` find a place when they come in these turns."""
    room, kept = {}, set()
    for t, k in turns:
        expert = int(experts_TK[t, k])
        room[expert] = room.get(expert, 0) + 1
        if room[expert] <= capacity:
            kept.add((t, k))
    return kept


@settings(deadline=None)
@given(SIZES, st.integers(0, 5), st.sampled_from(["probs", "position", "choice"]), st.integers(0, 10_000))
def test_drops_are_those_of_a_queue_before_each_expert(sizes, capacity, order, seed):
    tokens, experts, top_k = sizes
    scores_TE = random(tokens, experts, seed=seed).softmax(1)
    experts_TK = routing.choose_experts(scores_TE, top_k)
    scores_TK = scores_TE.gather(1, experts_TK)

    dropped_TK = routing.drop(experts_TK, scores_TK, experts, capacity, order)

    choices = [(t, k) for t in range(tokens) for k in range(top_k)]
    turn = {"probs": lambda c: -float(scores_TK[c]), "position": lambda c: c, "choice": lambda c: (c[1], c[0])}
    kept = kept_in_turn(experts_TK, sorted(choices, key=turn[order]), capacity)
    for t, k in choices:
        assert dropped_TK[t, k] == (experts_TK[t, k] if (t, k) in kept else DROPPED)
    assert routing.loads(dropped_TK, experts).tolist() == [
        sum(int(experts_TK[choice]) == expert for choice in kept) for expert in range(experts)
    ]


def test_equal_scores_go_to_the_earlier_token():
    experts_TK = torch.zeros(4, 1, dtype=torch.int64)

    dropped_TK = routing.drop(experts_TK, torch.full((4, 1), 0.5), 2, 2, "probs")

    assert dropped_TK.flatten().tolist() == [0, 0, DROPPED, DROPPED]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((16, 4, 2, 1.0), 8), ((10, 4, 1, 1.0), 3), ((10, 4, 2, 1.25), 7), ((2, 8, 1, 1.0, 4), 4), ((0, 4, 2, 1.0), 0)],
)
def test_capacity_is_the_share_of_choices_rounded_up(arguments, expected):
    assert routing.capacity(*arguments) == expected


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 3), st.data())
def test_groups_limit_the_experts_of_a_token(tokens, groups, size, data):
    kept = data.draw(st.integers(1, groups))
    top_k = data.draw(st.integers(1, kept * size))
    seed = data.draw(st.integers(0, 10_000))
    scores_TE, bias_E = random(tokens, groups * size, seed=seed).sigmoid(), random(groups * size, seed=seed + 1)

    experts_TK = routing.choose_experts(scores_TE, top_k, bias_E=bias_E, groups=groups, kept_groups=kept)

    for token, chosen in enumerate(experts_TK.tolist()):
        ranking = (scores_TE[token] + bias_E).tolist()
        members = [range(group * size, (group + 1) * size) for group in range(groups)]
        best = sorted(members, key=lambda group: -sum(sorted((ranking[e] for e in group), reverse=True)[:2]))[:kept]
        allowed = [expert for group in best for expert in group]
        assert chosen == sorted(allowed, key=lambda expert: -ranking[expert])[:top_k]


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_weights_with_and_without_renormalisation(kind):
    logits_TE = random(5, 4)
    scores_TE = routing.expert_scores(logits_TE, kind)
    chosen = scores_TE[:, :2]

    plain = routing.combine_weights(chosen, renormalise=False, scaling=2.5)
    scaled = routing.combine_weights(chosen, renormalise=True, scaling=2.5)

    exponentials = logits_TE.exp()
    expected = exponentials / exponentials.sum(1, keepdim=True) if kind == "softmax" else 1 / (1 + (-logits_TE).exp())
    torch.testing.assert_close(plain, 2.5 * expected[:, :2])
    torch.testing.assert_close(scaled.sum(1), torch.full((5,), 2.5))
    torch.testing.assert_close(scaled[:, 0] / scaled[:, 1], expected[:, 0] / expected[:, 1])
    torch.testing.assert_close(routing.probabilities(scores_TE, kind).sum(1), torch.ones(5))


def test_the_balance_loss_is_one_where_all_is_even_and_grows_to_e_where_one_expert_gets_all():
    even = torch.full((4,), 0.25)
    assert float(routing.balance_loss(torch.full((4,), 3.0), even)) == 1
    assert float(routing.balance_loss(torch.tensor([9.0, 0, 0, 0]), torch.tensor([1.0, 0, 0, 0]))) == 4


def test_the_bias_goes_up_for_idle_experts_and_down_for_busy_ones():
    bias_E = routing.corrected_bias(torch.tensor([0.0, 0.5, -0.5]), torch.tensor([9.0, 3.0, 6.0]), 0.1)
    torch.testing.assert_close(bias_E, torch.tensor([-0.1, 0.6, -0.5]))


# --- the layer ----------------------------------------------------------------------------------------------------


def test_gshard_scales_what_it_keeps_to_one():
    rule = RoutingRule(4, 2, renormalise_kept=True, capacity_factor=0.5, drop_order="choice")
    experts_TK, weights_TK = router(rule)(random(16, WIDTH, seed=1))

    kept = experts_TK >= 0
    assert 0 < int(kept.sum()) < 32 and int(routing.loads(experts_TK, 4).max()) == 4
    assert (weights_TK[~kept] == 0).all()
    for weights, used in zip(weights_TK.detach(), kept, strict=True):
        assert math.isclose(float(weights.sum()), 1.0 if used.any() else 0.0, rel_tol=1e-6)


def test_capacity_differs_outside_of_training():
    layer = router(RoutingRule(4, 1, capacity_factor=0.25, eval_capacity_factor=None))
    x_TD = random(16, WIDTH, seed=1)

    assert int(routing.loads(layer(x_TD).experts_TK, 4).max()) == 1
    assert int(routing.loads(layer.eval()(x_TD).experts_TK, 4).sum()) == 16


def test_the_record_counts_what_a_loop_counts():
    rule = RoutingRule(4, 2, capacity_factor=0.5, drop_order="position")
    layer = router(rule)
    passes = [random(16, WIDTH, seed=seed) for seed in (1, 2)]
    load, kept, entropy = [0] * 4, [0] * 4, 0.0
    for x_TD in passes:
        layer(x_TD)
        probabilities = (x_TD @ layer.weight.T).softmax(1)
        room = [0] * 4
        for row in probabilities.tolist():
            for expert in sorted(range(4), key=lambda e, row=row: -row[e])[:2]:
                load[expert] += 1
                if room[expert] < 4:
                    room[expert] += 1
                    kept[expert] += 1
            entropy -= sum(p * math.log(p) for p in row)
    with torch.no_grad():
        layer(passes[0])  # is not counted

    row = layer.record.take()

    assert row[:4].tolist() == load and row[4:8].tolist() == kept and sum(kept) < sum(load)
    assert row[8] == 32 and math.isclose(float(row[9]), entropy, rel_tol=1e-5)
    assert layer.record.take() is None


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("first", [False, True])
def test_auxiliary_losses_are_differentiated_with_the_output(scores, first):
    rule = RoutingRule(4, 2, scores=scores, renormalise=True, balance_first=first)
    layer, x_TD, into_TK = router(rule), random(6, WIDTH, seed=1).requires_grad_(), random(6, 2, seed=2)
    layer.loss_weights = LossWeights(balance=0.3, z=0.07)

    experts_TK, weights_TK = layer(x_TD)
    (weights_TK * into_TK).sum().backward()
    got = x_TD.grad.clone(), layer.weight.grad.clone()
    record = layer.record.take()

    x_TD.grad = layer.weight.grad = None
    logits_TE = x_TD @ layer.weight.T
    scores_TE = logits_TE.softmax(1) if scores == "softmax" else logits_TE.sigmoid()
    chosen_TK = scores_TE.gather(1, experts_TK)
    weighted = (chosen_TK / chosen_TK.sum(1, keepdim=True) * into_TK).sum()
    counted = experts_TK[:, :1] if first else experts_TK
    shares = [float((counted == expert).float().mean()) for expert in range(4)]
    means = (scores_TE / scores_TE.sum(1, keepdim=True)).mean(0)
    balance = 4 * sum(share * mean for share, mean in zip(shares, means, strict=True))
    z = (logits_TE.exp().sum(1).log() ** 2).mean()
    (weighted + 0.3 * balance + 0.07 * z).backward()
    torch.testing.assert_close(got, (x_TD.grad, layer.weight.grad))
    torch.testing.assert_close(record[-2:], torch.stack([balance, z]).detach())


def test_a_bias_decides_who_is_chosen_and_not_with_what_weight():
    rule = RoutingRule(4, 1, scores="sigmoid", bias_rate=5.0)
    layer, x_TD = router(rule), random(8, WIDTH, seed=1)
    free = layer(x_TD)
    layer.correct_bias(torch.tensor([0.0, 8.0, 8.0, 8.0]))

    biased = layer(x_TD)

    assert set(biased.experts_TK.flatten().tolist()) == {0} != set(free.experts_TK.flatten().tolist())
    torch.testing.assert_close(biased.weights_TK, (x_TD @ layer.weight[:1].T).sigmoid())


def test_a_bias_evens_loads_that_are_uneven():
    rule = RoutingRule(8, 2, scores="sigmoid", bias_rate=0.01)
    layer, x_TD = router(rule), random(256, WIDTH, seed=1) + 0.5

    def load():
        return routing.loads(layer(x_TD).experts_TK, 8).float()

    uneven = load()
    for _ in range(200):
        layer.correct_bias(load())

    assert float(uneven.max() / uneven.mean()) > 1.5 and float(load().max() / uneven.mean()) < 1.1


def test_logits_are_float32_whatever_the_activations_are():
    layer, x_TD = router(RoutingRule(4, 2)), random(8, WIDTH, seed=1).bfloat16()

    weights_TK = layer(x_TD).weights_TK

    assert layer.weight.dtype == weights_TK.dtype == torch.float32
    torch.testing.assert_close(weights_TK, (x_TD.float() @ layer.weight.T).softmax(1).topk(2).values)
