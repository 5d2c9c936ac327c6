"""Operation counts against a counting dispatcher and against closed forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from evocore.nn.binding import bind_kernels, model_requests
from evocore.nn.family import AttentionShape, Numerics
from evocore.ops.attention import CuSeqlens
from evocore.ops.resolution import resolve
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


@pytest.mark.parametrize("recompute", [0.0, 0.5])
def test_matrix_products_equal_what_the_dispatcher_counts(recompute):
    registry = load_plugins()
    settings = dict(
        vocab_size=64, hidden_size=32, num_layers=2, num_attention_heads=4, num_kv_attention_heads=2, mlp_ratio=2,
        multiple_of=16, checkpoint=recompute,
    )  # fmt: skip
    model = registry.models()[0].build(settings, Numerics(*[torch.float32] * 3))
    forced = {"linear_cross_entropy": "reference", "attention": "reference"}
    bind_kernels(model.to_empty(device="cpu"), resolve(model_requests(model), registry.kernels(), "cpu", forced))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    tokens = torch.randint(64, (24,))
    with FlopCounterMode(display=False) as counted:
        hidden = model(tokens, torch.arange(24), CuSeqlens.of([0, 24]))
        model.loss(hidden, tokens, None).total.backward()
    dense = sum(counted.get_flop_counts()["Global"].values())

    ours = FlopsCounter(model).training([24])

    # the reference attention multiplies the masked half too, which we do not count
    masked = 4 * 4 * 8 * (24 * 24 - 24 * 25 // 2)
    repeats = int(recompute * 2)
    assert ours.hardware + masked * (3 * 2 + repeats) == dense
    assert ours.hardware - ours.model == (
        0 if not repeats else 2 * model.recomputed_matmul_parameters() * 24 + 4 * 4 * 8 * 300
    )
