"""Which part of a large call is compared: bounded, complete in itself, and all of it in the end."""

import pytest
import torch

from evocore.kernels.attention.native import attention as native_attention
from evocore.kernels.attention.reference import attention
from evocore.kernels.linear_cross_entropy.chunked import linear_cross_entropy as chunked
from evocore.kernels.linear_cross_entropy.reference import linear_cross_entropy
from evocore.kernels.rms_norm.analytic import rms_norm as analytic
from evocore.kernels.rms_norm.reference import rms_norm
from evocore.ops.accuracy import LIMIT
from evocore.ops.attention import CuSeqlens
from evocore.training.shadow import calls
from evocore.training.shadow.calls import RESULTS, choose_part, named, tensors_of
from evocore.training.shadow.references import Seen, compare_call


def differentiated(op, function, args, kwargs, wanted):
    """A call as shadow mode sees it, with random gradients from above."""
    arguments = named(op, args, kwargs)
    inputs = [arguments[name].requires_grad_() for name in wanted]
    returned = function(*args, **kwargs)
    outputs = dict(zip(RESULTS[op], [returned] if isinstance(returned, torch.Tensor) else returned, strict=True))
    above = {name: torch.randn_like(x) for name, x in outputs.items() if x.requires_grad}
    grads = torch.autograd.grad([outputs[name] for name in above], inputs, list(above.values()))
    arguments |= {name: x.detach() for name, x in tensors_of(arguments).items()}
    return Seen(
        arguments,
        {name: x.detach() for name, x in outputs.items()},
        above,
        dict(zip(wanted, grads, strict=True)),
    )


def attention_call(function, lengths, **options):
    torch.manual_seed(0)
    tokens = sum(lengths)
    documents = CuSeqlens.of([sum(lengths[:end]) for end in range(len(lengths) + 1)])
    args = [torch.randn(tokens, heads, 8) for heads in (4, 2, 2)]
    options |= dict(q_documents=documents, k_documents=documents)
    return differentiated("attention", function, args, options, ["q_TNH", "k_SKH", "v_SKH"])


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"causal": False}])
@pytest.mark.parametrize("scores", [10**6, 400, 40])
def test_sound_attention_is_sound_in_every_part(monkeypatch, scores, options):
    monkeypatch.setattr(calls, "SCORES", scores)
    seen = attention_call(native_attention, [5, 0, 17, 1, 9, 3], **options)
    covered = torch.zeros(35, 4, dtype=torch.bool)

    for turn in range(150):
        part = choose_part("attention", seen.arguments, turn)
        share = part.of("out_TNH", seen.outputs["out_TNH"])
        keys = part.of("k_SKH", seen.arguments["k_SKH"])
        assert share.shape[1] == 2 and keys.shape[1] == 1
        covered[part.slices["T"], part.slices["N"]] = True
        if turn < 20:
            verdict = compare_call("attention", native_attention, attention, seen, torch.float64, turn)
            assert set(verdict.backward) == {"q_TNH", "k_SKH", "v_SKH"} and set(verdict.forward) == {"out_TNH"}
            assert max(*verdict.forward.values(), *verdict.backward.values()) <= LIMIT, (turn, verdict)
    # A document with one key is reached behind others only.
    assert covered[:22].all() and covered[23:].all()


def test_a_long_document_is_cut_to_a_bounded_number_of_scores(monkeypatch):
    monkeypatch.setattr(calls, "SCORES", 640)
    seen = attention_call(attention, [160])
    for turn in range(80):
        part = choose_part("attention", seen.arguments, turn)
        q, k = part.of("q_TNH", seen.arguments["q_TNH"]), part.of("k_SKH", seen.arguments["k_SKH"])
        assert 0 < q.shape[0] * q.shape[1] * k.shape[0] <= 640


def test_documents_of_one_token_alone_are_left_out():
    seen = attention_call(native_attention, [1, 1, 1])
    verdict = compare_call("attention", native_attention, attention, seen, torch.float64, 1)
    assert verdict.part == "head 1 of 2, documents 0:0 of 3"
    assert not any([*verdict.forward.values(), *verdict.backward.values()])


@pytest.mark.parametrize("which", ["out_TNH", "q_TNH", "k_SKH", "v_SKH"])
def test_wrong_attention_is_found_within_the_part(which):
    seen = attention_call(native_attention, [6, 4])
    (seen.outputs if which == "out_TNH" else seen.gradients)[which][:, 1] *= 1.001
    # Query head 1 belongs to key-value head 0, which is the first turn's; key-value head 1 is the second's.
    turn = 0 if which in ("out_TNH", "q_TNH") else 1
    verdict = compare_call("attention", native_attention, attention, seen, torch.float64, turn)
    found = verdict.forward if which == "out_TNH" else verdict.backward
    assert found[which] > LIMIT


def norm_call(function):
    torch.manual_seed(0)
    args = [torch.randn(50, 16), torch.randn(16)]
    return differentiated("rms_norm", function, args, {"eps": 1e-5}, ["x_TD", "weight_D"])


def test_rows_are_bounded_and_take_turns(monkeypatch):
    monkeypatch.setattr(calls, "ELEMENTS", 160)
    seen = norm_call(analytic)
    parts = [choose_part("rms_norm", seen.arguments, turn) for turn in range(6)]
    assert [(part.slices["T"].start, part.slices["T"].stop) for part in parts] == [
        (0, 10), (10, 20), (20, 30), (30, 40), (40, 50), (0, 10),
    ]  # fmt: skip
    verdict = compare_call("rms_norm", analytic, rms_norm, seen, torch.float64, 2)
    assert verdict.part == "rows 20:30 of 50"
    assert max(*verdict.forward.values(), *verdict.backward.values()) <= LIMIT


def test_the_gradient_of_a_weight_is_checked_on_the_part_too(monkeypatch):
    monkeypatch.setattr(calls, "ELEMENTS", 160)
    seen = norm_call(analytic)

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight_D):
            return weight_D.clone()

        @staticmethod
        def backward(ctx, grad_D):
            return grad_D * 1.01

    def wrong(x_TD, weight_D, *, eps):
        return analytic(x_TD, Wrong.apply(weight_D), eps=eps)

    verdict = compare_call("rms_norm", wrong, rms_norm, seen, torch.float64, 0)
    assert verdict.backward["weight_D"] > LIMIT >= verdict.backward["x_TD"]


def test_rows_of_a_loss_leave_out_the_sum_over_all(monkeypatch):
    monkeypatch.setattr(calls, "ELEMENTS", 128)
    torch.manual_seed(0)
    labels_T = torch.tensor([3, -100, 5, 31] * 5)
    args = [torch.randn(20, 16), torch.randn(32, 16), labels_T, torch.full((20,), 1 / 15)]
    seen = differentiated("linear_cross_entropy", chunked, args, {"z_loss": 1e-3}, ["hidden_TD", "weight_VD"])

    verdict = compare_call("linear_cross_entropy", chunked, linear_cross_entropy, seen, torch.float64, 1)

    assert verdict.part == "rows 4:8 of 20" and set(verdict.forward) == {"loss_T"}
    assert set(verdict.backward) == {"hidden_TD", "weight_VD"}
    assert max(*verdict.forward.values(), *verdict.backward.values()) <= LIMIT
