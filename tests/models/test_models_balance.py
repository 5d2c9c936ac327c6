"""The balance loss of ``transformers``, over all layers at once: its value, and every gradient that it adds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models_parity import ROWS, SHARED, SMALL_EXPERTS, Case, as_saved, batch, make

from evocore.nn.router import LossWeights, Router
from evocore.nn.weight_map import to_theirs

COEFFICIENT = 0.7
TOGETHER = dict(aux_loss_by_layer=False)
CASES = [
    Case("mixtral", "mixtral", dict(num_local_experts=4), settings=dict(moe_layer_kwargs=TOGETHER)),
    Case(
        "qwen2-moe",
        "qwen2_moe",
        SMALL_EXPERTS | SHARED | dict(mlp_only_layers=[1]),
        settings=dict(moe_layer_kwargs=TOGETHER, checkpoint=1.0),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_loss_and_gradients_are_those_of_transformers(case, tmp_path):
    pair = make(case, tmp_path / "model")
    routers = [module for module in pair.ours.modules() if isinstance(module, Router)]
    for router in routers:
        router.loss_weights = LossWeights(balance=COEFFICIENT)
    tokens, positions, documents = batch()
    for _ in range(2):  # a pass must not count what the one before has counted
        theirs = pair.theirs(tokens.view(ROWS, -1), output_router_logits=True)
        pair.theirs.zero_grad()
        (F.cross_entropy(theirs.logits.flatten(0, 1), tokens) + COEFFICIENT * theirs.aux_loss).backward()
        pair.ours.zero_grad()
        hidden = pair.ours(tokens, positions, documents)
        pair.ours.loss(hidden, tokens, torch.full(tokens.shape, 1 / len(tokens))).total.backward()

        told = sum(router.record.take()[-2] for router in routers)
        assert float(told) == pytest.approx(theirs.aux_loss.item(), rel=1e-6)
        ours = to_theirs(pair.match, {name: p.grad for name, p in pair.ours.named_parameters()})
        expected = as_saved(pair.theirs, {n: p.grad for n, p in pair.theirs.named_parameters()}, tmp_path / "grads")
        for name, gradient in expected.items():
            assert (ours[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
