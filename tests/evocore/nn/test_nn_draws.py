"""Random numbers of routers: of the distribution that they should have, and the same wherever they are drawn."""

import pytest
import torch

from evocore.nn.draws import uniform
from evocore.nn.router import Router
from evocore.nn.routing import DROPPED, RoutingRule, loads

MANY = 20_000


def trained(rule, seed=7, weight=None):
    router = Router(4, rule, layer=3, init_std=1.0).train()
    router.seed = seed
    with torch.no_grad():
        router.weight.copy_(torch.eye(rule.experts, 4) if weight is None else weight)
    return router


@pytest.mark.parametrize("key", [0, 1, 2**63 + 12345, 2**64 - 1])
def test_numbers_are_uniform_and_do_not_depend_on_one_another(key):
    numbers = uniform(key, torch.arange(MANY), 8)

    assert 0 < float(numbers.min()) < 1e-4 and 1 - 1e-4 < float(numbers.max()) < 1
    counts = torch.histc(numbers, 16, 0, 1)
    assert (counts - numbers.numel() / 16).abs().max() < 5 * (numbers.numel() / 16) ** 0.5
    both = torch.cat([numbers[1:], numbers[:-1], uniform(key + 1, torch.arange(1, MANY), 8)], dim=1)
    assert (torch.corrcoef(both.T) - torch.eye(24)).abs().max() < 0.04


def test_a_row_has_the_same_numbers_whoever_draws_it():
    rows = torch.tensor([5, 0, 4000])

    assert torch.equal(uniform(99, rows, 3), uniform(99, torch.arange(4001), 3)[rows])


def test_noisy_choices_are_a_sample_of_the_experts_probabilities_and_only_in_training():
    router = trained(RoutingRule(4, 2, noise="gumbel"))
    x_TD = torch.tensor([0.0, 1.0, -1.0, 0.5]).expand(MANY, 4)
    probabilities = x_TD[0].softmax(0)

    chosen = router(x_TD)

    first = loads(chosen.experts_TK[:, :1], 4) / MANY
    second = loads(chosen.experts_TK[:, 1:][chosen.experts_TK[:, :1] == 1], 4) / (chosen.experts_TK[:, 0] == 1).sum()
    rest = probabilities.clone()
    rest[1] = 0
    torch.testing.assert_close(first, probabilities, atol=0.012, rtol=0)
    torch.testing.assert_close(second, rest / rest.sum(), atol=0.015, rtol=0)
    torch.testing.assert_close(chosen.weights_TK, probabilities[chosen.experts_TK])
    assert torch.equal(router.eval()(x_TD).experts_TK, torch.tensor([[1, 3]]).expand(MANY, 2))
    assert not torch.equal(trained(router.rule, seed=8)(x_TD).experts_TK, chosen.experts_TK)


def test_whom_a_full_expert_drops_is_left_to_chance_in_training():
    rule = RoutingRule(4, 1, drop_order="random", capacity_factor=0.5, eval_capacity_factor=0.5)
    router = trained(rule)
    x_TD = torch.eye(4).repeat(MANY // 4, 1)

    kept = router(x_TD).experts_TK[:, 0] != DROPPED
    in_order = router.eval()(x_TD).experts_TK[:, 0] != DROPPED

    for expert in range(4):
        assert kept[expert::4].sum() == in_order[expert::4].sum() == MANY // 8
    assert in_order[: MANY // 2].all()
    assert abs(float(kept[: MANY // 2].float().mean()) - 0.5) < 0.02


def test_jitter_changes_the_input_by_a_hundredth_at_most_and_only_in_training():
    router = trained(RoutingRule(4, 4, noise="jitter"))
    x_TD = torch.randn(MANY, 4, generator=torch.Generator().manual_seed(1))

    def logits(routing):
        """Up to a constant for each token: log-probabilities, expert by expert."""
        return torch.zeros(MANY, 4).scatter(1, routing.experts_TK, routing.weights_TK.detach().log())

    moved = logits(router(x_TD)) - logits(router.eval()(x_TD))

    relative = moved - moved[:, :1]
    bound = 0.01 * (x_TD.abs() + x_TD[:, :1].abs()) + 1e-5
    assert (relative.abs() <= bound).all() and float(relative[:, 1:].abs().mean()) > 0.004
