"""Checks the stand-in for CANN before it judges anything: on it torch_npu computes what PyTorch does on the CPU."""

from __future__ import annotations

import copy
import math

import fused_checks
import torch
import torch.nn.functional as F
from checking import NPU, randn, refuses
from standin_cann.opapi import calls
from torch import nn

# --- the device -----------------------------------------------------------------------------------------------------


def device_memory_streams() -> None:
    assert torch.npu.get_device_name(0) == "Ascend910B1" and torch.npu.is_bf16_supported()
    before = torch.npu.memory_allocated(NPU)
    block = torch.empty(2**20, dtype=torch.float32, device=NPU)
    assert torch.npu.memory_allocated(NPU) - before >= 4 * 2**20
    assert block.isnan().all(), "memory that nobody wrote is NaN"
    try:
        torch.empty(64 * 2**30, dtype=torch.uint8, device=NPU)
        raise AssertionError("more memory than the device has")
    except torch.OutOfMemoryError:
        pass
    side = torch.npu.Stream()
    side.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(side):
        doubled = torch.ones(3, device=NPU) * 2
    torch.npu.current_stream().wait_stream(side)
    doubled.record_stream(torch.npu.current_stream())
    assert doubled.tolist() == [2, 2, 2]
    refuses("same device", lambda: torch.ones(2, device=NPU) + torch.ones(2))


def random_numbers() -> None:
    torch.npu.manual_seed(5)
    state = torch.npu.get_rng_state()
    first, second = torch.rand(64, device=NPU), torch.rand(64, device=NPU)
    assert not torch.equal(first, second)
    torch.npu.set_rng_state(state)
    assert torch.equal(torch.rand(64, device=NPU), first)
    dropped = F.dropout(torch.ones(4096, device=NPU), 0.25)
    kept = dropped != 0
    assert 0.70 < kept.float().mean().item() < 0.80 and torch.allclose(dropped[kept], torch.tensor(4 / 3, device=NPU))


# --- training -------------------------------------------------------------------------------------------------------


def transformer_steps_equal_the_cpus() -> None:
    torch.manual_seed(0)
    there = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    here = copy.deepcopy(there).to(NPU)
    optimizers = [torch.optim.AdamW(m.parameters(), 1e-3, fused=m is here) for m in (here, there)]
    for _ in range(4):
        batch = torch.randn(2, 8, 32)
        losses = []
        for model, optimizer in zip((here, there), optimizers, strict=True):
            loss = model(batch.to(next(model.parameters()).device)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert math.isclose(*losses, rel_tol=1e-6), losses
    assert calls["aclnnApplyAdamWV2"] and calls["aclnnFlashAttentionScore"], calls


def fused_adamw_equals_the_formula() -> None:
    start, grads = randn(64), [randn(64) * scale for scale in (1, 0.1, 3)]
    parameters = [nn.Parameter(start.clone().to(device)) for device in (NPU, torch.device("cpu"))]
    optimizers = [torch.optim.AdamW([p], 0.01, weight_decay=0.1, fused=p.device == NPU) for p in parameters]
    for grad in grads:
        for parameter, optimizer in zip(parameters, optimizers, strict=True):
            parameter.grad = grad.to(parameter.device)
            optimizer.step()
    torch.testing.assert_close(parameters[0].cpu(), parameters[1], rtol=1e-6, atol=1e-6)


CHECKS = (
    device_memory_streams,
    random_numbers,
    transformer_steps_equal_the_cpus,
    fused_adamw_equals_the_formula,
    *fused_checks.CHECKS,
)


def main() -> None:
    torch.npu.set_device(NPU)
    for function in CHECKS:
        function()
        print(f"  {function.__name__.replace('_', ' ')}: passed", flush=True)
    print(f"  {len(CHECKS)} checks; aclnn functions called: {len(calls)}")


if __name__ == "__main__":
    main()
