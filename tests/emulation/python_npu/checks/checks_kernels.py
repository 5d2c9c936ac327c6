"""Every kernel that is offered for the NPU and can run on the stand-in, against its contract."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from python_npu.ledger import LEDGER, Described

from evocore.backends.npu.device import NPUBackend
from evocore.backends.npu.kernels import KERNELS
from evocore.kernels.attention import npu_kernel
from evocore.ops.attention import CuSeqlens
from evocore.ops.kernel import Kernel
from evocore.plugins.manager import load_plugins
from evocore.testing.conformance import Case, Checker, case_named, cases
from evocore.testing.conformance.choices import PREFIX, Choices
from evocore.testing.conformance.grid import drawn_case

CHECKER = Checker(load_plugins().kernels(), NPUBackend())
PROVIDERS = ("npu", "native", "one_pass", "chunked")
DRAWS = 4
"""Drawn cases that a fused kernel must serve."""
LARGER = {"attention": ("documents-heads-of-64", "full-cache-heads-of-96")}
"""Of the fused kernels, beside the small ones, which have few heads that the operator takes."""
FUSED_CALLS = {
    "attention": {"npu_fusion_attention", "npu_fusion_attention_grad"},
    "attention_block": {"npu_fusion_attention", "npu_fusion_attention_grad"},
    "rms_norm": {"npu_rms_norm", "npu_rms_norm_backward"},
    "add_rms_norm": {"npu_add_rms_norm", "npu_rms_norm", "npu_rms_norm_backward"},
    "rotary": {"npu_rotary_mul", "npu_rotary_mul_backward"},
    "swiglu": {"npu_swiglu", "npu_swiglu_backward"},
    "geglu": {"npu_geglu", "npu_geglu_grad"},
    "grouped_linear": {"npu_grouped_matmul"},
    "moe_permute": {"npu_moe_token_permute", "npu_moe_token_permute_grad_v2"},
    "moe_unpermute": {"npu_moe_token_unpermute"},
}
ID = "{0.op}-{0.provider}".format


def _served_draws(kernel: Kernel) -> list[Case]:
    drawn = (drawn_case(kernel.op, Choices.random(0, kernel.op, index)) for index in range(2000))
    return list(islice((case for case in drawn if kernel.supports(case.make(torch.float32).request) is None), DRAWS))


@pytest.mark.parametrize("kernel", [k for k in CHECKER.offered() if k.provider in PROVIDERS], ids=ID)
def test_kernels_keep_their_contracts(kernel):
    """Small cases; in the first dtype also drawn ones, and thoroughly. PyTorch's operators, which the tests of the
    CPU know in every dtype, in the first one alone; float16 in representative cases."""
    LEDGER.clear()
    fused, served, dtypes = kernel.provider == "npu", 0, CHECKER.dtypes(kernel)
    for dtype in dtypes if fused else dtypes[:1]:
        first = dtype == dtypes[0]
        chosen = [case for case in cases(kernel.op, dtype) if dtype != torch.float16 or case.representative]
        if fused and first:
            chosen += [case_named(kernel.op, label) for label in LARGER.get(kernel.op, ())] + _served_draws(kernel)
        for case in chosen:
            thorough = first and (case.representative or case.label.startswith(PREFIX))
            served += CHECKER.check(kernel, case, dtype, thorough=thorough).refused is None
    assert served
    if fused:
        assert served >= DRAWS
        assert {call.name for call in LEDGER.fused} == FUSED_CALLS[kernel.op]
        assert not [wait for wait in LEDGER.waits if wait.startswith("kernels/") and "npu_kernel" in wait]


def test_there_is_a_check_for_each_fused_kernel():
    assert {kernel.op for kernel in KERNELS if kernel.provider == "npu"} == set(FUSED_CALLS)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, {"sparse_mode": 3}),
        ({"window": 5}, {"sparse_mode": 4, "pre_tockens": 4, "next_tockens": 0}),
        ({"causal": False}, {"sparse_mode": 0, "atten_mask": None}),
    ],
)
def test_attention_says_what_the_operator_wants(options, told):
    """Forward and backward alike: mode, the one mask of 2048 x 2048, and the ends of documents as host numbers."""
    documents = CuSeqlens.of([0, 7, 7, 19], "npu")
    q, k, v = (torch.randn(19, heads, 32).to("npu").requires_grad_() for heads in (4, 2, 2))
    LEDGER.clear()
    out = npu_kernel.attention(q, k, v, q_documents=documents, k_documents=documents, **options)
    out.backward(torch.ones_like(out))
    assert all(x.grad is not None for x in (q, k, v))
    assert LEDGER.waits == []
    mask = {"atten_mask": Described((2048, 2048), torch.bool, "npu")}
    parts = [([7], 7), ([12], 12)]  # the document without tokens parts them
    calls = [call.arguments for call in LEDGER.fused]
    assert [call.name for call in LEDGER.fused] == ["npu_fusion_attention"] * 2 + ["npu_fusion_attention_grad"] * 2
    for arguments, (ends, tokens) in zip(calls, parts * 2, strict=True):
        expected = {"input_layout": "TND", "head_num": 4, "actual_seq_qlen": ends, "actual_seq_kvlen": ends}
        expected |= mask | told
        assert {name: arguments[name] for name in expected} == expected
        assert arguments["query"] == Described((tokens, 4, 32), torch.float32, "npu")
        assert arguments.get("scale", arguments.get("scale_value")) == pytest.approx(32**-0.5)


def test_more_documents_than_the_operator_takes_go_to_it_in_parts():
    documents = CuSeqlens.of(range(2501), "npu")
    q = torch.ones(2500, 1, 16).to("npu")
    LEDGER.clear()
    out = npu_kernel.attention(q, q, q, q_documents=documents, k_documents=documents)
    assert torch.equal(out.cpu(), q.cpu())
    assert [len(call.arguments["actual_seq_qlen"]) for call in LEDGER.fused] == [1000, 1000, 500]
