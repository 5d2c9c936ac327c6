"""What the conformance kit asks: its grids, drawn cases, layouts and the bound of an error."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evocore.backends.cpu.device import CPUBackend
from evocore.errors import UserError
from evocore.kernels.references import reference_kernels
from evocore.ops.attention import CuSeqlens
from evocore.ops.contracts import CONTRACTS
from evocore.testing.conformance import SIZES, Checker, Selection, case_named, cases, conform
from evocore.testing.conformance.calls import LAYOUTS, ContractError, Results
from evocore.testing.conformance.choices import Choices, numbers_of, simpler
from evocore.testing.conformance.grid import GRIDS
from evocore.testing.conformance.rule import Rule
from evocore.testing.conformance.strategies import drawn_cases

OPS = sorted(CONTRACTS)
CHECKER = Checker(reference_kernels("cpu"), CPUBackend())


def test_every_contract_has_a_grid():
    assert sorted(GRIDS) == OPS


@pytest.mark.parametrize("op", OPS)
def test_labels_are_unique_and_find_their_case(op):
    labels = [case.label for case in GRIDS[op].cases]
    assert len(labels) == len(set(labels))
    assert not [label for label in labels if not set(label) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_")]
    assert [case_named(op, label).label for label in labels] == labels
    assert {case.size for case in GRIDS[op].cases} >= {"small", "large"} and set(SIZES) >= {
        case.size for case in GRIDS[op].cases
    }


@pytest.mark.parametrize("op", OPS)
def test_a_case_asks_for_its_op_and_makes_the_same_numbers_in_every_dtype(op):
    for case in cases(op):
        wide, low = case.make(torch.float64), case.make(torch.bfloat16)
        assert type(wide.request) is CONTRACTS[op] and low.request.op == op
        assert (wide.request.dtype, low.request.dtype) == (torch.float64, torch.bfloat16)
        for x, rounded in zip(wide.tensors(), low.tensors(), strict=True):
            assert torch.equal(x.to(rounded.dtype), rounded)


def test_mixed_cases_are_for_low_precision_only():
    low, wide = ({case.label for case in cases("rms_norm", dtype)} for dtype in (torch.float16, torch.float32))
    assert wide < low and all("fp32" in label for label in low - wide)


def test_sizes_add_up():
    small, medium, large = ({case.label for case in cases("attention", largest=size)} for size in SIZES)
    assert small < medium < large
    widths = {case_named("attention", label).make(torch.bfloat16).request.head_dim for label in large - medium}
    assert widths == {64, 96, 128, 256}


def test_the_oracle_gets_the_same_numbers_in_float64_and_the_whole():
    example = case_named("cross_entropy_shard", "8x19-of-38-everything-weighted").make(torch.bfloat16)
    exact = example.exact()
    assert (example.options["shards"], exact.options["shards"]) == (2, 1)
    assert torch.equal(exact.inputs[0], example.inputs[0].double()) and exact.constants[1].dtype == torch.float64
    assert exact.constants[0].dtype == torch.int64


def test_documents_move_with_the_call():
    example = case_named("attention", "cache").make(torch.float32).to(torch.device("meta"))
    documents = example.options["k_documents"]
    assert isinstance(documents, CuSeqlens) and documents.device.is_meta and documents.host[-1] == documents.total
    assert all(x.is_meta for x in example.tensors())


@pytest.mark.parametrize("op", OPS)
def test_drawn_cases_can_be_had_again_and_made(op):
    @settings(deadline=None, max_examples=25)
    @given(case=drawn_cases(op))
    def again(case):
        same = case_named(op, case.label)
        assert same is not None and same.label == case.label
        for x, other in zip(same.make(torch.float32).tensors(), case.make(torch.float32).tensors(), strict=True):
            assert torch.equal(x, other)

    again()


@given(st.lists(st.integers(0, 30), max_size=5))
def test_simpler_choices_are_smaller_in_one_place(made):
    for other in simpler(made):
        assert sum(a != b for a, b in zip(made, other, strict=True)) == 1 and 0 <= sum(other) < sum(made)


def test_choices_are_as_simple_as_can_be_where_none_is_left():
    choices = Choices.again([9, 1])
    assert (choices.integer(2, 5), choices.flag(), choices.one_of("abc"), choices.label) == (
        5,
        True,
        "a",
        "drawn-3.1.0",
    )
    assert numbers_of("drawn-3.1.0") == [3, 1, 0]
    assert numbers_of("drawn-x") is None and numbers_of("5x16") is None


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3), (0, 3), (5,), ()])
def test_a_layout_changes_where_numbers_are_and_not_what_they_are(layout, shape):
    x = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    other = layout(x)
    assert torch.equal(other, x)
    assert x.numel() <= 1 or not other.is_contiguous()


def results(*numbers: float, dtype: torch.dtype = torch.float64) -> Results:
    return Results((torch.tensor(numbers, dtype=dtype),), (False,), {})


@pytest.mark.parametrize(
    ("exact", "plain", "found", "worst"),
    [
        ((1.0, 8.0), (1.0, 8.0), (1.0, 8.0), 0.0),
        ((1.0, 8.0), (1.5, 8.0), (1.5, 8.0), 0.5),  # as large as the plain reference's, twice which is allowed
        ((1.0, 8.0), (1.0, 8.0), (1.0, 8.125), 0.5),  # of 4 x 2**-7 x 8
        ((0.0, 0.25), (0.0, 0.25), (0.015625, 0.25), 0.5),  # of 4 x 2**-7: numbers are of the order of 1
        ((1.0, -math.inf), (1.0, -math.inf), (1.0, -math.inf), 0.0),
    ],
)
def test_the_bound_is_twice_the_error_of_the_plain_reference_or_a_floor(exact, plain, found, worst):
    rule = Rule(results(*exact), results(*plain, dtype=torch.bfloat16))
    assert rule.worst(results(*found, dtype=torch.bfloat16)) == worst


@pytest.mark.parametrize(
    ("exact", "found"),
    [
        ((1.0, 8.0), (1.0, 8.5)),
        ((1.0, 8.0), (1.0, math.nan)),
        ((1.0, 8.0), (math.inf, 8.0)),
        ((1.0, -math.inf), (1.0, math.nan)),
        ((1.0, -math.inf), (1.0, -100.0)),
    ],
)
def test_what_lies_beyond_is_a_violation(exact, found):
    rule = Rule(results(*exact), results(*exact, dtype=torch.bfloat16))
    with pytest.raises(ContractError, match="output 0"):
        rule.worst(results(*found, dtype=torch.bfloat16))


def test_without_a_token_zeros_are_zeros():
    zeros, nearly = results(0.0, dtype=torch.float32), results(1e-30, dtype=torch.float32)
    assert Rule(results(0.0), zeros).worst(nearly) < 1e-20
    with pytest.raises(ContractError):
        Rule(results(0.0), zeros, zeros=True).worst(nearly)


@pytest.mark.parametrize(
    ("selection", "wrong", "fix"),
    [
        ({"op": "rms_nrm"}, "--op rms_nrm: there is none of this name", "did you mean rms_norm?"),
        ({"provider": "referense"}, "--provider referense", "did you mean reference?"),
        ({"dtype": "float31"}, "--dtype float31", "did you mean float32?"),
        ({"largest": "huge"}, "--sizes huge", "leave --sizes out"),
        ({"draws": -1}, "--draws -1", "--draws 0"),
        ({"case": "5x16"}, "--case 5x16 without --op", "--op"),
        ({"op": "rms_norm", "case": "5x61"}, "--case 5x61: rms_norm has no such case", "did you mean 5x16"),
        ({"op": "rms_norm", "case": "drawn-9.9"}, "--case drawn-9.9: rms_norm has no such case", "copy the label"),
    ],
)
def test_what_does_not_exist_is_a_mistake_that_names_what_does(selection, wrong, fix):
    with pytest.raises(UserError) as told:
        conform(CHECKER, Selection(**selection))
    assert told.value.wrong.startswith(wrong) and fix in told.value.fix


def test_an_op_without_kernels_for_the_device_is_a_mistake():
    only = [kernel for kernel in CHECKER.kernels if kernel.op == "swiglu"]
    with pytest.raises(UserError, match="no plug-in offers a kernel of it for cpu"):
        conform(Checker(only, CPUBackend()), Selection(op="geglu"))
