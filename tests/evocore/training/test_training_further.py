"""What a run tells of predictions beyond the next token, and what they add to the gradient."""

import math

import pytest
from training_runs import run, values, write_corpus


def test_their_loss_is_told_and_weighed_by_its_coefficient(tmp_path):
    write_corpus(tmp_path / "train")

    def first_step(coefficient, further=2):
        config = values(
            tmp_path,
            model_type="INTERNLM_MoE",
            data=dict(total_steps=1),
            model=dict(num_experts=4, moe_type="Dropless", mlp_ratio=1, extra_pred_tokens=further),
            loss=dict(mtp_loss_coeff=coefficient, moe_loss_coeff=0.0),
        )
        return config["model"], run(config)[2].steps[0]

    model, alone = first_step(0.3, further=0)
    (_, nothing), (_, weighed) = first_step(0.0), first_step(3.0)

    assert "mtp_loss" not in alone and alone["loss"] == nothing["loss"] == weighed["loss"]
    assert nothing["mtp_loss"] == weighed["mtp_loss"] == pytest.approx(math.log(model["vocab_size"]), rel=0.1)
    assert nothing["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-6)
    assert weighed["grad_norm"] > 1.5 * alone["grad_norm"]
    layers = model["num_layers"]
    assert f"moe/load/{layers + 1}" in weighed and f"moe/load/{layers}" not in alone
