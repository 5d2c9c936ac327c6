"""A model on the stand-in: gradients of all parameters, losses of a whole run, and where the host waits in a step."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from python_npu.ledger import LEDGER, ROOT

from evocore.config import load_config
from evocore.ops.attention import CuSeqlens
from evocore.parallel.launch import LaunchEnvironment
from evocore.plugins.manager import load_plugins
from evocore.training.assembly import make_plan
from evocore.training.observer import Observer
from evocore.training.run import train

CONFIG = ROOT / "ci" / "npu_contract" / "tiny.py"
STEPS = 4
EVERY_STEP = ("evocore/training/trainer.py", "evocore/training/optimizer.py", "evocore/training/metrics.py")
"""Files that may read from the device in a step: the agreement before it, the gradient norm, what is reported."""


class Spy(Observer):
    """Keeps losses and gradient norms, and the waits of each step."""

    def __init__(self):
        self.figures, self.waits = [], []

    def on_start(self, start):
        LEDGER.clear()

    def on_step(self, metrics):
        self.figures.append((metrics["loss"], metrics["grad_norm"]))
        self.waits.append(list(LEDGER.waits))
        LEDGER.clear()


def run(backend, folder):
    spy = Spy()
    loaded = load_config(CONFIG, [f"data.total_steps={STEPS}", f"run_folder={str(folder)!r}"])
    train(loaded, load_plugins(), LaunchEnvironment(), backend=backend, observers=[spy])
    return spy


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {backend: run(backend, tmp_path_factory.mktemp(backend)) for backend in ("cpu", "npu")}


def test_losses_and_gradient_norms_are_those_of_the_cpu(runs):
    assert len(runs["npu"].figures) == STEPS
    for here, there in zip(runs["npu"].figures, runs["cpu"].figures, strict=True):
        assert here == pytest.approx(there, rel=1e-5)


def test_a_step_waits_for_the_device_only_where_it_must(runs):
    first, *rest = (Counter(wait.partition(":")[0] for wait in waits) for waits in runs["npu"].waits)
    assert all(waits == first for waits in rest)
    assert first and set(first) <= set(EVERY_STEP), first


def gradients(backend, dtype):
    """Of every parameter after one loss over three documents; and the model's kernels."""
    plan = make_plan(load_config(CONFIG, [f"model.dtype={dtype!r}"]).config, load_plugins(), backend=backend)
    device = plan.backend.device()
    model = plan.materialise(device, 3)
    tokens = torch.randint(128, (40,), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(length) for length in (9, 1, 30)])
    LEDGER.clear()
    hidden = model(tokens.to(device), positions.to(device), CuSeqlens.of([0, 9, 10, 40], device))
    model.loss(hidden, tokens.roll(-1).to(device)).total.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    kernels = {choice.request.op: choice.kernel.provider for choice in plan.resolution.choices}
    waits = list(LEDGER.waits)
    return {name: parameter.grad.float().cpu() for name, parameter in model.named_parameters()}, kernels, waits


def test_every_parameter_gets_the_gradient_that_it_gets_on_the_cpu():
    found, kernels, waits = gradients("npu", "torch.float32")
    fused = {call.name for call in LEDGER.fused}
    expected, _, _ = gradients("cpu", "torch.float32")
    assert kernels == {
        "attention": "npu", "add_rms_norm": "npu", "rms_norm": "npu", "rotary": "npu", "swiglu": "npu",
        "linear_cross_entropy": "chunked", "adamw": "native",
    }  # fmt: skip
    assert not waits, "forward and backward must not wait for the device"
    assert fused == {
        "npu_fusion_attention", "npu_fusion_attention_grad", "npu_add_rms_norm", "npu_rms_norm",
        "npu_rms_norm_backward", "npu_rotary_mul", "npu_rotary_mul_backward", "npu_swiglu", "npu_swiglu_backward",
    }  # fmt: skip
    for name, gradient in found.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_every_parameter_gets_a_gradient_in_bfloat16():
    found, _, waits = gradients("npu", "torch.bfloat16")
    exact, _, _ = gradients("cpu", "torch.float32")
    assert not waits
    for name, gradient in found.items():
        apart = (gradient - exact[name]).norm() / exact[name].norm()
        assert apart < 0.1, (name, apart)
