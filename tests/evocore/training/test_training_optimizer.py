"""The flat optimizer against torch.optim.AdamW and clip_grad_norm_ on a plain model."""

import copy

import pytest
import torch
from torch import nn

from evocore.nn.layers import Embedding, Linear, RMSNorm
from evocore.nn.roles import Role
from evocore.ops.adamw import AdamWRequest
from evocore.ops.resolution import resolve
from evocore.plugins.manager import load_plugins
from evocore.training.optimizer import Optimizer


class Net(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embedding = Embedding(11, 6, dtype=dtype, init_std=1.0)
        self.up = Linear(6, 7, role=Role.UP, dtype=dtype, init_std=1.0, bias=True)
        self.norm = RMSNorm(7, eps=1e-5, dtype=dtype, weight_dtype=torch.float32, residual_dtype=dtype)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, tokens):
        return self.up(self.embedding(tokens)) * self.norm.weight.to(self.up.weight.dtype)


def adamw():
    resolution = resolve([AdamWRequest(torch.float32)], load_plugins().kernels(), "cpu")
    return resolution.function(AdamWRequest(torch.float32))


def optimizer_for(model, **options):
    return Optimizer(model, adamw(), **({"weight_decay": 0.1} | options))


def backward(model, seed, scale=1.0):
    tokens = torch.randint(11, (5,), generator=torch.Generator().manual_seed(seed))
    (model(tokens).float().square().sum() * scale).backward()


def test_three_steps_equal_torch_with_clipping_and_groups():
    ours, theirs = Net(), Net()
    optimizer = optimizer_for(ours, no_decay=["norm", "bias"])
    reference = torch.optim.AdamW(
        [
            {"params": [theirs.embedding.weight, theirs.up.weight], "weight_decay": 0.1},
            {"params": [theirs.up.bias, theirs.norm.weight], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.95),
    )
    for step in range(3):
        optimizer.zero_grad()
        reference.zero_grad()
        for seed in (step, step + 100):  # two micro-batches accumulate
            backward(ours, seed)
            backward(theirs, seed)
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        result = optimizer.step(lr=0.01, beta2=0.95, clip=1.0)
        reference.step()
        assert result.grad_norm == pytest.approx(norm.item(), rel=1e-6) and norm > 1
        assert result.applied
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-7), name


def test_everything_is_decayed_unless_asked_otherwise():
    model = Net()
    assert [bucket.weight_decay for bucket in optimizer_for(model).buckets] == [0.1]
    buckets = optimizer_for(Net(), no_decay=["embedding"]).buckets
    assert [(bucket.weight_decay, sorted(member.name for member in bucket.members)) for bucket in buckets] == [
        (0.1, ["norm.weight", "up.bias", "up.weight"]),
        (0.0, ["embedding.weight"]),
    ]


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_loss_scale_is_removed_with_and_without_clipping(clip):
    plain, scaled = Net(), Net()
    one, two = optimizer_for(plain), optimizer_for(scaled)
    backward(plain, 3)
    backward(scaled, 3, scale=1024.0)

    a, b = one.step(lr=0.1, beta2=0.9, clip=clip), two.step(lr=0.1, beta2=0.9, clip=clip, loss_scale=1024.0)

    assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-6)
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-6)


def test_low_precision_parameters_follow_float32_masters():
    model = Net(torch.bfloat16)
    optimizer = optimizer_for(model, weight_decay=0.0)
    start = model.up.weight.detach().clone()
    for seed in range(40):  # each step is far below the spacing of bfloat16 around 1
        optimizer.zero_grad()
        backward(model, seed)
        assert model.up.weight.grad is None and model.norm.weight.grad is None
        optimizer.step(lr=1e-4, beta2=0.95)
    master = optimizer.tensors()["master.up.weight"]

    assert master.dtype == torch.float32
    assert torch.equal(model.up.weight, master.bfloat16())
    assert (master - start.float()).abs().max() > 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_step_with_a_bad_gradient_changes_nothing_and_names_the_parameter(value):
    model = Net()
    optimizer = optimizer_for(model)
    before = copy.deepcopy(dict(model.named_parameters()))
    backward(model, 0)
    (model.up.weight[2, 1] * value).backward()

    result = optimizer.step(lr=0.1, beta2=0.95, clip=1.0)

    assert not result.applied and result.bad_parameter == "up.weight" and optimizer.steps == 0
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_a_parameter_on_which_no_loss_of_this_step_depends_has_no_gradient_left_from_the_last():
    model, alike = Net(), Net()
    optimizer, expected = optimizer_for(model, weight_decay=0.0), optimizer_for(alike, weight_decay=0.0)
    backward(model, 0)
    optimizer.zero_grad()  # as if that step had not been made
    model.norm.weight.sum().backward()
    alike.norm.weight.sum().backward()

    one, two = (each.step(lr=0.1, beta2=0.95, clip=0.0) for each in (optimizer, expected))

    assert one.grad_norm == two.grad_norm == pytest.approx(model.norm.weight.numel() ** 0.5)
    assert torch.equal(model.up.weight, alike.up.weight)
