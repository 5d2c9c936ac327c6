"""Triton kernels of rows: seams between programs, wide rows, views, and what a GPU's compiler makes of them.

What they compute is held against the float64 reference; the grid of cases that every kernel must serve is elsewhere.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton decides when it is imported

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton_compile import SHARED_LIMIT, compile_for_hopper, launches_of

from evocore.backends.cuda.launch import CUDA_LAUNCH
from evocore.kernels.geglu import reference as geglu_reference
from evocore.kernels.geglu import triton_kernel as geglu_triton
from evocore.kernels.launch import INTERPRETER, Launch
from evocore.kernels.rms_norm import reference as norm_reference
from evocore.kernels.rms_norm import triton_kernel as norm_triton
from evocore.kernels.rotary import reference as rotary_reference
from evocore.kernels.rotary import triton_kernel as rotary_triton
from evocore.kernels.swiglu import reference as swiglu_reference
from evocore.kernels.swiglu import triton_kernel as swiglu_triton

Call = Callable[..., Any]
REFERENCES: dict[str, Call] = {
    "rms_norm": partial(norm_reference.rms_norm, eps=1e-5),
    "rms_norm-offset": partial(norm_reference.rms_norm, eps=1e-5, unit_offset=True),
    "add_rms_norm": partial(norm_reference.add_rms_norm, eps=1e-5),
    "rotary": rotary_reference.rotary,
    "rotary-interleaved": partial(rotary_reference.rotary, interleaved=True),
    "swiglu": swiglu_reference.swiglu,
    "geglu-tanh": geglu_reference.geglu,
    "geglu-none": partial(geglu_reference.geglu, approximate="none"),
}
HOPPER = replace(CUDA_LAUNCH, units=lambda device: 132)
KERNELS = (
    "evocore.kernels.rms_norm.triton_kernel:_forward",
    "evocore.kernels.rms_norm.triton_kernel:_backward",
    "evocore.kernels.rotary.triton_kernel:_rotate",
    "evocore.kernels.swiglu.triton_kernel:_forward",
    "evocore.kernels.swiglu.triton_kernel:_backward",
)


def triton_of(name: str, launch: Launch) -> Call:
    return {
        "rms_norm": partial(norm_triton.rms_norm(launch), eps=1e-5),
        "rms_norm-offset": partial(norm_triton.rms_norm(launch), eps=1e-5, unit_offset=True),
        "add_rms_norm": partial(norm_triton.add_rms_norm(launch), eps=1e-5),
        "rotary": rotary_triton.rotary(launch),
        "rotary-interleaved": partial(rotary_triton.rotary(launch), interleaved=True),
        "swiglu": swiglu_triton.swiglu(launch),
        "geglu-tanh": geglu_triton.geglu(launch),
        "geglu-none": partial(geglu_triton.geglu(launch), approximate="none"),
    }[name]


def inputs_of(name: str, tokens: int, width: int) -> tuple[list[Tensor], list[Tensor]]:
    """The differentiable tensors and the others, float64, of values that float32 holds exactly."""
    generator = torch.Generator().manual_seed(tokens * 1000 + width)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).double()

    if name.startswith("rotary"):
        angles = randn(tokens, width // 3).float()
        return [randn(tokens, 6, width)], [angles.cos().double(), angles.sin().double()]
    if name.endswith("glu") or name.startswith("geglu"):
        return [randn(tokens, width), randn(tokens, width)], []
    activations = [randn(tokens, width) for _ in range(2 if name == "add_rms_norm" else 1)]
    return [*activations, randn(width)], []


def results(function: Call, inputs: list[Tensor], constants: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Outputs and the gradients of a sum of all of them with weights that are all different."""
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    returned = function(*inputs, *(x.to(dtype) for x in constants))
    outputs = returned if isinstance(returned, tuple) else (returned,)
    upstream = [torch.linspace(-1, 1 + n, x.numel(), dtype=dtype).view_as(x) for n, x in enumerate(outputs)]
    return [x.detach() for x in outputs] + list(torch.autograd.grad(outputs, inputs, upstream))


def assert_like_the_reference(name: str, launch: Launch, tokens: int, width: int) -> None:
    inputs, constants = inputs_of(name, tokens, width)
    expected = results(REFERENCES[name], inputs, constants, torch.float64)
    found = results(triton_of(name, launch), inputs, constants, torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        largest = max([1.0, *theirs.abs().flatten().tolist()])
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=2e-6 * largest)


@pytest.mark.parametrize("name", ("rms_norm", "add_rms_norm", "swiglu"))
@pytest.mark.parametrize("width", (32768, 5000))
def test_wide_rows(name: str, width: int):
    assert_like_the_reference(name, INTERPRETER, 3, width)


@pytest.mark.parametrize("name", REFERENCES)
@example(tokens=20, width=17, units=2, elements=32)
@settings(deadline=None, max_examples=6)
@given(
    tokens=st.integers(0, 20),
    width=st.integers(1, 20),
    units=st.integers(1, 3),
    elements=st.sampled_from([32, 128, 1024]),
)
def test_no_seam_between_programs_shows(name: str, tokens: int, width: int, units: int, elements: int):
    """Tiles from half a row to many rows, fewer and more of them than programs."""
    launch = replace(INTERPRETER, units=lambda device: units, elements=elements)
    assert_like_the_reference(name, launch, tokens, 3 * width if name.startswith("rotary") else width)


@pytest.mark.parametrize("name", ("rms_norm", "add_rms_norm"))
def test_the_gradient_of_the_weight_has_the_same_bits_every_time(name: str):
    inputs, constants = inputs_of(name, 64, 33)
    launch = replace(INTERPRETER, units=lambda device: 3, elements=64)
    first, second = (results(triton_of(name, launch), inputs, constants, torch.float32) for _ in range(2))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, second, strict=True))


class Copies(TorchDispatchMode):
    """Which operators that copy were called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten._to_copy):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", REFERENCES)
def test_views_into_a_fused_projection_are_not_copied(name: str):
    """As gate and up are, or queries and keys; a layout with its elements apart is copied: we do look."""
    inputs, constants = inputs_of(name, 5, 12)
    fused = [torch.cat((x, x, x), -1).float() for x in inputs]
    views = [x[..., x.shape[-1] // 3 : -(x.shape[-1] // 3)] if x.dim() > 1 else x[:12] for x in fused]
    apart = [x.float().transpose(0, -1).contiguous().transpose(0, -1) for x in inputs]
    expected = results(REFERENCES[name], inputs, constants, torch.float64)
    angles = [x.float() for x in constants]
    for activations, copied in ((views, False), (apart, True)):
        activations = [x.requires_grad_() for x in activations]
        with Copies() as copies:
            returned = triton_of(name, INTERPRETER)(*activations, *angles)
        outputs = list(returned) if isinstance(returned, tuple) else [returned]
        for ours, theirs in zip(outputs, expected, strict=False):
            torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=1e-5)
        assert bool(copies.seen) == copied


@pytest.mark.parametrize("wanted", ((True, False, False), (False, True, False), (False, False, True), (False,) * 3))
@pytest.mark.parametrize("residual", (torch.float32, torch.float16))
def test_add_rms_norm_differentiates_what_is_asked_for(wanted: tuple[bool, ...], residual: torch.dtype):
    inputs, _ = inputs_of("add_rms_norm", 5, 24)
    dtypes = (torch.float16, residual, torch.float32)
    inputs = [x.to(dtype).requires_grad_(asked) for x, dtype, asked in zip(inputs, dtypes, wanted, strict=True)]
    y_TD, s_TD = triton_of("add_rms_norm", INTERPRETER)(*inputs)
    assert (y_TD.dtype, s_TD.dtype) == (torch.float16, residual)
    assert y_TD.requires_grad == s_TD.requires_grad == any(wanted)
    if any(wanted):
        (y_TD.float().square().sum() + s_TD.float().sum()).backward()
        ours = [x.grad for x in inputs]
        theirs = [x.detach().double().requires_grad_() for x in inputs]
        y_TD, s_TD = REFERENCES["add_rms_norm"](*theirs)
        (y_TD.square().sum() + s_TD.sum()).backward()
        for found, x, asked in zip(ours, theirs, wanted, strict=True):
            assert (found is not None) == asked
            if found is not None:
                torch.testing.assert_close(found.double(), x.grad, rtol=4e-3, atol=2e-2)


def test_the_sum_of_add_rms_norm_alone_passes_its_gradient_on():
    x, residual, weight = (x.float().requires_grad_() for x in inputs_of("add_rms_norm", 4, 8)[0])
    _, s_TD = triton_of("add_rms_norm", INTERPRETER)(x, residual, weight)
    upstream = torch.arange(32.0).view(4, 8)
    s_TD.backward(upstream)
    assert torch.equal(x.grad, upstream) and torch.equal(residual.grad, upstream) and weight.grad is None
    x.grad.zero_()
    assert torch.equal(residual.grad, upstream), "two gradients in one tensor"


def test_backward_leaves_the_incoming_gradient_alone():
    for name in REFERENCES:
        inputs, constants = inputs_of(name, 3, 12)
        returned = triton_of(name, INTERPRETER)(
            *(x.float().requires_grad_() for x in inputs), *(x.float() for x in constants)
        )
        outputs = returned if isinstance(returned, tuple) else (returned,)
        upstream = [torch.ones_like(x) for x in outputs]
        torch.autograd.backward(outputs, upstream)
        assert all(torch.equal(x, torch.ones_like(x)) for x in upstream), name


def in_earnest(name: str, dtype: torch.dtype, width: int) -> None:
    """Forward and backward of 8192 tokens, on the meta device."""
    meta = partial(torch.empty, device="meta", dtype=dtype, requires_grad=True)
    inputs: list[Tensor]
    if name.startswith("rotary"):
        angles = [torch.empty(8192, 64, device="meta") for _ in range(2)]
        inputs = [meta(8192, 40 * width)[:, : 32 * width].unflatten(1, (32, width)), *angles]
    elif name in ("rms_norm", "rms_norm-offset", "add_rms_norm"):
        residual = [torch.empty(8192, width, device="meta", requires_grad=True)] if name == "add_rms_norm" else []
        inputs = [meta(8192, width), *residual, meta(width)]
    else:
        inputs = list(meta(8192, 2 * width).chunk(2, -1))
    returned = triton_of(name, HOPPER)(*inputs)
    outputs = returned if isinstance(returned, tuple) else (returned,)
    torch.autograd.backward(outputs, [torch.empty_like(x) for x in outputs])


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_a_hopper_gpu_has_room_for_every_kernel(dtype: torch.dtype):
    """Bytes travel 16 at a time and no register is spilled; norms of rows beyond 8192 may overflow a unit's."""
    sizes = {"rms_norm": (128, 32768), "rms_norm-offset": (5120,), "add_rms_norm": (4096, 8192)}
    sizes |= {"rotary": (128,), "rotary-interleaved": (160,), "swiglu": (11008,), "geglu-none": (24576,)}
    wanted = [
        (name, width, launched)
        for name, widths in sizes.items()
        for width in widths
        for launched in launches_of(*KERNELS, by=partial(in_earnest, name, dtype, width))
    ]
    assert len(wanted) == 2 * sum(map(len, sizes.values()))
    compiled = compile_for_hopper(*(launched for _, _, launched in wanted))
    for (name, width, launched), found in zip(wanted, compiled, strict=True):
        told = f"{name} {width} {launched}: {found.registers} registers, {found.spills} bytes spilled, {found.shared}"
        assert found.shared <= SHARED_LIMIT, told
        assert found.spills == 0 or "norm" in name and width > 8192, told
        assert "global.v4" in found.ptx, told
