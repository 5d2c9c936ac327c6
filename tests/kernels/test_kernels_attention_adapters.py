"""Adapters to libraries of NVIDIA GPUs, on stand-ins that ask what the libraries ask."""

from __future__ import annotations

import importlib
from itertools import accumulate

import cuda_stand_ins as stand_ins
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import _cur_sdpa_kernel_backends

from evocore.kernels.attention import flash_attn_2, flash_attn_3, flash_attn_4, packed, sdpa, torch_best, varlen
from evocore.kernels.attention import reference as attention_reference
from evocore.ops.attention import CuSeqlens, merge_attention

N, K, H = 4, 2, 8
SEVERAL, CACHE = [3, 0, 5, 1], [4, 2, 5, 6]
CASES = {
    "documents": (SEVERAL, SEVERAL, {}),
    "full": (SEVERAL, SEVERAL, {"causal": False}),
    "cache": (SEVERAL, CACHE, {}),
    "no-keys": ([2, 3], [0, 4], {"causal": False}),
    "window": ([9, 4], [9, 4], {"window": 3}),
    "window-of-itself": ([6], [6], {"window": 1}),
    "window-cache": (SEVERAL, CACHE, {"window": 2}),
    "window-without-causal": (SEVERAL, SEVERAL, {"window": 2, "causal": False}),
    "scale": ([8, 3], [8, 3], {"scale": 0.9}),
    "one-length": ([4, 4, 4], [4, 4, 4], {}),
    "one-query-each": ([1, 0, 1], [6, 2, 3], {"causal": False}),
}
SOFTCAP = (SEVERAL, CACHE, {"softcap": 1.5, "scale": 2.0, "window": 4})
WITH_SOFTCAP = ("flash-attn-2", "flash-attn-3", "early-flash-attn-3")


@pytest.fixture(params=[*WITH_SOFTCAP, "flash-attn-4", "native", "native-fixed-order", "torch-best"])
def adapter(request, monkeypatch):
    """Name and function of each kernel, its library in place."""
    name = request.param
    if name == "flash-attn-2":
        stand_ins.install(monkeypatch, *stand_ins.flash_attn_2())
        yield name, flash_attn_2.attention(deterministic=False)
    elif name.endswith("flash-attn-3"):
        stand_ins.install(monkeypatch, *stand_ins.flash_attn_3(returns_lse=name.startswith("early")))
        yield name, flash_attn_3.attention()
    elif name == "flash-attn-4":
        stand_ins.install(monkeypatch, *stand_ins.flash_attn_4())
        yield name, flash_attn_4.attention(deterministic=False)
    else:
        with stand_ins.aten_flash_attention():
            fixed = name == "native-fixed-order"
            yield name, torch_best.attention if name == "torch-best" else varlen.attention(deterministic=fixed)


def documents(lengths):
    return CuSeqlens.of([0, *accumulate(lengths)])


def tensors(queries, keys, layout=lambda x: x):
    generator = torch.Generator().manual_seed(5)
    shapes = ((sum(queries), N, H), (sum(keys), K, H), (sum(keys), K, H), (sum(queries), N, H))
    *inputs, grad = (torch.randn(shape, generator=generator) for shape in shapes)
    return [layout(x).requires_grad_() for x in inputs], grad


def with_gaps(x):
    return torch.stack((x, x + 1), -1).transpose(0, 1).contiguous().transpose(0, 1)[..., 0].detach()


def misplaced(x):
    """Contiguous rows that begin one element too late."""
    wide = torch.nn.functional.pad(x.flatten(), (1, 0))
    return wide[1:].view(x.shape)


def run(function, queries, keys, options, layout=lambda x: x):
    inputs, grad = tensors(queries, keys, layout)
    out = function(*inputs, q_documents=documents(queries), k_documents=documents(keys), **options)
    return out.detach(), torch.autograd.grad(out, inputs, grad, materialize_grads=True)


def check(function, case, layout=lambda x: x):
    queries, keys, options = case
    out, grads = run(function, queries, keys, options, layout)
    expected, expected_grads = run(attention_reference.attention, queries, keys, options)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_the_reference_does(adapter, case):
    check(adapter[1], CASES[case])


@pytest.mark.parametrize("adapter", WITH_SOFTCAP, indirect=True)
def test_it_caps_the_scores(adapter):
    check(adapter[1], SOFTCAP)


@pytest.mark.parametrize("layout", [with_gaps, misplaced])
def test_rows_that_the_library_cannot_read_are_copied(adapter, layout):
    check(adapter[1], CASES["cache"], layout)


@pytest.mark.parametrize("lengths", [([0], [0]), ([0, 0], [3, 0]), ([2, 1], [0, 0])])
def test_without_queries_or_keys_the_library_is_not_called(adapter, lengths):
    queries, keys = lengths
    out, grads = run(adapter[1], queries, keys, {"causal": False})
    assert out.shape == (sum(queries), N, H) and not out.any() and not stand_ins.calls
    assert [grad.shape[0] for grad in grads] == [sum(queries), sum(keys), sum(keys)]
    assert not any(grad.any() for grad in grads)


def test_the_library_is_told_what_the_host_knows(adapter):
    _, function = adapter
    q_documents, k_documents = documents(SEVERAL), documents(CACHE)
    (q, k, v), _ = tensors(SEVERAL, CACHE)
    function(q, k, v, q_documents=q_documents, k_documents=k_documents, window=4)
    (call,) = stand_ins.calls
    assert call.told["cu_seqlens_q"].data_ptr() == q_documents.device.data_ptr()
    assert call.told["cu_seqlens_k"].data_ptr() == k_documents.device.data_ptr()
    assert (call.told["max_seqlen_q"], call.told["max_seqlen_k"]) == (5, 6)
    assert call.told["causal"] is True and call.told["softmax_scale"] is None and call.told["softcap"] == 0.0
    if "window_size" in call.told:
        assert call.told["window_size"] == (3, 0)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_fixed_order_is_asked_for_as_each_library_wants(deterministic, monkeypatch):
    for modules, adapter in ((stand_ins.flash_attn_2(), flash_attn_2), (stand_ins.flash_attn_4(), flash_attn_4)):
        stand_ins.install(monkeypatch, *modules)
        run(adapter.attention(deterministic=deterministic), [4], [4], {})
        assert [call.told["deterministic"] for call in stand_ins.calls] == [deterministic]
    with stand_ins.aten_flash_attention():
        run(varlen.attention(deterministic=deterministic), [4], [4], {})
        assert [call.told["deterministic"] for call in stand_ins.calls if call.name == "backward"] == [deterministic]
    assert not torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory


# --- ring steps ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["native", "native-fixed-order", "flash-attn-2", "flash-attn-2-fixed-order"])
def block(request, monkeypatch):
    """Name and pair of each kernel, its library in place."""
    fixed = request.param.endswith("fixed-order")
    if request.param.startswith("native"):
        with stand_ins.aten_flash_attention():
            yield request.param, varlen.attention_block(deterministic=fixed)
    else:
        stand_ins.install(monkeypatch, *stand_ins.flash_attn_2())
        yield request.param, flash_attn_2.attention_block(deterministic=fixed)


def test_blocks_of_keys_add_up_to_attention(block):
    check_blocks(*block, softcap=None)


@pytest.mark.parametrize("block", ["flash-attn-2", "flash-attn-2-fixed-order"], indirect=True)
def test_blocks_of_keys_add_up_with_a_softcap(block):
    check_blocks(*block, softcap=1.5)


def check_blocks(name, pair, softcap):
    """The first keys of each document in one block, the rest in another; one document has no keys in the first."""
    queries, parts = [3, 4, 2], ([2, 0, 3], [3, 4, 2])
    whole = [sum(lengths) for lengths in zip(*parts, strict=True)]
    (q, k, v), grad = tensors(queries, whole)
    asked = [{"causal": False}, {"causal": True}]  # the last keys of each document are the queries' own
    cut = [size for sizes in zip(*parts, strict=True) for size in sizes]
    blocks = []
    for index, lengths in enumerate(parts):
        k_part, v_part = (torch.cat(x.detach().split(cut)[index::2]) for x in (k, v))
        lists = {"q_documents": documents(queries), "k_documents": documents(lengths), "softcap": softcap}
        blocks.append((k_part, v_part, lists | asked[index]))
    results = [pair.forward(q.detach(), k_part, v_part, **options) for k_part, v_part, options in blocks]
    assert results[0][1].shape == (sum(queries), N) and results[0][1].dtype == torch.float32
    assert torch.all(results[0][1][3:7] == -torch.inf) and not results[0][0][3:7].any()
    out, lse = merge_attention(*results[0], *results[1])
    expected = attention_reference.attention(
        q, k, v, q_documents=documents(queries), k_documents=documents(whole), softcap=softcap
    )
    torch.testing.assert_close(out, expected.detach(), rtol=1e-5, atol=1e-5)
    expected_grads = torch.autograd.grad(expected, (q, k, v), grad)
    grads = [pair.backward(grad, q.detach(), k, v, out, lse, **options) for k, v, options in blocks]
    torch.testing.assert_close(grads[0][0] + grads[1][0], expected_grads[0], rtol=1e-4, atol=1e-5)
    for position in (1, 2):
        pieces = [grads[index][position].split(parts[index]) for index in (0, 1)]
        joined = torch.cat([piece for pair_of in zip(*pieces, strict=True) for piece in pair_of])
        torch.testing.assert_close(joined, expected_grads[position], rtol=1e-4, atol=1e-5)
    told = [call.told["deterministic"] for call in stand_ins.calls if "backward" in call.name]
    assert told == [name.endswith("fixed-order")] * 2


def test_a_query_that_no_block_shows_a_key_has_no_gradient(block):
    """Its log-sum-exp is minus infinity here, and nothing may become a number that is none."""
    _, pair = block
    (q, k, v), grad = tensors([2, 3], [0, 4])
    options = {"q_documents": documents([2, 3]), "k_documents": documents([0, 4]), "causal": False}
    inputs = q.detach(), k.detach(), v.detach()
    out, lse = pair.forward(*inputs, **options)
    grads = pair.backward(grad, *inputs, out, lse, **options)
    assert torch.all(lse[:2] == -torch.inf) and not grads[0][:2].any() and all(x.isfinite().all() for x in grads)
    assert grads[0][2:].any()


def test_a_block_without_any_keys_is_no_block(block):
    _, pair = block
    (q, k, v), grad = tensors([2], [0])
    options = {"q_documents": documents([2]), "k_documents": documents([0]), "causal": False}
    inputs = q.detach(), k.detach(), v.detach()
    out, lse = pair.forward(*inputs, **options)
    grads = pair.backward(grad, *inputs, out, lse, **options)
    assert not out.any() and torch.all(lse == -torch.inf) and lse.shape == (2, N) and not stand_ins.calls
    assert [x.shape for x in grads] == [x.shape for x in inputs] and not any(x.any() for x in grads)


# --- which of PyTorch's ways --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queries", "keys", "options", "dense"),
    [
        ([4, 4], [4, 4], {}, True),
        ([4, 4], [4, 4], {"window": 4}, True),
        ([4, 4], [4, 4], {"window": 3}, False),
        ([4, 4], [4, 4], {"window": 3, "causal": False}, True),
        ([4, 4], [6, 6], {}, False),
        ([4, 4], [6, 6], {"causal": False}, True),
        ([4, 5], [4, 5], {}, False),
        ([4, 4], [4, 5], {"causal": False}, False),
        ([4, 0], [4, 0], {}, False),
        ([7], [7], {}, True),
    ],
)
def test_documents_of_one_length_are_one_dense_call(queries, keys, options, dense, monkeypatch):
    seen = []

    def recorded(*args, **kwargs):
        seen.append([x.shape for x in args])
        return attend(*args, **kwargs)

    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    with stand_ins.aten_flash_attention():
        run(torch_best.attention, queries, keys, options)
        assert [call.name for call in stand_ins.calls] == ([] if dense else ["forward", "backward"])
    count = len(queries)
    shapes = [(count, N, queries[0], H), (count, K, keys[0], H), (count, K, keys[0], H)]
    assert seen == ([shapes] if dense else [])


@pytest.mark.parametrize(
    ("capability", "cudnn", "tokens", "first"),
    [
        ((9, 0), 91900, 1000, "CUDNN_ATTENTION"),
        ((10, 0), 91900, 1000, "CUDNN_ATTENTION"),
        ((9, 0), 91002, 1024, "CUDNN_ATTENTION"),
        ((9, 0), 91002, 1000, None),
        ((9, 0), None, 1000, None),
        ((8, 0), 91900, 1024, None),
    ],
)
def test_cudnn_is_preferred_where_it_is_fast_and_to_be_trusted(capability, cudnn, tokens, first, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    sdpa._prefers_cudnn.cache_clear()
    before = _cur_sdpa_kernel_backends(with_priority=True)
    with sdpa.fastest(torch.device("cuda", 0), tokens, tokens):
        inside = _cur_sdpa_kernel_backends(with_priority=True)
    assert inside[0].name == first if first else inside == before
    assert _cur_sdpa_kernel_backends(with_priority=True) == before
    sdpa._prefers_cudnn.cache_clear()


def test_a_processor_is_left_to_pytorch():
    before = _cur_sdpa_kernel_backends(with_priority=True)
    with sdpa.fastest(torch.device("cpu"), 128, 128):
        assert _cur_sdpa_kernel_backends(with_priority=True) == before


@pytest.mark.parametrize("backends", [("MATH",), ("FLASH_ATTENTION", "MATH")])
@pytest.mark.parametrize("case", [case for case in CASES if case != "window-without-causal"])
def test_a_choice_of_implementations_computes_the_same(backends, case):
    check(sdpa.attention(backends), CASES[case])


def test_a_choice_is_only_made_for_the_call():
    before, seen = _cur_sdpa_kernel_backends(), []
    (q, k, v), _ = tensors([4], [4])
    one = documents([4])

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append([backend.name for backend in _cur_sdpa_kernel_backends()])
            return func(*args, **(kwargs or {}))

    with Spy():
        sdpa.attention(["MATH"])(q, k, v, q_documents=one, k_documents=one)
    assert seen and all(names == ["MATH"] for names in seen) and _cur_sdpa_kernel_backends() == before


def test_a_readable_tensor_is_not_copied():
    x = torch.randn(6, 4, 8)
    assert packed.readable(x) is x and packed.readable(x[1:, :2]).data_ptr() == x[1:].data_ptr()
    assert packed.readable(misplaced(x)).data_ptr() % 16 == 0 and packed.readable(with_gaps(x)).is_contiguous()


# --- apex ---------------------------------------------------------------------------------------------------------


def apex_module(monkeypatch, folder):
    stand_ins.install(monkeypatch, *stand_ins.apex())
    name = f"evocore.kernels.{folder}.apex"
    monkeypatch.delitem(importlib.import_module("sys").modules, name, raising=False)
    return importlib.import_module(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("unit_offset", [False, True])
def test_apex_rms_norm_rounds_once(dtype, unit_offset, monkeypatch):
    from evocore.kernels.rms_norm import reference

    module = apex_module(monkeypatch, "rms_norm")
    x, residual, weight = (torch.randn(shape).to(dtype).requires_grad_() for shape in ((5, 16), (5, 16), (16,)))
    options = {"eps": 1e-5, "unit_offset": unit_offset}
    for name, inputs in (("rms_norm", (x, weight)), ("add_rms_norm", (x, residual, weight))):
        outs = [getattr(found, name)(*inputs, **options) for found in (module, reference)]
        ours, theirs = (out if isinstance(out, tuple) else (out,) for out in outs)
        torch.testing.assert_close(ours, theirs, rtol=1.6e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
        ends = [torch.autograd.grad([out.float().square().sum() for out in each], inputs) for each in (ours, theirs)]
        torch.testing.assert_close(*ends, rtol=3e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)
    assert {call.told["weight"] for call in stand_ins.calls} == {torch.float32}
    assert {call.told["input"] for call in stand_ins.calls} == {dtype}


@pytest.mark.parametrize("bias", [False, True])
def test_apex_layer_norm(bias, monkeypatch):
    from evocore.kernels.layer_norm import reference

    module = apex_module(monkeypatch, "layer_norm")
    x, weight, shift = (torch.randn(shape, requires_grad=True) for shape in ((5, 16), (16,), (16,)))
    inputs = (x, weight, shift) if bias else (x, weight)
    outs = [found.layer_norm(*inputs, *([] if bias else [None]), eps=1e-5) for found in (module, reference)]
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), inputs) for out in outs))


def test_apex_norms_launch_nothing_for_no_tokens(monkeypatch):
    x, weight = torch.empty(0, 16, dtype=torch.bfloat16), torch.ones(16, requires_grad=True)
    for folder, rest in (("rms_norm", ()), ("layer_norm", (None,))):
        module = apex_module(monkeypatch, folder)
        out = getattr(module, folder)(x, weight, *rest, eps=1e-5)
        assert out.shape == x.shape and out.dtype == x.dtype and not stand_ins.calls
        assert not torch.autograd.grad(out.sum(), weight)[0].any()


def test_apex_adam_leaves_empty_tensors_out(monkeypatch):
    from evocore.kernels.adamw import reference

    module = apex_module(monkeypatch, "adamw")
    generator = torch.Generator().manual_seed(3)
    shapes = ((7,), (0, 4), (3, 5), (0,))
    params = [[torch.randn(shape, generator=generator) for shape in shapes]]
    params.append([x.clone() for x in params[0]])
    moments = [[[torch.zeros(shape) for shape in shapes] for _ in range(2)] for _ in range(2)]
    options = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    for step in (1, 2, 3):
        grads = [torch.randn(shape, generator=generator) for shape in shapes]
        for found, mine, (m, v) in zip((module, reference), params, moments, strict=True):
            found.adamw(mine, grads, m, v, step=step, **options)
    torch.testing.assert_close(params[0], params[1])
    torch.testing.assert_close(moments[0], moments[1])
    assert [call.told["tensors"] for call in stand_ins.calls] == [2, 2, 2]
    module.adamw([torch.empty(0)], [torch.empty(0)], [torch.empty(0)], [torch.empty(0)], step=1, **options)
    assert len(stand_ins.calls) == 3
