"""Exchanges with gradients: each against the same arithmetic on the whole tensors, which every test rank can make."""

import pytest
import torch
import torch.distributed as dist
from parallel_layers import calls, close, counted_groups, own, random

from evocore.ops.collectives import Collectives
from evocore.parallel.functions import (
    copy,
    gather,
    heads_from_tokens,
    join_columns,
    reduce_,
    scatter_sum,
    tokens_from_heads,
)
from evocore.parallel.groups import Group


def of_rank(rank, *shape, seed=0):
    return random(*shape, seed=100 * seed + rank)


def of_all(*shape, seed=0):
    return [of_rank(rank, *shape, seed=seed) for rank in range(dist.get_world_size())]


def mine(*shape, seed=0):
    return of_rank(dist.get_rank(), *shape, seed=seed)


def passed(function, x, grad):
    """Result, gradient, and the exchanges of both ways."""
    groups, recorder = counted_groups()
    x = x.clone().requires_grad_()
    y = function(x * 1, groups.get("tensor"))  # not the leaf itself: reduce_ overwrites it
    forward = calls(recorder)
    y.backward(grad)
    return y, x.grad, forward, calls(recorder)


def check_copy_and_reduce():
    y, grad, forward, backward = passed(copy, random(3, 5), mine(3, 5, seed=1).T.contiguous().T)
    close(y, random(3, 5))
    close(grad, sum(of_all(3, 5, seed=1)))
    assert (forward, backward) == ({}, {"all_reduce": 1})

    y, grad, forward, backward = passed(reduce_, mine(3, 5), random(3, 5, seed=1))
    close(y, sum(of_all(3, 5)))
    close(grad, random(3, 5, seed=1))
    assert (forward, backward) == ({"all_reduce": 1}, {})


def check_gather_and_scatter_sum():
    ranks = dist.get_world_size()
    y, grad, forward, backward = passed(gather, mine(3, 2, 5), mine(3 * ranks, 2, 5, seed=1))
    close(y, torch.cat(of_all(3, 2, 5)))
    close(grad, own(sum(of_all(3 * ranks, 2, 5, seed=1))))
    assert (forward, backward) == ({"all_gather": 1}, {"reduce_scatter": 1})

    y, grad, forward, backward = passed(scatter_sum, mine(3 * ranks, 5), mine(3, 5, seed=1))
    close(y, own(sum(of_all(3 * ranks, 5))))
    close(grad, torch.cat(of_all(3, 5, seed=1)))
    assert (forward, backward) == ({"reduce_scatter": 1}, {"all_gather": 1})


def check_join_columns():
    whole_grad = random(3, 5 * dist.get_world_size(), seed=1)
    y, grad, forward, backward = passed(join_columns, mine(3, 5), whole_grad)
    close(y, torch.cat(of_all(3, 5), dim=1))
    close(grad, own(whole_grad, 1))
    assert (forward, backward) == ({"all_gather": 1}, {})


def check_heads_and_tokens():
    ranks = dist.get_world_size()
    tokens, heads = 3 * ranks, 2 * ranks
    whole, whole_grad = random(tokens, heads, 5), random(tokens, heads, 5, seed=1)
    once = {"all_to_all": 1}

    y, grad, forward, backward = passed(heads_from_tokens, own(whole), own(whole_grad, 1))
    assert y.is_contiguous() and torch.equal(y, own(whole, 1)) and torch.equal(grad, own(whole_grad))
    assert forward == backward == once

    y, grad, forward, backward = passed(tokens_from_heads, own(whole, 1), own(whole_grad))
    assert y.is_contiguous() and torch.equal(y, own(whole)) and torch.equal(grad, own(whole_grad, 1))
    assert forward == backward == once


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(
    "check", [check_copy_and_reduce, check_gather_and_scatter_sum, check_join_columns, check_heads_and_tokens]
)
def test_results_and_gradients_are_those_of_the_whole(ranks, world, check):
    ranks(world, check)


@pytest.mark.parametrize(
    "function", [copy, reduce_, gather, scatter_sum, join_columns, heads_from_tokens, tokens_from_heads]
)
def test_one_rank_is_left_alone(function):
    x = torch.ones(2, 3, 4)

    assert function(x, Group("tensor", (0,), 0, None, Collectives())) is x
