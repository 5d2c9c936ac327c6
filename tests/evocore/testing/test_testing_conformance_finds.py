"""The conformance kit on kernels that are wrong, each in one way: it must find each, say what, and show it again."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest
import torch

from evocore import hookimpl
from evocore.backends.cpu.device import CPUBackend
from evocore.cli.main import main
from evocore.kernels.references import reference_kernels
from evocore.ops.kernel import Kernel
from evocore.plugins.manager import PluginRegistry
from evocore.testing.conformance import (
    Checker,
    ConformanceError,
    KernelImportError,
    Selection,
    case_named,
    cases,
    conform,
)

ALL = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})
REFERENCES = reference_kernels("cpu", ALL)


def kernel(function: str, op: str = "rms_norm", **more: Any) -> Kernel:
    """A record of a function of ``wrong_kernels``."""
    return Kernel(op, "mine", frozenset({"cpu"}), f"wrong_kernels:{function}", **{"dtypes": ALL, **more})


def survey(mine: Kernel, **selection: Any):
    """The rows of ``mine``; nothing drawn unless it is asked for."""
    checker = Checker([mine, *REFERENCES], CPUBackend())
    return conform(checker, Selection(op=mine.op, provider="mine", **{"draws": 0, **selection}))


def wrongs(mine: Kernel, **selection: Any) -> dict[str, str]:
    """What is wrong with ``mine`` in each case that it fails."""
    return {failure.case: failure.what for row in survey(mine, **selection) for failure in row.failures}


FOUND = [
    ("wrong_value", torch.float32, "output 0 [1, 1] has an error of"),
    ("wrong_gradient", torch.float32, "the gradient of input 0 [1, 1] has an error of"),
    ("no_gradient", torch.float32, "outputs [] can be differentiated, expected [0]"),
    ("changes_an_input", torch.float32, "the forward pass changed an input of shape [1, 1]"),
    ("changes_a_gradient", torch.float32, "the backward pass changed a gradient from above of shape [1, 1]"),
    ("never_the_same", torch.float32, "output 0 is not the same to the bit, although it claims to be deterministic"),
    ("coarse_in_low_precision", torch.bfloat16, "has an error of"),
    ("coarse_in_low_precision", torch.float16, "has an error of"),
    ("wrong_dtype", torch.bfloat16, "output 0 is torch.float32 on cpu, expected torch.bfloat16 on cpu"),
    ("wrong_shape", torch.float32, "output 0 has shape [1, 1, 1], expected [1, 1]"),
    ("needs_a_token", torch.float32, "raised RuntimeError: max()"),
    ("ignores_strides", torch.float32, "with tensors stored as parts of wider rows: output 0"),
    ("needs_all_gradients", torch.float32, "with a gradient of input 1 alone: the gradient of input 1"),
    ("reads_before_it_writes", torch.float32, "in memory that holds NaN: output 0 [1, 1] has an error of inf"),
    ("wrong_without_gradients", torch.float32, "without gradients: output 0"),
]


@pytest.fixture
def installed(monkeypatch):
    """Makes the command find a kernel of ours beside the references."""

    class Plugin:
        kernels: list[Kernel] = []

        @hookimpl
        def evocore_kernels(self):
            return [*self.kernels, *REFERENCES]

        @hookimpl
        def evocore_backends(self):
            return [CPUBackend]

    plugin, registry = Plugin(), PluginRegistry()
    registry.register(plugin, "mine")
    monkeypatch.setattr("evocore.plugins.manager.load_plugins", lambda: registry)
    return plugin.kernels


def test_the_right_kernel_passes():
    rows = survey(kernel("right"))
    assert [(row.dtype, row.verdict, row.refused) for row in rows] == [
        (dtype, "passed", 0) for dtype in ("float32", "bfloat16", "float16", "float64")
    ]
    assert [row.passed for row in rows] == [len(cases("rms_norm", dtype)) for dtype in (
        torch.float32, torch.bfloat16, torch.float16, torch.float64
    )]  # fmt: skip
    assert all(0 <= row.worst <= 1 for row in rows)


@pytest.mark.parametrize(("function", "dtype", "what"), FOUND)
def test_what_is_wrong_is_found_and_shown_again(function, dtype, what, installed, capsys):
    mine = kernel(function)
    (row,) = survey(mine, dtype=str(dtype).removeprefix("torch."), thorough=True)
    found = next(failure for failure in row.failures if what in failure.what)
    assert row.verdict == "failed"
    installed.append(mine)
    command, verb, *arguments = shlex.split(found.reproducer)
    assert (command, verb) == ("evocore", "conform")
    assert main([verb, *arguments]) == 1
    out = capsys.readouterr().out
    assert (
        found.what in out and found.reproducer in out and out.endswith("\ncpu: does not conform; kernels: 1 fails\n")
    )


def test_only_what_is_wrong_is_found():
    assert set(wrongs(kernel("needs_a_token"))) == {"empty", "empty-unit_offset"}
    low = wrongs(kernel("coarse_in_low_precision"))
    assert low and not wrongs(kernel("coarse_in_low_precision"), dtype="float32")


def test_a_kernel_that_claims_nothing_need_not_repeat_itself():
    assert not wrongs(kernel("never_the_same", deterministic=False), dtype="float32")


def test_the_error_names_the_reproducer():
    checker, case = Checker([kernel("wrong_value"), *REFERENCES], CPUBackend()), case_named("rms_norm", "5x16")
    with pytest.raises(ConformanceError) as told:
        checker.check(kernel("wrong_value"), case, torch.float32)
    assert str(told.value).splitlines()[1] == (
        "  to see it again: evocore conform --backend cpu --op rms_norm --provider mine --dtype float32 --case 5x16"
    )


# --- refusals and imports -----------------------------------------------------------------------------------------


def test_what_is_refused_is_counted_with_its_reason_and_never_called():
    mine = kernel("wrong_value", supports=lambda request: "not today")
    (row,) = survey(mine, dtype="float32")
    assert (row.verdict, row.passed, row.failures) == ("serves nothing of the grid", 0, [])
    assert row.refusals == {"not today": len(cases("rms_norm", torch.float32))}


def test_what_is_not_refused_is_served():
    mine = kernel("right", supports=lambda request: "no offset" if request.unit_offset else None)
    (row,) = survey(mine, dtype="float32")
    offsets = [case for case in cases("rms_norm", torch.float32) if "unit_offset" in case.label]
    assert (row.verdict, row.refusals) == ("passed", {"no offset": len(offsets)})


def test_a_kernel_whose_package_is_missing_serves_nothing_and_says_which():
    mine = kernel("right", requires=("no-such-package-at-all>=2",))
    (row,) = survey(mine, dtype="float32")
    assert row.verdict == "serves nothing of the grid"
    assert list(row.refusals) == ["needs no-such-package-at-all>=2 (not installed)"]


@pytest.mark.parametrize(
    ("supports", "what"),
    [
        (lambda request: 1 / 0, "its supports() for [float32 width=1]: raised ZeroDivisionError: division by zero"),
        (lambda request: "", "its supports() for [float32 width=1] returned '', neither None nor a reason"),
        (lambda request: False, "its supports() for [float32 width=1] returned False, neither None nor a reason"),
    ],
)
def test_a_check_that_raises_or_gives_no_reason_is_a_failure(supports, what):
    assert wrongs(kernel("right", supports=supports), dtype="float32")["1x1"] == what


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"target": "no_such_module_at_all:f"}, "cannot be imported: ModuleNotFoundError: No module named"),
        ({"target": "wrong_kernels:no_such_function"}, "cannot be imported: AttributeError"),
        ({"arguments": {"launch": 1}}, "cannot be imported: TypeError"),
    ],
)
def test_a_kernel_that_cannot_be_imported_is_one_failure(record, what):
    mine = replace(kernel("right"), **record)
    (row,) = survey(mine)
    (failure,) = row.failures
    assert (row.dtype, row.verdict, failure.case) == ("", "failed", "") and failure.what.startswith(what)
    assert failure.reproducer == "evocore conform --backend cpu --op rms_norm --provider mine"
    with pytest.raises(KernelImportError):
        Checker([mine], CPUBackend()).load(mine)


def test_without_the_reference_nothing_can_be_said():
    rows = conform(Checker([kernel("right")], CPUBackend()), Selection(dtype="float32", case="5x16", op="rms_norm"))
    assert "no plug-in offers the reference of rms_norm" in rows[0].failures[0].what


# --- drawn cases --------------------------------------------------------------------------------------------------


def test_a_drawn_case_that_fails_is_made_as_simple_as_it_can_be(installed, capsys):
    mine = kernel("wrong_beyond_40")
    assert not wrongs(mine, dtype="float32", draws=0)
    (row,) = survey(mine, dtype="float32", draws=40)
    (failure,) = row.failures
    assert failure.case == "drawn-2.37.0.0.0"  # two tokens of 41 numbers, neither flag, the first seed
    installed.append(mine)
    assert main(shlex.split(failure.reproducer)[1:]) == 1
    assert failure.what in capsys.readouterr().out


def test_draws_follow_the_seed():
    def drawn(seed):
        checker = Checker(REFERENCES, CPUBackend())
        return [case.label for case in Selection(seed=seed, draws=6).cases(checker, "attention", torch.float32)][-6:]

    assert drawn(3) == drawn(3) != drawn(4)


# --- ops whose kernels are not plain functions --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "op", "dtype", "case", "what"),
    [
        ("block_in_base_2", "attention_block", "float32", "full", "output 1"),
        ("block_without_the_whole_row", "attention_block", "float32", "two-blocks-full", "the gradient of input 0"),
        ("block_without_the_whole_row", "attention_block", "float32", "two-blocks-ring-step", "the gradient of"),
        ("block_in_float32", "attention_block", "bfloat16", "full", "backward gives torch.float32 [9, 2, 8] for q"),
        ("shard_sum_of_another", "cross_entropy_shard", "float32", "2x5-of-10-plain", "output 5"),
        (
            "shard_whole_vocabulary",
            "cross_entropy_shard",
            "float32",
            "8x19-of-38-smoothing",
            "the gradient of input 0",
        ),
        (
            "shard_transposed",
            "cross_entropy_shard",
            "float32",
            "2x5-of-10-plain",
            "expected contiguous torch.float32",
        ),
        ("permute_backwards", "moe_permute", "float32", "two-of-5", "output 0"),
        ("permute_without_inverse", "moe_permute", "float32", "two-of-5", "source_R is not the inverse of row_TK"),
        ("unpermute_what_was_dropped", "moe_unpermute", "float32", "two-of-8-dropped", "output 0"),
        ("grouped_with_nobodys", "grouped_linear", "float32", "rows-of-nobody", "output 0"),
        ("adamw_that_scales_gradients", "adamw", "float32", "shapes", "the forward pass changed an input"),
    ],
)
def test_what_is_wrong_with_other_ops_is_found(function, op, dtype, case, what):
    assert what in wrongs(kernel(function, op), dtype=dtype, case=case)[case]


@pytest.mark.parametrize("op", ["attention_block", "cross_entropy_shard", "grouped_linear", "moe_permute"])
def test_what_these_are_made_of_is_right(op):
    assert not wrongs(kernel(op, op), dtype="float32")
