"""Layers shared by the ranks of a tensor group, against the same layers whole, in float32."""

from itertools import chain

import pytest
import torch
import torch.distributed as dist
from parallel_layers import calls, close, counted_groups, cut_columns, cut_rows, own, own_rows, random, random_linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from evocore.nn.projecting import apply_each, apply_one
from evocore.nn.roles import Role
from evocore.ops.collectives import Collectives
from evocore.parallel.groups import Group
from evocore.parallel.tensor import TensorParallel

D, H, HEADS, TOKENS_PER_RANK = 7, 4, 4, 5
MODES = ["mtp", "msp", "fsp"]


def projections(kv_heads, fused, bias):
    """Weights of an attention layer, whole."""
    group = [("q", HEADS // kv_heads * H), ("k", H), ("v", H)]
    options = dict(role=Role.QKV, bias=bias)
    if fused:
        return [random_linear(D, (HEADS + 2 * kv_heads) * H, segments=group * kv_heads, **options)]
    return [
        random_linear(D, heads * H, segments=[(name, heads * H)], seed=seed, **options)
        for seed, (name, heads) in enumerate((("q", HEADS), ("k", kv_heads), ("v", kv_heads)))
    ]


def block(x, fan_out, fan_in, into, out, heads, kv_heads):
    """A layer that needs each query head together with its own key-value head, as attention does."""
    if len(into) == 1:
        group = heads // kv_heads
        parts = fan_out(x, into)[0].unflatten(1, (kv_heads, group + 2, H)).split([group, 1, 1], dim=2)
        q, k, v = (part.flatten(1, 2) for part in parts)
    else:
        q, k, v = (y.unflatten(1, (-1, H)) for y in fan_out(x, into))
    mixed = q.tanh() * k.repeat_interleave(heads // kv_heads, 1) + v.repeat_interleave(heads // kv_heads, 1).sin()
    return fan_in(mixed.flatten(1), out)


def local(x, mode):
    """What a rank holds of a residual stream."""
    return x if mode == "mtp" else own(x)


def run_block(mode, kv_heads, fused, bias, recompute):
    """Compare everything with the whole layer; return the exchanges in forward and in backward."""
    world = dist.get_world_size()
    tokens, kv_parts = TOKENS_PER_RANK * world, max(1, world // kv_heads)
    into, out = projections(kv_heads, fused, bias), random_linear(HEADS * H, D, Role.OUT, bias=bias, seed=7)
    x, weights = random(tokens, D).requires_grad_(), random(tokens, D, seed=1)
    expected = block(x, apply_each, apply_one, into, out, HEADS, kv_heads)
    (expected * weights).sum().backward()

    groups, recorder = counted_groups(mode, kv_parts)
    strategy = TensorParallel(mode, groups.get("tensor"), groups.get("kv"))
    own_into, own_out = [cut_columns(layer) for layer in into], cut_rows(out)
    done = []
    for layer in (*own_into, own_out):
        layer.weight.register_post_accumulate_grad_hook(done.append)
    own_x = local(x.detach(), mode).clone().requires_grad_()
    arguments = (own_x, strategy.fan_out, strategy.fan_in, own_into, own_out, HEADS // world, kv_heads // world or 1)
    y = checkpoint(block, *arguments, use_reentrant=False) if recompute else block(*arguments)
    forward = calls(recorder)
    (y * local(weights, mode)).sum().backward()
    backward = calls(recorder)

    close(y, local(expected, mode))
    close(own_x.grad, local(x.grad, mode))
    close(own_out.weight.grad, own(out.weight.grad, 1))
    for own_layer, layer in zip(own_into, into, strict=True):
        close(own_layer.weight.grad, layer.weight.grad[own_rows(layer)])
        if bias:
            close(own_layer.bias.grad, layer.bias.grad[own_rows(layer)])
    if bias:
        if mode != "mtp":  # of this rank's tokens
            dist.all_reduce(own_out.bias.grad)
        close(own_out.bias.grad, out.bias.grad)
    assert len(done) == len(into) + 1
    return forward, backward


def exchanges(**counts):
    return {name: count for name, count in counts.items() if count}


def run_blocks(mode, kv_heads):
    return [
        run_block(mode, kv_heads, fused, bias=fused is (mode == "msp"), recompute=False) for fused in (False, True)
    ]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world, kv_heads", [(2, 2), (2, 1), (4, 4), (4, 2), (4, 1)])
def test_results_gradients_and_number_of_exchanges(ranks, world, kv_heads, mode):
    shared = int(world > kv_heads)  # one more exchange each way, for keys and values together

    for forward, backward in chain(*ranks(world, run_blocks, mode, kv_heads)):
        if mode == "mtp":
            assert forward == exchanges(all_reduce=1, all_gather=shared)
            assert backward == exchanges(all_reduce=1, reduce_scatter=shared)
        else:
            again = int(mode == "fsp")
            assert forward == exchanges(all_gather=1 + shared, reduce_scatter=1)
            assert backward == exchanges(all_gather=1 + again, reduce_scatter=1 + shared)


@pytest.mark.parametrize("mode", MODES)
def test_recomputation_repeats_no_exchange_that_backward_does_not_need(ranks, mode):
    for forward, backward in ranks(4, run_block, mode, 2, True, True, recompute=True):
        if mode == "mtp":
            assert forward == {"all_reduce": 1, "all_gather": 1}
            assert backward == {"all_gather": 1, "all_reduce": 1, "reduce_scatter": 1}
        else:  # the input and the heads once more, but not the result
            again = int(mode == "fsp")
            assert forward == {"all_gather": 2, "reduce_scatter": 1}
            assert backward == {"all_gather": 2 + 1 + again, "reduce_scatter": 2}


class Products(TorchDispatchMode):
    """Marks matrix products among the exchanges."""

    def __init__(self, recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default):
            self.recorder.mark("product")
        return function(*args, **(kwargs or {}))


def order_of_backward(mode):
    groups, recorder = counted_groups(mode)
    strategy = TensorParallel(mode, groups.get("tensor"), groups.get("kv"))
    layers = [cut_columns(random_linear(D, 2 * HEADS, Role.GATE, seed=seed)) for seed in range(2)]
    outputs = strategy.fan_out(local(random(2 * TOKENS_PER_RANK, D), mode).clone().requires_grad_(), layers)
    recorder.clear()
    with Products(recorder):
        torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
    return [event.op if event.kind == "mark" else f"{event.op} {event.kind}" for event in recorder.events]


@pytest.mark.parametrize(
    "mode, expected",
    [
        ("mtp", "product, product, all_reduce start, product, product, all_reduce wait"),
        ("msp", "product, product, reduce_scatter start, product, product, reduce_scatter wait"),
        (
            "fsp",
            "all_gather start, product, product, reduce_scatter start, all_gather wait, product, product, "
            "reduce_scatter wait",
        ),
    ],
)
def test_exchanges_of_backward_travel_while_products_are_computed(ranks, mode, expected):
    assert [", ".join(order) for order in ranks(2, order_of_backward, mode)] == [expected] * 2


def run_without_some_gradients(mode):
    groups, recorder = counted_groups(mode)
    strategy = TensorParallel(mode, groups.get("tensor"), groups.get("kv"))
    whole = [random_linear(D, 2 * HEADS, Role.GATE, bias=True, seed=seed) for seed in range(2)]
    layers = [cut_columns(layer) for layer in whole]
    x = local(random(2 * TOKENS_PER_RANK, D), mode).clone()
    expected = [own(y, 1) for y in apply_each(random(2 * TOKENS_PER_RANK, D), whole)]

    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(pytest.fail, pytest.fail):
        for y, z in zip(strategy.fan_out(x.requires_grad_(), layers), expected, strict=True):
            close(y, z)
    calls(recorder)

    # No gradient of the input: nothing to reduce, and only fsp's gather.
    sum(y.sum() for y in strategy.fan_out(x.detach(), layers)).backward()
    assert calls(recorder) == {"mtp": {}, "msp": {"all_gather": 1}, "fsp": {"all_gather": 2}}[mode]
    assert all(parameter.grad is not None for layer in layers for parameter in layer.parameters())

    # No gradient of the weights: the input is not needed again.
    for layer in layers:
        layer.requires_grad_(False)
    sum(y.sum() for y in strategy.fan_out(x, layers)).backward()
    assert calls(recorder) == ({"all_reduce": 1} if mode == "mtp" else {"all_gather": 1, "reduce_scatter": 1})
    close(x.grad, local(sum(layer.weight.sum(0) for layer in whole).expand(2 * TOKENS_PER_RANK, D), mode))

    # Of one weight only.
    layers[1].weight.requires_grad_()
    layers[1].weight.grad, layers[0].weight.grad = None, None
    sum(y.sum() for y in strategy.fan_out(x, layers)).backward()
    assert layers[0].weight.grad is None
    close(layers[1].weight.grad, random(2 * TOKENS_PER_RANK, D).sum(0).expand(HEADS, D))


@pytest.mark.parametrize("mode", MODES)
def test_what_needs_no_gradient_costs_none(ranks, mode):
    ranks(2, run_without_some_gradients, mode)


def run_in_bfloat16(mode):
    groups, recorder = counted_groups(mode)
    strategy = TensorParallel(mode, groups.get("tensor"), groups.get("kv"))
    wide = random_linear(4, 4, Role.UP, bias=True, dtype=torch.bfloat16)
    back = random_linear(4, 4, Role.DOWN, bias=True, dtype=torch.bfloat16)
    column, row = cut_columns(wide), cut_rows(back)
    x = local(random(4, 4, dtype=torch.bfloat16), mode).clone().requires_grad_()
    y = strategy.fan_in(strategy.fan_out(x, [column])[0], row)
    y.backward(torch.ones_like(y))
    tensors = [y, x.grad, *(parameter.grad for layer in (column, row) for parameter in layer.parameters())]
    return {tensor.dtype for tensor in tensors}, {event.bytes for event in recorder.events}


@pytest.mark.parametrize("mode", MODES)
def test_low_precision_travels_as_it_is(ranks, mode):
    for dtypes, sizes in ranks(2, run_in_bfloat16, mode):
        assert dtypes == {torch.bfloat16} and sizes == {4 * 4 * 2}


@pytest.mark.parametrize("mode", MODES)
def test_one_rank_computes_as_without_a_strategy(mode):
    alone = Group("tensor", (0,), 0, None, Collectives())
    strategy = TensorParallel(mode, alone, alone)
    into, out, x = projections(2, True, True), random_linear(HEADS * H, D, Role.OUT), random(TOKENS_PER_RANK, D)

    y = block(x, strategy.fan_out, strategy.fan_in, into, out, HEADS, 2)

    assert torch.equal(y, block(x, apply_each, apply_one, into, out, HEADS, 2))
    y.sum().backward()
    assert into[0].weight.grad is not None
