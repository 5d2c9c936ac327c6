"""Operation counts against a counting dispatcher and against closed forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from evocore.backends.cpu.device import CPUBackend
from evocore.nn.binding import bind_kernels, model_requests
from evocore.nn.family import AttentionShape, Numerics
from evocore.nn.tying import tie, tied_parameters
from evocore.ops.attention import CuSeqlens
from evocore.ops.resolution import resolve
from evocore.parallel.activations import ActivationMemory, ActivationOptions
from evocore.plugins.manager import load_plugins
from evocore.training.flops import FlopsCounter, visible_pairs


@given(st.integers(0, 60), st.one_of(st.none(), st.integers(1, 70)), st.booleans())
def test_visible_pairs_equal_the_counted_mask(length, window, causal):
    shape = AttentionShape(1, 1, causal, window if causal else None)
    i, j = torch.arange(length)[:, None], torch.arange(length)[None]
    mask = torch.ones(length, length, dtype=torch.bool)
    if causal:
        mask = (j <= i) if window is None else (j <= i) & (j > i - window)
    assert visible_pairs(length, shape) == int(mask.sum())


WINDOWED = dict(use_sliding_window=True, sliding_window=8, final_logit_softcapping=3.0)
LATENT = dict(
    q_lora_rank=12, kv_lora_rank=6, qk_nope_head_dim=6, qk_rope_head_dim=2, v_head_dim=5, extra_pred_tokens=1
)


@pytest.mark.parametrize(("recompute", "keeps_attention"), [(0.0, False), (0.5, False), (0.5, True), (1.0, False)])
@pytest.mark.parametrize(
    ("model_type", "more", "windows"),
    [("INTERNLM2", {}, (None, None)), ("GEMMA2", WINDOWED, (8, None)), ("LLAMA2", LATENT, (None, None, None))],
)
def test_matrix_products_equal_what_the_dispatcher_counts(model_type, more, windows, recompute, keeps_attention):
    registry = load_plugins()
    settings = dict(
        vocab_size=64, hidden_size=32, num_layers=2, num_attention_heads=4, num_kv_attention_heads=2, mlp_ratio=2,
        multiple_of=16, checkpoint=recompute,
    )  # fmt: skip
    family = next(family for family in registry.models() if family.name == model_type)
    model = family.build(settings | more, Numerics(*[torch.float32] * 3))
    forced = {"linear_cross_entropy": "reference", "attention": "reference"}
    tied = tied_parameters(model)
    model.to_empty(device="cpu")
    tie(model, tied)
    memory = ActivationMemory(CPUBackend(), torch.device("cpu"), ActivationOptions(keeps_attention))
    memory.connect(model)

    def wrap(function, request, layer):
        return memory.wrap_attention(function) if request.op == "attention" else function

    bind_kernels(model, resolve(model_requests(model), registry.kernels(), "cpu", forced), wrap)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    tokens = torch.randint(64, (24,))
    with FlopCounterMode(display=False) as counted:
        places, documents = torch.arange(24), CuSeqlens.of([0, 24])
        hidden = model(tokens, places, documents)
        losses = [model.loss(hidden, tokens, None)]
        if model.further:
            losses += model.further_losses(hidden, [tokens], places, documents, [tokens])
        sum(loss.total for loss in losses).backward()
    dense = sum(counted.get_flop_counts()["Global"].values())

    ours = FlopsCounter(model, keeps_attention=keeps_attention).training([24])

    # the reference attention multiplies what is hidden, too, and what values were padded with, which we do not count
    pairs = [visible_pairs(24, AttentionShape(4, 8, True, window)) for window in windows]
    needed = [2 * 4 * (8 + more.get("v_head_dim", 8)) * seen for seen in pairs]
    repeats = 0 if keeps_attention else len(pairs) if recompute == 1 else int(recompute * 2)
    more_than_needed = [2 * 4 * (8 + 8) * 24 * 24 - cost for cost in needed]
    assert ours.hardware + sum(n * (3 + (layer < repeats)) for layer, n in enumerate(more_than_needed)) == dense
    repeated = 2 * model.recomputed_matmul_parameters() * 24 + sum(needed[:repeats])
    assert ours.hardware - ours.model == repeated and (repeated > 0) == (recompute > 0)
