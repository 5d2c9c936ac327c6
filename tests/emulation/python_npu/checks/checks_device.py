"""The stand-in itself, in the process that has it: nothing is judged by one that computes or refuses wrongly."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.distributed as dist
import torch_npu
from python_npu import fused, runtime
from python_npu.ledger import LEDGER, ROOT

from evocore.backends.npu.collectives import NPUCollectives
from evocore.backends.npu.device import NPUBackend
from evocore.testing.conformance.device import DEVICE_CHECKS, check_device

sys.path.insert(0, str(ROOT / "ci" / "npu_contract"))
import fused_checks  # noqa: E402 - what the real torch_npu on stand-in libraries must pass, too

NPU = torch.device("npu", 0)
MASK = torch.ones(2048, 2048, dtype=torch.bool).triu(1).to(NPU)
NOT_HERE = (
    fused_checks.packed_attention,  # has rows that see nothing, which is refused here
    fused_checks.attention_drops_the_same_in_backward,  # there is no dropout here
)
BACKEND = NPUBackend()


@pytest.mark.parametrize("check", [x for x in fused_checks.CHECKS if x not in NOT_HERE], ids=lambda x: x.__name__)
def test_fused_operators_give_values_and_gradients_of_their_formulas(check):
    check()


def ones(*sizes, dtype=torch.float32, **options):
    return torch.ones(sizes, dtype=dtype, device=NPU, **options)


def attention(heads=2, layout="TND", width=16, q=None, **options):
    q = ones(4, 2, width) if q is None else q
    ends = {"actual_seq_qlen": [4], "actual_seq_kvlen": [4]} if layout == "TND" else {}
    return torch_npu.npu_fusion_attention(q, ones(4, 1, width), ones(4, 1, width), heads, layout, **ends | options)


REFUSALS = {
    "head_num must > 0": lambda: attention(heads=0),
    "The input_layout should be": lambda: attention(layout="THD"),
    r"The keep_prob value must be in range of \(0, 1\]": lambda: attention(keep_prob=0.0),
    r"The sparse_mode value must be in range of \[0,5\) or \(5,8\]": lambda: attention(sparse_mode=5),
    "must be the same and cannot be empty": lambda: attention(actual_seq_kvlen=[2, 4]),
    "not at 3": lambda: attention(actual_seq_qlen=[3]),
    "grows": lambda: attention(actual_seq_qlen=[5, 4], actual_seq_kvlen=[2, 4]),
    "wants a mask of 2048 x 2048": lambda: attention(sparse_mode=3, atten_mask=MASK[:8, :8]),
    "true is masked": lambda: attention(sparse_mode=3, atten_mask=~MASK),
    "queries see none": lambda: attention(
        sparse_mode=3, atten_mask=MASK, actual_seq_qlen=[3, 4], actual_seq_kvlen=[1, 4]
    ),
    "up to 1024 documents": lambda: attention(
        q=ones(1025, 2, 16), actual_seq_qlen=list(range(1, 1026)), actual_seq_kvlen=[4] * 1025
    ),
    "one dtype": lambda: attention(q=ones(4, 2, 16).half()),
    "up to 768 features": lambda: attention(width=784),
    "same device": lambda: attention(atten_mask=MASK.cpu(), sparse_mode=3),
    "2 to 8 dimensions": lambda: torch_npu.npu_rms_norm(ones(4), ones(4)),
    "x1 is not empty": lambda: torch_npu.npu_add_rms_norm(ones(0, 4), ones(0, 4), ones(4)),
    "should be half or interleave": lambda: torch_npu.npu_rotary_mul(
        ones(2, 1, 4), ones(2, 1, 4), ones(2, 1, 4), "x"
    ),
    "even and below 896": lambda: torch_npu.npu_rotary_mul(ones(2, 1, 896), ones(2, 1, 896), ones(2, 1, 896)),
    "contiguous": lambda: torch_npu.npu_swiglu(ones(4, 6).t()),
    "split_item": lambda: torch_npu.npu_grouped_matmul(
        [ones(2, 3)], [ones(1, 3, 4)], group_list=torch.tensor([2]).to(NPU), group_type=0, split_item=0
    ),
    "below 65536": lambda: torch_npu.npu_grouped_matmul(
        [ones(2, 65536)], [ones(1, 65536, 1)], group_list=torch.tensor([2]).to(NPU), group_type=0, split_item=3
    ),
    "indices are int64": lambda: torch_npu.npu_moe_token_permute(
        ones(2, 4, dtype=torch.bfloat16), ones(2, 1, dtype=torch.int32)
    ),
}


@pytest.mark.parametrize("text", REFUSALS)
def test_documented_constraints_are_errors(text):
    with pytest.raises(RuntimeError, match=text):
        REFUSALS[text]()


@pytest.mark.parametrize("call", [
    lambda: torch_npu.npu_rms_norm(ones(2, 4), ones(4), eps=1e-6),
    lambda: torch_npu.npu_swiglu(ones(2, 4), -1, 0),
    lambda: attention(actual_seq_qlen=torch.tensor([4])),
])  # fmt: skip
def test_a_call_that_the_real_schema_does_not_take_is_an_error(call):
    with pytest.raises((RuntimeError, TypeError)):
        call()


def test_causality_without_the_mask_is_silently_lost_as_on_the_device():
    assert torch.equal(attention(sparse_mode=3)[0].cpu(), attention()[0].cpu())


def test_what_torch_npu_does_not_differentiate_raises_or_yields_nothing():
    x = ones(2, 4, requires_grad=True)
    with pytest.raises(NotImplementedError, match="derivative for npu::npu_add_rms_norm is not implemented"):
        torch_npu.npu_add_rms_norm(x, ones(2, 4), ones(4))[0].sum().backward()
    ends = torch.tensor([2]).to(NPU)
    with pytest.warns(UserWarning, match="npu_grouped_matmul"):
        torch_npu.npu_grouped_matmul([x], [ones(1, 4, 3)], group_list=ends, group_type=0, split_item=3)[
            0
        ].sum().backward()
    assert x.grad is None


def test_schemas_are_those_of_the_dispatcher():
    for name, description in fused.DESCRIPTIONS.items():
        assert description["gradient"] in ("autograd", "raises", "none")
        assert str(getattr(torch.ops.npu, name).default._schema) == f"npu::{description['schema']}"


def test_double_precision_does_not_reach_the_device():
    for make in (lambda: torch.ones(2, dtype=torch.float64).to(NPU), lambda: ones(2).double()):
        with pytest.raises(RuntimeError, match="double precision"):
            make()


def test_fresh_memory_holds_no_number_and_is_counted():
    before = torch.npu.memory_allocated()
    x = torch.empty(1000, device=NPU)
    assert torch.npu.memory_allocated() == before + 4096 and x.isnan().all()
    del x
    assert torch.npu.memory_allocated() == before


def test_tensors_of_host_and_device_do_not_mix():
    with pytest.raises(RuntimeError, match="same device"):
        ones(2) + torch.ones(2)


def test_every_wait_is_noted():
    x, host = ones(3), torch.zeros(3)
    waits = (
        x.sum().item,
        x.cpu,
        x.tolist,
        lambda: host.copy_(x),
        lambda: x[x > 0],
        lambda: bool((x > 0).all()),
        x.nonzero,
    )
    for wait in waits:
        LEDGER.clear()
        wait()
        assert LEDGER.waits
    LEDGER.clear()
    x.add_(1).softmax(0).view(3, 1).expand(3, 3).contiguous()
    torch.arange(5).to(NPU)
    assert LEDGER.waits == []


@pytest.mark.parametrize("name", DEVICE_CHECKS)
def test_the_backend_keeps_the_devices_contract(name):
    finding = check_device(BACKEND, name)
    expected = "not claimed" if name == "peak_flops" else "passed"
    assert finding.verdict == expected, finding.what


def test_the_backend_settles_how_operators_are_compiled():
    BACKEND.set_device(NPU)
    assert runtime.config.given == {"jit_compile": False, "allow_internal_format": False}
    with pytest.raises(AttributeError):
        _ = torch.npu.config.allow_internal_format


def test_streams_and_events_are_torch_npus():
    stream, event = BACKEND.stream(NPU), BACKEND.event()
    with BACKEND.on_stream(stream):
        assert BACKEND.current_stream(NPU) is stream
        event.record()
    assert BACKEND.current_stream(NPU) is not stream and event.query()
    BACKEND.current_stream(NPU).wait_stream(stream)
    BACKEND.synchronize(NPU)


def test_collectives_go_over_hccl_with_a_buffer_of_the_groups_size(tmp_path):
    dist.init_process_group(
        BACKEND.process_group_backend, init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        collectives, group = NPUCollectives(), BACKEND.new_group([0])
        assert BACKEND.group_options(8).hccl_config == {"hccl_buffer_size": 64}
        assert BACKEND.group_options(9).hccl_config == {"hccl_buffer_size": 200}
        for dtype in sorted(collectives.dtypes(), key=str):
            x = torch.tensor([1, 2, 3]).to(dtype).to(NPU)
            shard, whole = torch.empty_like(x), torch.empty_like(x)
            collectives.all_reduce(x, group).wait()
            collectives.reduce_scatter(shard, x, group, asynchronous=True).wait()
            collectives.all_gather(whole, shard, group).wait()
            assert whole.tolist() == [1, 2, 3] and whole.dtype == dtype
        for dtype in (torch.bool, torch.uint8):
            x = ones(2, dtype=dtype)
            with pytest.raises(ValueError, match="convert the tensor"):
                collectives.reduce_scatter(torch.empty_like(x), x, group)
            with pytest.raises(RuntimeError, match="Unsupported data type"):
                dist.reduce_scatter_tensor(torch.empty_like(x), x)
        assert collectives.agree("x", group) == ["x"]
    finally:
        dist.destroy_process_group()
