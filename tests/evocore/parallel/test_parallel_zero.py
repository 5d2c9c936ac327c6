"""ZeRO 1.5 through the optimizer: any division of its state makes the steps of one process."""

import gc
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from evocore.backend import Backend
from evocore.nn.layers import Embedding, Linear, RMSNorm
from evocore.nn.roles import Role
from evocore.ops.adamw import AdamWRequest
from evocore.ops.collectives import Collectives
from evocore.ops.resolution import resolve
from evocore.parallel.groups import Group, Groups
from evocore.parallel.layout import Layout
from evocore.parallel.placement import Placement
from evocore.parallel.recording import RecordingCollectives
from evocore.parallel.runtime import Runtime
from evocore.parallel.sharding import Sharing
from evocore.parallel.topology import Sizes, Topology
from evocore.parallel.zero import ZeroOptions
from evocore.training.optimizer import Optimizer

OVERLAPPED = ZeroOptions(bucket_elements=40, overlap_gradients=True, overlap_parameters=True)


class Block(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.up = Linear(6, 7, role=Role.UP, dtype=dtype, init_std=1.0, bias=True)
        self.norm = RMSNorm(7, eps=1e-5, dtype=dtype, weight_dtype=torch.float32, residual_dtype=dtype)
        self.down = Linear(7, 6, role=Role.DOWN, dtype=dtype, init_std=1.0)

    def forward(self, x):
        return x + self.down(self.up(x) * self.norm.weight.to(x.dtype))


class Net(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embedding = Embedding(11, 6, dtype=dtype, init_std=1.0)
        self.blocks = nn.ModuleList(Block(dtype) for _ in range(3))
        self.head = Linear(6, 11, role=Role.HEAD, dtype=dtype, init_std=1.0)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return x

    def loss(self, hidden):
        return self.head(hidden).float().square().mean()


def optimizer_of(model, zero=1, options=None, collectives=None):
    """For a model that every rank of the process group has; None stands for a process alone."""
    adamw = resolve([AdamWRequest(torch.float32)], _kernels(), "cpu").function(AdamWRequest(torch.float32))
    runtime = None
    if torch.distributed.is_initialized():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        layout = Layout(Topology(Sizes(world=world, zero=zero)), rank)
        sharings = {name: Sharing(Placement.whole(p.shape), "data") for name, p in model.named_parameters()}
        collectives = collectives or Collectives()
        runtime = Runtime(layout, Groups(layout.topology, rank, Backend(), collectives), collectives, sharings)
    return Optimizer(model, adamw, weight_decay=0.1, no_decay=["norm"], runtime=runtime, options=options)


def _kernels():
    from evocore.plugins.manager import load_plugins

    return load_plugins().kernels()


def train(zero=1, options=None, *, steps=3, world=4, dtype=torch.float32, bad_rank=None):
    """Norms of the steps, and the parameters in the end; each rank has its share of four micro-batches."""
    model = Net(dtype)
    optimizer = optimizer_of(model, zero, options)
    rank, ranks = 0, 1
    if torch.distributed.is_initialized():
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    told = []
    for step in range(steps):
        optimizer.zero_grad()
        mine = range(rank * world // ranks, (rank + 1) * world // ranks)
        for number in mine:
            tokens = torch.randint(11, (5,), generator=torch.Generator().manual_seed(step * world + number))
            loss = model.loss(model(tokens)) / world
            with optimizer.last_gradients() if number == mine[-1] else nullcontext():
                (loss * float("nan") if rank == bad_rank else loss).backward()
        result = optimizer.step(lr=0.01, beta2=0.95, clip=0.5)
        told.append((result.grad_norm, result.applied, result.bad_parameter))
    optimizer.wait()
    return told, {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("options", [ZeroOptions(), OVERLAPPED], ids=["after", "overlapped"])
@pytest.mark.parametrize(("world", "zero"), [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4)])
def test_any_division_makes_the_steps_of_one_process(world, zero, options, ranks):
    expected, parameters = train()

    for told, ours in ranks(world, train, zero, options):
        assert [norm for norm, *_ in told] == pytest.approx([norm for norm, *_ in expected], rel=1e-5)
        assert all(applied for _, applied, _ in told)
        for name, value in parameters.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("communicate", [None, torch.bfloat16])
def test_low_precision_parameters_are_the_same_on_all_ranks(communicate, ranks):
    expected, parameters = train(dtype=torch.bfloat16)

    options = ZeroOptions(bucket_elements=40, overlap_gradients=True, communicate=communicate)
    results = ranks(4, train, 2, options, dtype=torch.bfloat16)

    norms = [norm for norm, *_ in results[0][0]]
    assert norms == pytest.approx([norm for norm, *_ in expected], rel=0.02)
    for _, ours in results:
        for name, value in parameters.items():
            assert torch.equal(ours[name], results[0][1][name]), name
            torch.testing.assert_close(ours[name].float(), value.float(), rtol=0.02, atol=0.02)


def groups_left_by_runs(count):
    """Groups that are still there when the models that were trained with them are not."""
    for _ in range(count):
        train(2, OVERLAPPED, steps=1)
    gc.collect()
    return [str(one) for one in gc.get_objects() if type(one) is Group]


def test_groups_go_with_their_model(ranks):
    assert ranks(4, groups_left_by_runs, 2) == [[]] * 4


def test_a_bad_gradient_of_one_rank_stops_the_step_on_all_and_is_named(ranks):
    start = dict(Net().named_parameters())

    for told, ours in ranks(4, train, 2, OVERLAPPED, steps=1, bad_rank=1):
        ((norm, applied, culprit),) = told
        assert norm != norm and not applied and culprit in start
        assert all(torch.equal(ours[name], value) for name, value in start.items())


def sizes(zero):
    optimizer = optimizer_of(Net(), zero)
    whole = sum(p.numel() for p in Net().parameters())
    return whole, [
        sum(getattr(bucket, kind).numel() for bucket in optimizer.buckets)
        for kind in ("values", "gradient", "master", "exp_avg", "exp_avg_sq")
    ]


def test_a_rank_holds_its_part_of_the_state_and_all_gradients(ranks):
    for zero in (1, 2, 4):
        for whole, (values, gradient, *state) in ranks(4, sizes, zero):
            assert whole <= gradient == values <= whole + 16 * 13 + 2 * 16 * zero
            assert state == [gradient // zero] * 3


def events():
    """What is exchanged in one step, and the moments at which blocks run."""
    recording = RecordingCollectives(Collectives())
    model = Net()
    optimizer = optimizer_of(model, 2, OVERLAPPED, recording)
    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, number=number: recording.mark(f"forward {number}"))
        block.register_full_backward_hook(lambda *_, number=number: recording.mark(f"backward {number}"))
    for _ in range(2):
        recording.clear()
        optimizer.zero_grad()
        hidden = model(torch.arange(5))
        with optimizer.last_gradients():
            model.loss(hidden).backward()
        recording.mark("backward done")
        optimizer.step(lr=0.01, beta2=0.95, clip=0.5)
    return [(event.op, event.kind) for event in recording.events]


def test_reductions_start_in_backward_and_parameters_are_waited_for_in_forward(ranks):
    told = ranks(4, events)[0]
    places = {event: [place for place, one in enumerate(told) if one == event] for event in set(told)}

    def place(mark):
        return next(place for place, (op, kind) in enumerate(told) if kind == "mark" and op == mark)

    scattered, gathered = places["reduce_scatter", "start"], places["all_gather", "wait"]
    assert len(scattered) >= 4 and scattered[0] < place("backward 2") < place("backward done")
    assert sum(one < place("backward done") for one in scattered) >= len(scattered) - 1
    assert gathered[0] < place("forward 0") < gathered[-1] < place("forward 2")
